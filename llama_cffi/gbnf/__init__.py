"""GBNF, llama.cpp's grammar notation: the parser, and what can be said of a grammar without C."""

"""GBNF, llama.cpp's grammar notation: parsing, analysis and conversion in pure Python."""

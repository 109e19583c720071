"""GGUF files: read the header, check it before C sees it, find strings in it."""

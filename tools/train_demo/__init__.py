"""How the demo model in ``llama_cffi/demo`` is made: data, tokenizer, training, export, checks."""

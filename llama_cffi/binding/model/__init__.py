"""A model: its file, its weights, its vocabulary."""

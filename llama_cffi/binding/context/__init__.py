"""A context: batches in, outputs out, and the memory in between."""

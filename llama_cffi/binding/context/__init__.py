"""A context: batches in, logits out, and the memory between them."""

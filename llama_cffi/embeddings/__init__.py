"""Embeddings, reranking and the probability of given text."""

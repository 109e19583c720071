"""Vectors and scores of given text."""

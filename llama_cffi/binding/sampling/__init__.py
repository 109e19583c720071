"""Sampler chains, grammars and samplers written in Python."""

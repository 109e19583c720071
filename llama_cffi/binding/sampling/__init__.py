"""Sampler chains, grammars and custom samplers."""

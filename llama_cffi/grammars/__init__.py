"""Structured output: JSON Schema, regex, Lark, choices and GBNF -> which tokens may come next."""

from .constraint import Constraint
from .grammar import LlamaGrammar

__all__ = ["Constraint", "LlamaGrammar"]

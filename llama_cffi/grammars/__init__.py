"""Structured output: JSON Schema, regex, Lark, choices and GBNF as masks on tokens."""

from .constraint import Constraint
from .grammar import LlamaGrammar

__all__ = ["Constraint", "LlamaGrammar"]

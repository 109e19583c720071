"""Plan the memory of a model before it is loaded: what it takes, what is free, what fits."""

from __future__ import annotations

from .loading import Fitted, fit
from .memory_plan import DevicePlan, MemoryPlan
from .planner import PlanOptions, estimate, options_of, plan

__all__ = [
    "DevicePlan",
    "Fitted",
    "MemoryPlan",
    "PlanOptions",
    "estimate",
    "fit",
    "options_of",
    "plan",
]

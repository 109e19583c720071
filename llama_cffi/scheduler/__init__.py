"""Continuous batching: many requests share one model and one context."""

from .kv_cache import CacheStats, KVCache, Lease
from .request import Request, RequestState
from .scheduler import Chunk, Plan, Result, Scheduler

__all__ = [
    "CacheStats",
    "Chunk",
    "KVCache",
    "Lease",
    "Plan",
    "Request",
    "RequestState",
    "Result",
    "Scheduler",
]

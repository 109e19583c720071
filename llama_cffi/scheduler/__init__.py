"""Continuous batching: many requests share one model and one context."""

from .engine import InferenceEngine
from .handle import Handle
from .kv_cache import CacheStats, KVCache, Lease
from .metrics import EngineStats
from .request import Request, RequestState
from .scheduler import Chunk, Plan, Result, Scheduler

__all__ = [
    "CacheStats",
    "Chunk",
    "EngineStats",
    "Handle",
    "InferenceEngine",
    "KVCache",
    "Lease",
    "Plan",
    "Request",
    "RequestState",
    "Result",
    "Scheduler",
]

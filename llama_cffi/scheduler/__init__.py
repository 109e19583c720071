"""Continuous batching: many requests share one model and one context."""

from .inference_engine import InferenceEngine
from .kv_cache import CacheStats, KVCache, Lease
from .metrics import EngineStats
from .mtp import MtpHead
from .request import Request, RequestState
from .request_handle import Handle
from .scheduler import Chunk, Plan, Result, Scheduler
from .speculative import Drafter, DraftModel, PromptLookup

__all__ = [
    "CacheStats",
    "Chunk",
    "DraftModel",
    "Drafter",
    "EngineStats",
    "Handle",
    "InferenceEngine",
    "KVCache",
    "Lease",
    "MtpHead",
    "Plan",
    "PromptLookup",
    "Request",
    "RequestState",
    "Result",
    "Scheduler",
]

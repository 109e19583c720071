"""Continuous batching: many requests share one model and one context."""

from .inference_engine import InferenceEngine, SubmitOptions
from .kv_cache import Allocation, CacheStats, KVCache
from .metrics import EngineStats, RequestStep, StepStats
from .mtp import MtpHead
from .ngram_cache import NgramCache
from .request import Request, RequestState
from .request_handle import RequestHandle
from .scheduler import ScheduledTokens, Scheduler, SchedulerOutput, TokenResult
from .speculative import Drafter, DraftModel, PromptLookup

Handle = RequestHandle  # its former name

__all__ = [
    "Allocation",
    "CacheStats",
    "DraftModel",
    "Drafter",
    "EngineStats",
    "Handle",
    "InferenceEngine",
    "KVCache",
    "MtpHead",
    "NgramCache",
    "PromptLookup",
    "Request",
    "RequestHandle",
    "RequestState",
    "RequestStep",
    "ScheduledTokens",
    "Scheduler",
    "SchedulerOutput",
    "StepStats",
    "SubmitOptions",
    "TokenResult",
]

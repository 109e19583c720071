"""/metrics for Prometheus: under llama-server's names for all models, and vLLM's for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, TypeAlias

from starlette.routing import BaseRoute, Route

from ..scheduler import EngineStats
from ..scheduler.metrics import Histogram
from .call import Answer, Call, Endpoint, Text
from .errors import not_supported
from .models import Models

__all__ = ["routes"]

_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Metric(NamedTuple):
    name: str
    kind: str
    help: str
    value: Callable[[EngineStats], float]


class _Histogram(NamedTuple):
    name: str
    help: str
    value: Callable[[EngineStats], Histogram]


class _Rate(NamedTuple):
    """Tokens per second of the requests that ended between two scrapes."""

    name: str
    help: str
    n_tokens: Callable[[EngineStats], int]
    seconds: Callable[[EngineStats], float]


_Stats: TypeAlias = Sequence[tuple[str, EngineStats]]  # by name of the model

# One value of all models, without labels.
_OF_ALL = (
    _Metric("prompt_tokens_total", "counter", "Prompt tokens evaluated, without cached ones.",
            lambda s: s.requests.n_prompt - s.requests.n_reused),
    _Metric("prompt_tokens_cached_total", "counter", "Prompt tokens found in the KV cache.",
            lambda s: s.requests.n_reused),
    _Metric("prompt_seconds_total", "counter", "Seconds of evaluating prompts.",
            lambda s: s.requests.prefill_s),
    _Metric("tokens_predicted_total", "counter", "Generated tokens.",
            lambda s: s.requests.n_generated),
    _Metric("tokens_predicted_seconds_total", "counter",
            "Seconds of generating, without the first token of each answer.",
            lambda s: s.requests.decode_s),
    _Metric("n_decode_total", "counter", "Decoded batches.", lambda s: s.n_steps),
    _Metric("requests_processing", "gauge", "Running requests.", lambda s: s.n_running),
    _Metric("requests_deferred", "gauge", "Waiting requests.", lambda s: s.n_waiting),
)  # fmt: skip
_RATES = (
    _Rate("prompt_tokens_seconds",
          "Prompt tokens per second of the requests that ended since the last scrape.",
          lambda s: s.requests.n_prompt - s.requests.n_reused, lambda s: s.requests.prefill_s),
    _Rate("predicted_tokens_seconds",
          "Tokens per second, without the first, of the requests that ended since the last scrape.",
          lambda s: s.requests.n_after_first, lambda s: s.requests.decode_s),
)  # fmt: skip
# With the label model_name.
_OF_EACH = (
    _Metric("num_requests_running", "gauge", "Running requests.", lambda s: s.n_running),
    _Metric("num_requests_waiting", "gauge", "Waiting requests.", lambda s: s.n_waiting),
    _Metric("kv_cache_usage_perc", "gauge", "Part of the KV cache in use; 1 is all of it.",
            lambda s: max(0.0, 1 - (s.cache.n_free + s.cache.n_cached) / s.cache.n_blocks)),
    _Metric("prefix_cache_queries_total", "counter", "Prompt tokens looked up in the KV cache.",
            lambda s: s.cache.n_lookup_tokens),
    _Metric("prefix_cache_hits_total", "counter", "Prompt tokens found in the KV cache.",
            lambda s: s.cache.n_hit_tokens),
    _Metric("prompt_tokens_total", "counter", "Prompt tokens, with cached ones.",
            lambda s: s.requests.n_prompt),
    _Metric("generation_tokens_total", "counter", "Generated tokens.",
            lambda s: s.requests.n_generated),
    _Metric("num_preemptions_total", "counter", "Preemptions.", lambda s: s.n_preemptions),
)  # fmt: skip
_ENDS: dict[str, Callable[[EngineStats], int]] = {
    "stop": lambda s: s.n_finished - s.requests.n_length,
    "length": lambda s: s.requests.n_length,
    "abort": lambda s: s.n_cancelled,
    "error": lambda s: s.n_failed,
}
_HISTOGRAMS = (
    _Histogram("time_to_first_token_seconds", "Seconds from submission to the first token.",
               lambda s: s.requests.time_to_first_token_s),
    _Histogram("request_time_per_output_token_seconds",
               "Mean seconds between the tokens of a request.", lambda s: s.requests.inter_token_s),
    _Histogram("e2e_request_latency_seconds", "Seconds from submission to the end.",
               lambda s: s.requests.total_s),
    _Histogram("request_queue_time_seconds", "Seconds in the queue.", lambda s: s.requests.queue_s),
    _Histogram("request_prompt_tokens", "Prompt tokens of a request.",
               lambda s: s.requests.prompt_tokens),
    _Histogram("request_generation_tokens", "Generated tokens of a request.",
               lambda s: s.requests.generated_tokens),
)  # fmt: skip


def routes() -> list[BaseRoute]:
    """Return the routes of this module."""
    return [Route("/metrics", Endpoint(_Exporter(), reads_body=False), methods=["GET"])]


class _Exporter:
    """Writes the metrics, and remembers those of the last scrape."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, float]] = {}

    async def __call__(self, call: Call) -> Answer:
        if not call.state.settings.metrics:
            raise not_supported(
                "this server does not tell metrics; start it with --metrics (metrics=True)"
            )
        stats = _stats(call.state.models)
        lines = [*self._llama_server(stats), *_vllm(stats)]
        return Text("\n".join(lines) + "\n", _MEDIA_TYPE)

    def _llama_server(self, stats: _Stats) -> Iterator[str]:
        every = [found for _, found in stats]
        for metric in _OF_ALL:
            total = sum(metric.value(found) for found in every)
            yield from _single(metric.name, metric.kind, metric.help, total)
        longest = max((found.requests.n_tokens_max for found in every), default=0)
        yield from _single(
            "n_tokens_max", "gauge", "Most tokens of a request, prompt and answer.", longest
        )
        n_steps = sum(found.n_steps for found in every)
        busy = sum(found.n_step_requests for found in every) / n_steps if n_steps else 0.0
        yield from _single(
            "n_busy_slots_per_decode", "gauge", "Requests in a decoded batch, on average.", busy
        )
        for rate in _RATES:
            n_tokens = sum(rate.n_tokens(found) for found in every)
            seconds = sum(rate.seconds(found) for found in every)
            n_before, before = self._last.get(rate.name, (0, 0.0))
            self._last[rate.name] = n_tokens, seconds
            n, passed = n_tokens - n_before, seconds - before
            # Both fall when a model is no longer there.
            value = n / passed if n > 0 and passed > 0 else 0.0
            yield from _single(rate.name, "gauge", rate.help, value)


def _stats(models: Models) -> _Stats:
    """Return the numbers of the models that are, or were, open and have an engine that counts."""
    found, n_open = [], 0
    for model in models:
        n_open += model.is_open
        if (stats := model.stats) is not None:
            found.append((model.name, stats))
    if n_open and not found:
        raise not_supported(
            "only models that answer several requests together have metrics; start the server "
            "with --parallel 2 (n_parallel=2) or more"
        )
    return found


def _vllm(stats: _Stats) -> Iterator[str]:
    for metric in _OF_EACH:
        name = f"vllm:{metric.name}"
        yield from _head(name, metric.kind, metric.help)
        for model, found in stats:
            yield f"{name}{{{_label(model)}}} {_number(metric.value(found))}"
    yield from _head("vllm:request_success_total", "counter", "Requests that have ended.")
    for model, found in stats:
        for reason, count in _ENDS.items():
            labels = f'{_label(model)},finished_reason="{reason}"'
            yield f"vllm:request_success_total{{{labels}}} {_number(count(found))}"
    for histogram in _HISTOGRAMS:
        name = f"vllm:{histogram.name}"
        yield from _head(name, "histogram", histogram.help)
        for model, found in stats:
            yield from _buckets(name, _label(model), histogram.value(found))


def _buckets(name: str, label: str, histogram: Histogram) -> Iterator[str]:
    bounds = [*map(_number, histogram.bounds), "+Inf"]
    counts = [*accumulate(histogram.counts)]
    for bound, count in zip(bounds, counts, strict=True):
        yield f'{name}_bucket{{{label},le="{bound}"}} {count}'
    yield f"{name}_count{{{label}}} {counts[-1]}"
    yield f"{name}_sum{{{label}}} {_number(histogram.total)}"


def _single(name: str, kind: str, text: str, value: float) -> Iterator[str]:
    name = f"llamacpp:{name}"
    yield from _head(name, kind, text)
    yield f"{name} {_number(value)}"


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _label(model: str) -> str:
    value = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'model_name="{value}"'


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))

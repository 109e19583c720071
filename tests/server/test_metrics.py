"""/metrics: Prometheus's text format, read by its own parser."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.http_requests import get, post
from support.tiny_encoders import write_bert

from llama_cffi import Llama, LlamaPool
from llama_cffi.demo import model_path
from llama_cffi.errors import ValidationError
from llama_cffi.server.http_server import HttpServer
from llama_cffi.server.settings import Settings

NAME = 'demo "1"\\x'
PROMPT = [3, 5, 7, 9, 11, 13]


@pytest.fixture
def measured() -> Iterator[HttpServer]:
    """A server with metrics, before its first request."""
    with (
        LlamaPool(model_path(), n_parallel=2, n_ctx=256, n_threads=1, embeddings=True) as pool,
        pool.serve(aliases=[NAME], metrics=True) as server,
    ):
        yield server


Samples = dict[tuple[str, str], float]


def scrape(server: HttpServer) -> Samples:
    """Return the samples by name and last label; every value is checked."""
    reply = get(f"{server.url}/metrics")
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    found: Samples = {}
    for family in text_string_to_metric_families(reply.body.decode()):
        for sample in family.samples:
            assert math.isfinite(sample.value), sample
            assert sample.value >= 0, sample
            if sample.name.startswith("vllm:"):
                assert sample.labels["model_name"] == NAME
            label = sample.labels.get("le", sample.labels.get("finished_reason", ""))
            assert (sample.name, label) not in found
            found[sample.name, label] = sample.value
    return found


def complete(server: HttpServer, max_tokens: int, prompt: Sequence[int] = PROMPT) -> Any:
    """Return the usage of a completion of exactly *max_tokens* tokens."""
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    reply = post(f"{server.url}/v1/completions", body)
    assert reply.status == 200, reply.body
    return reply.json["usage"]


@pytest.mark.behaviour("metrics: 501 when they are off")
def test_metrics_are_off_unless_asked_for(server: HttpServer) -> None:
    reply = get(f"{server.url}/metrics")
    assert reply.status == 501
    assert reply.error["type"] == "not_supported_error"
    assert "--metrics" in reply.error["message"]


def test_metrics_is_a_bool() -> None:
    with pytest.raises(ValidationError, match="metrics"):
        Settings(metrics="yes")  # type: ignore[arg-type]


@pytest.mark.behaviour("metrics: each metric has TYPE and HELP")
def test_every_metric_has_help_and_type_before_its_samples(measured: HttpServer) -> None:
    complete(measured, 2)
    lines = get(f"{measured.url}/metrics").body.decode().splitlines()
    helped, typed, sampled = set(), {}, set()
    for line in lines:
        if line.startswith("# HELP "):
            _, _, name, text = line.split(" ", 3)
            assert text
            helped.add(name)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in typed
            typed[name] = kind
        else:
            name = line.split("{")[0].split(" ")[0]
            for suffix in ("_bucket", "_count", "_sum"):
                base = name.removesuffix(suffix)
                if typed.get(base) == "histogram":
                    name = base
            assert name in helped
            assert name in typed
            sampled.add(name)
    assert helped == typed.keys() == sampled
    assert set(typed.values()) == {"counter", "gauge", "histogram"}


def test_before_the_first_request_all_is_zero(measured: HttpServer) -> None:
    found = scrape(measured)
    assert set(found.values()) == {0.0}
    assert scrape(measured) == found


@pytest.mark.behaviour("metrics: the totals are the sums over the requests")
@pytest.mark.behaviour("metrics: cached tokens are counted apart")
def test_totals_are_the_sums_of_the_usage(measured: HttpServer) -> None:
    before = scrape(measured)
    # The second prompt continues the first, so the cache has its beginning.
    usages = [complete(measured, n, PROMPT * repeats) for n, repeats in ((1, 1), (2, 2), (5, 3))]
    chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    usages.append(post(f"{measured.url}/v1/chat/completions", chat).json["usage"])
    found = scrape(measured)
    n_prompt = sum(usage["prompt_tokens"] for usage in usages)
    n_cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    n_generated = sum(usage["completion_tokens"] for usage in usages)
    assert n_cached > 0
    assert found["llamacpp:tokens_predicted_total", ""] == n_generated
    assert found["llamacpp:prompt_tokens_total", ""] == n_prompt - n_cached
    assert found["llamacpp:prompt_tokens_cached_total", ""] == n_cached
    assert found["llamacpp:n_tokens_max", ""] == max(usage["total_tokens"] for usage in usages)
    assert found["llamacpp:n_decode_total", ""] >= max(u["completion_tokens"] for u in usages)
    assert found["llamacpp:n_busy_slots_per_decode", ""] == 1
    assert found["llamacpp:requests_processing", ""] == 0
    assert found["llamacpp:prompt_seconds_total", ""] > 0
    assert found["llamacpp:tokens_predicted_seconds_total", ""] > 0
    assert found["llamacpp:prompt_tokens_seconds", ""] > 0
    assert found["llamacpp:predicted_tokens_seconds", ""] > 0
    assert found["vllm:generation_tokens_total", ""] == n_generated
    assert found["vllm:prompt_tokens_total", ""] == n_prompt
    assert found["vllm:prefix_cache_queries_total", ""] == n_prompt
    assert found["vllm:prefix_cache_hits_total", ""] == n_cached
    ends = [found["vllm:request_success_total", end] for end in ("stop", "length")]
    assert sum(ends) == 4
    assert ends[1] >= 3
    assert found.keys() == before.keys()
    assert all(found[key] >= before[key] for key in found if key[0].endswith("_total"))
    # Rates are of what ended between two scrapes.
    assert scrape(measured)["llamacpp:predicted_tokens_seconds", ""] == 0


def test_histograms_are_cumulative_and_count_each_answer(measured: HttpServer) -> None:
    usages = [complete(measured, n) for n in (1, 2, 5)]
    found = scrape(measured)
    for name, n in [
        ("time_to_first_token_seconds", 3),
        ("request_time_per_output_token_seconds", 2),  # one token has no time between tokens
        ("e2e_request_latency_seconds", 3),
        ("request_queue_time_seconds", 3),
        ("request_prompt_tokens", 3),
        ("request_generation_tokens", 3),
    ]:
        buckets = [v for (key, _), v in found.items() if key == f"vllm:{name}_bucket"]
        assert buckets == sorted(buckets)
        assert buckets[-1] == found[f"vllm:{name}_bucket", "+Inf"] == n
        assert found[f"vllm:{name}_count", ""] == n
    counts = [found["vllm:request_generation_tokens_bucket", bound] for bound in ("1.0", "2.0")]
    assert counts == [1, 2]  # bounds are inclusive
    assert found["vllm:request_generation_tokens_sum", ""] == 8
    n_prompt = sum(usage["prompt_tokens"] for usage in usages)
    assert found["vllm:request_prompt_tokens_sum", ""] == n_prompt


@pytest.mark.behaviour("metrics: rates leave out the first token, and one token has none")
def test_answers_of_one_token_have_no_rate(measured: HttpServer) -> None:
    for _ in range(3):
        assert complete(measured, 1)["completion_tokens"] == 1
    found = scrape(measured)
    assert found["llamacpp:tokens_predicted_total", ""] == 3
    assert found["llamacpp:tokens_predicted_seconds_total", ""] == 0
    assert found["llamacpp:predicted_tokens_seconds", ""] == 0
    assert found["llamacpp:prompt_tokens_seconds", ""] > 0


def test_typed_decisions_count_their_prompts(measured: HttpServer) -> None:
    question = {"type": "predicate", "name": "ok", "instructions": "Is this fine?"}
    reply = post(f"{measured.url}/v1/decisions", {"input": "All is well.", "questions": [question]})
    assert reply.status == 200, reply.body
    found = scrape(measured)
    assert found["vllm:prompt_tokens_total", ""] == reply.json["usage"]["input_tokens"]
    assert found["llamacpp:prompt_seconds_total", ""] > 0
    assert found["llamacpp:tokens_predicted_seconds_total", ""] == 0


@pytest.mark.behaviour("metrics: embeddings are counted")
def test_embeddings_are_counted_as_prompts(measured: HttpServer) -> None:
    texts = ["a cat", "a dog sleeps", "a cat"]
    usage = complete(measured, 2)
    before = scrape(measured)
    n = post(f"{measured.url}/v1/embeddings", {"input": texts}).json["usage"]["prompt_tokens"]
    n_same = post(f"{measured.url}/tokenize", {"content": "a cat", "add_special": True}).json
    found = scrape(measured)
    added = {key: found[key] - before[key] for key in found}
    assert added["vllm:prompt_tokens_total", ""] == n
    assert added["llamacpp:prompt_tokens_cached_total", ""] == len(n_same["tokens"])
    assert added["llamacpp:prompt_tokens_total", ""] == n - len(n_same["tokens"])
    assert added["llamacpp:prompt_seconds_total", ""] > 0
    assert added["llamacpp:n_decode_total", ""] == 1
    assert added["vllm:request_success_total", "stop"] == 3
    assert found["llamacpp:tokens_predicted_total", ""] == usage["completion_tokens"]
    post(f"{measured.url}/embedding", {"content": [[5, 6, 7]]})
    assert scrape(measured)["vllm:prompt_tokens_total", ""] == usage["prompt_tokens"] + n + 3


def test_ranked_documents_are_counted_as_prompts(tmp_path: Path) -> None:
    write_bert(tmp_path / "rank.gguf", pooling=gguf.PoolingType.RANK, head=True)
    with (
        LlamaPool(tmp_path / "rank.gguf", 2, n_ctx=64, n_threads=1, embeddings=True) as pool,
        pool.serve(aliases=[NAME], metrics=True) as server,
    ):
        body = {"query": "abc", "documents": ["a b c", "d e f"]}
        usage = post(f"{server.url}/v1/rerank", body).json["usage"]
        found = scrape(server)
        assert pool.llm.embedding_stats is not None
        n_tokens = pool.llm.embedding_stats.n_tokens
    assert found["vllm:prompt_tokens_total", ""] == n_tokens >= usage["prompt_tokens"]
    assert found["vllm:request_success_total", "stop"] == 2
    assert found["llamacpp:n_decode_total", ""] == 1


@pytest.mark.behaviour("metrics: no value is negative, infinite or not a number")
def test_every_value_is_finite_and_not_negative(measured: HttpServer) -> None:
    lines = get(f"{measured.url}/metrics").body.decode().splitlines()
    values = [float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")]
    assert len(values) > 50
    assert all(math.isfinite(value) and value >= 0 for value in values)


@pytest.mark.behaviour("metrics: idle slots do not change the counters")
def test_scrapes_do_not_step_the_engine(measured: HttpServer) -> None:
    complete(measured, 2)
    before = scrape(measured)["llamacpp:n_decode_total", ""]
    assert [scrape(measured)["llamacpp:n_decode_total", ""] for _ in range(5)] == [before] * 5


def test_metrics_need_the_key(pool: LlamaPool) -> None:
    with pool.serve(api_keys=["secret"], metrics=True) as server:
        assert get(f"{server.url}/metrics").status == 401
        assert get(f"{server.url}/metrics", authorization="Bearer wrong").status == 401
        assert get(f"{server.url}/metrics", authorization="Bearer secret").status == 200


def test_a_model_without_a_scheduler_says_how_to_get_metrics() -> None:
    with (
        Llama(model_path(), n_ctx=64, n_threads=1) as llm,
        llm.serve(metrics=True) as server,
    ):
        reply = get(f"{server.url}/metrics")
    assert reply.status == 501
    assert "n_parallel=2" in reply.error["message"]


def test_a_closed_model_has_no_samples() -> None:
    pool = LlamaPool(model_path(), n_parallel=2, n_ctx=64, n_threads=1)
    with pool.serve(metrics=True) as server:
        pool.close()
        reply = get(f"{server.url}/metrics")
    assert reply.status == 200
    samples = [line for line in reply.body.decode().splitlines() if line[0] != "#"]
    assert samples
    assert all(line.endswith((" 0", " 0.0")) for line in samples)

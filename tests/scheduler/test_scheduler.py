"""Scheduler: the order and the limits of its steps, and the end of every request."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from support.fake_memory import KINDS, N_VOCAB, FakeMemory, alone, answer, check_cache, decode

from llama_cffi import ContextOverflowError, Request, RequestState, Scheduler, ValidationError
from llama_cffi.scheduler import KVCache, ScheduledTokens, SchedulerOutput, TokenResult

PENDING, PREFILLING, DECODING = (
    RequestState.PENDING,
    RequestState.PREFILLING,
    RequestState.DECODING,
)
FINISHED, FAILED, CANCELLED = RequestState.FINISHED, RequestState.FAILED, RequestState.CANCELLED


class Bench:
    """A scheduler, a memory that decodes its steps, and a manual clock."""

    def __init__(
        self,
        kind: str = "unified",
        n_seqs: int = 4,
        n_kv_tokens: int = 256,
        size: int = 4,
        **options: Any,
    ) -> None:
        self.now = 0.0
        self.memory = FakeMemory(kind, n_seqs, n_kv_tokens)
        unified = kind in ("unified", "windowed")
        self.cache = KVCache(n_seqs, n_kv_tokens, size, unified=unified, memory=self.memory)
        options = {"n_batch": 16, "clock": lambda: self.now, **options}
        self.scheduler = Scheduler(self.cache, **options)
        self.ends: Counter[Request] = Counter()
        self.requests: list[Request] = []
        self.prefilled: dict[Hashable, int] = {}  # by LoRA key: prompt tokens since a decode step

    def add(self, prompt: int | Sequence[int], n: int = 3, **options: Any) -> Request:
        """Add a request with the given prompt, or a unique one of the given length."""
        if isinstance(prompt, int):
            prompt = [100 + len(self.requests)] * prompt
        request = Request(prompt, n, **options)
        request.created_s = self.now
        if request.deadline_s is not None:
            request.deadline_s = self.now + options["timeout_s"]
        self.requests.append(request)
        self.scheduler.add(request)
        return request

    def step(self, without: Iterable[Request] = ()) -> SchedulerOutput:
        """Schedule, check, decode and update."""
        output = self.scheduler.schedule()
        self.check(output)
        results = {c.request: decode(self.memory, c) for c in output.chunks}
        self.update(output, {r: result for r, result in results.items() if r not in without})
        return output

    def update(self, output: SchedulerOutput, results: dict[Request, TokenResult]) -> None:
        ended = self.scheduler.update(output, results)
        assert all(request.finished for request in ended)
        self.ends.update(ended)
        self.check_state()

    def drain(self, n_most: int = 2000) -> None:
        for _ in range(n_most):
            if not self.scheduler.has_work:
                return
            self.step()
        raise AssertionError(f"no end: {self.scheduler.running} {self.scheduler.waiting}")

    def check(self, output: SchedulerOutput) -> None:
        scheduler = self.scheduler
        assert output.n_tokens == sum(len(c.tokens) for c in output.chunks) <= scheduler.n_batch
        assert len({c.request for c in output.chunks}) == len(output.chunks)
        assert [c.seq_id for c in output.chunks] == sorted({c.seq_id for c in output.chunks})
        assert {c.request.lora_key for c in output.chunks} <= {output.lora_key}
        assert len(scheduler.running) <= scheduler.max_running
        by_state: dict[RequestState, list[ScheduledTokens]] = {DECODING: [], PREFILLING: []}
        for chunk in output.chunks:
            by_state[chunk.request.state].append(chunk)
            assert chunk.tokens, "an empty chunk"
            assert chunk.request.seq_id == chunk.seq_id
            assert chunk.start == chunk.request.num_computed_tokens
            end = chunk.start + len(chunk.tokens) - chunk.n_draft
            known = chunk.request.tokens[chunk.start :]
            assert chunk.tokens[: end - chunk.start] == known[: end - chunk.start]
            assert chunk.samples == (end == len(chunk.request.tokens))
            assert chunk.n_draft == 0 or chunk.samples
        # Decode first: all requests of the key are in the step, and prefill gets the rest.
        members = [r for r in scheduler.running if r.lora_key == output.lora_key]
        decoding = {r for r in members if r.state is DECODING}
        n_prefilling = len(members) - len(decoding)
        if decoding:
            n_prompts = sum(len(c.tokens) for c in by_state[PREFILLING])
            assert n_prompts <= scheduler.n_prefill_chunk * n_prefilling
        if len(by_state[PREFILLING]) > 1:
            n_prompts = sum(len(c.tokens) for c in by_state[PREFILLING])
            assert n_prompts <= scheduler.n_prefill_shared
        if scheduler.mix_prefill or not by_state[PREFILLING]:
            assert {c.request for c in by_state[DECODING]} == decoding
            self.prefilled[output.lora_key] = 0
        else:
            before = self.prefilled.get(output.lora_key, 0)
            self.prefilled[output.lora_key] = before + output.n_tokens
            if decoding:
                most = scheduler.n_prefill_chunk * n_prefilling
                assert before + output.n_tokens <= min(most, scheduler.n_batch)
        assert scheduler.mix_prefill or not (by_state[PREFILLING] and by_state[DECODING])
        for request in output.preempted:
            assert request.n_generated < request.max_tokens
        self.check_state()

    def check_state(self) -> None:
        scheduler = self.scheduler
        busy = [r.seq_id for r in scheduler.running]
        assert None not in busy
        assert len(set(busy)) == len(busy)
        check_cache(self.cache, self.memory, {s for s in busy if s is not None})
        assert {r.state for r in scheduler.running} <= {PREFILLING, DECODING}
        waiting = scheduler.waiting
        assert len(waiting) == scheduler.n_waiting
        assert {r.state for r in waiting} <= {PENDING}
        live = [r for r in self.requests if not r.finished]
        assert sorted(map(id, live)) == sorted(map(id, [*scheduler.running, *waiting]))
        for request in self.requests:
            assert self.ends[request] == (request.state in (FINISHED, FAILED)) or request.error
            if request.finished or request.state is PENDING:
                assert request.seq_id is None
            else:
                assert request.seq_id is not None
                n = request.num_computed_tokens
                assert self.cache.n_tokens(request.seq_id) == n < len(request.tokens)
            assert tuple(request.tokens[: len(request.prompt_tokens)]) == request.prompt_tokens
            assert request.generated_tokens == alone(request, request.n_generated)

    def check_end(self) -> None:
        """Check that nothing is left."""
        assert (self.scheduler.running, self.scheduler.waiting) == ([], [])
        stats = self.cache.stats
        assert stats.n_free + stats.n_cached == stats.n_blocks
        self.cache.clear()
        assert self.cache.n_free_blocks == self.cache.n_blocks
        assert self.memory.tokens == [[]] * self.cache.n_seqs


def sizes(output: SchedulerOutput) -> dict[Request, int]:
    return {c.request: len(c.tokens) for c in output.chunks}


# One request


def test_no_requests() -> None:
    bench = Bench()
    assert bench.scheduler.schedule() == SchedulerOutput()
    assert not bench.scheduler.has_work
    assert bench.scheduler.update(SchedulerOutput(), {}) == []


def test_prefill_in_chunks_then_decode_then_the_end() -> None:
    bench = Bench(n_batch=4)
    request = bench.add(9, 3)
    assert (request.state, bench.scheduler.n_waiting) == (PENDING, 1)
    seen = []
    while bench.scheduler.has_work:
        output = bench.step()
        (chunk,) = output.chunks
        seen.append((chunk.start, len(chunk.tokens), chunk.samples, request.state.value))
    assert seen == [
        (0, 4, False, "prefilling"),
        (4, 4, False, "prefilling"),
        (8, 1, True, "decoding"),
        (9, 1, True, "decoding"),
        (10, 1, True, "finished"),
    ]
    assert request.generated_tokens == alone(request, 3)
    assert request.stats.finish_reason == "length"
    bench.check_end()


def test_several_new_tokens_are_decoded_in_the_next_step() -> None:
    """As after forced tokens."""
    bench = Bench()
    request = bench.add(3, 9)
    output = bench.scheduler.schedule()
    bench.memory.decode(output.chunks[0])
    bench.scheduler.update(output, {request: TokenResult([7, 8, 9])})
    (chunk,) = bench.scheduler.schedule().chunks
    assert (chunk.tokens, chunk.start, chunk.samples, chunk.n_draft) == ([7, 8, 9], 3, True, 0)


def test_many_forced_tokens_leave_a_token_for_the_others() -> None:
    bench = Bench(n_batch=4)
    first, second = bench.add(2, 9), bench.add(2, 9)
    output = bench.scheduler.schedule()
    for chunk in output.chunks:
        bench.memory.decode(chunk)
    bench.scheduler.update(output, {first: TokenResult([1] * 6), second: TokenResult([2])})
    output = bench.scheduler.schedule()
    assert sizes(output) == {first: 3, second: 1}
    assert [c.samples for c in output.chunks] == [False, True]


def test_a_request_that_fills_its_context_ends() -> None:
    bench = Bench(n_ctx=8)
    request = bench.add(5, 99)
    bench.drain(10)
    assert request.state is FINISHED
    assert (len(request.tokens), request.stats.finish_reason) == (8, "context")
    bench.check_end()


@pytest.mark.parametrize("kind", ["unified", "streams"])
def test_one_request_may_fill_the_cache(kind: str) -> None:
    bench = Bench(kind, n_seqs=1, n_kv_tokens=16)
    request = bench.add(15, 9)
    bench.drain(10)
    assert (len(request.tokens), request.stats.finish_reason) == (16, "context")


@pytest.mark.parametrize("n", [8, 9, 100])
def test_a_prompt_that_fills_the_context_is_refused(n: int) -> None:
    bench = Bench(n_ctx=8)
    with pytest.raises(ContextOverflowError, match=f"the prompt has {n} tokens, but"):
        bench.scheduler.add(Request([1] * n))
    assert not bench.scheduler.has_work


@pytest.mark.parametrize(
    "options",
    [
        {"n_batch": 3},
        {"n_prefill_chunk": -1},
        {"max_running": -1},
        {"ageing_s": 0.0},
        {"n_ctx": -5},
    ],
)
def test_numbers_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"n_batch=\d+"):
        Bench(**options)


def test_numbers_are_clamped_to_the_cache() -> None:
    scheduler = Bench(
        n_seqs=4, n_kv_tokens=64, max_running=9, n_prefill_chunk=99, n_ctx=999
    ).scheduler
    assert (scheduler.max_running, scheduler.n_prefill_chunk, scheduler.n_ctx) == (4, 16, 64)
    assert Bench("streams", n_seqs=4, n_kv_tokens=64).scheduler.n_ctx == 16


# Batches


def test_decode_first_and_prefill_fills_up() -> None:
    bench = Bench(n_batch=8)
    first = bench.add(3, 9)
    bench.step()
    second, third = bench.add(9, 9), bench.add(9, 9)
    assert sizes(bench.step()) == {first: 1, second: 7}
    assert sizes(bench.step()) == {first: 1, second: 2, third: 5}
    assert sizes(bench.step()) == {first: 1, second: 1, third: 4}


def test_prefill_and_decode_alternate_without_mixing() -> None:
    bench = Bench(n_batch=8, mix_prefill=False)
    first = bench.add(3, 9)
    bench.step()
    second, third = bench.add(9, 9), bench.add(9, 9, lora_key="x")
    steps = [sizes(bench.step()) for _ in range(8)]
    assert steps[:4] == [{third: 8}, {second: 5}, {third: 1}, {first: 1}]
    assert steps[4:] == [{third: 1}, {second: 4}, {third: 1}, {first: 1, second: 1}]


def test_prompts_go_on_until_they_had_a_full_step_and_then_answers_go_on() -> None:
    bench = Bench(n_seqs=6, n_batch=16, mix_prefill=False, n_prefill_shared=4)
    prompts = [bench.add(4, 9) for _ in range(5)]
    assert [sizes(bench.step()) for _ in range(4)] == [{prompt: 4} for prompt in prompts[:4]]
    assert sizes(bench.step()) == dict.fromkeys(prompts[:4], 1)
    assert sizes(bench.step()) == {prompts[4]: 4}
    assert sizes(bench.step()) == dict.fromkeys(prompts, 1)


def test_the_prefill_limit_grows_with_the_prefilling_requests() -> None:
    bench = Bench(n_seqs=6, n_batch=16, n_prefill_chunk=2)
    decoding = bench.add(3, 9)
    bench.step()
    others = [bench.add(9, 9) for _ in range(3)]
    assert sizes(bench.step()) == {decoding: 1, others[0]: 6}
    assert sizes(bench.step()) == {decoding: 1, others[0]: 3, others[1]: 3}
    assert sizes(bench.step()) == {decoding: 1, others[0]: 1, others[1]: 4}


@pytest.mark.parametrize(("n_prefill_chunk", "expected"), [(1, 1), (5, 5), (None, 15), (99, 15)])
def test_prefill_chunks_beside_decoding_requests(
    n_prefill_chunk: int | None, expected: int
) -> None:
    bench = Bench(n_prefill_chunk=n_prefill_chunk)
    alone_ = bench.add(40, 9)
    assert sizes(bench.step()) == {alone_: 16}  # no request decodes
    bench.scheduler.remove(alone_, CANCELLED, None)
    decoding = bench.add(3, 9)
    bench.step()
    other = bench.add(40, 9)
    assert sizes(bench.step()) == {decoding: 1, other: expected}


def test_several_prompts_share_what_is_computed_together() -> None:
    bench = Bench(n_seqs=4, n_batch=16, n_prefill_shared=8)
    long, *short = bench.add(40), bench.add(3), bench.add(3), bench.add(3)
    assert sizes(bench.step()) == {long: 8}
    bench.scheduler.remove(long, CANCELLED, None)
    assert sizes(bench.step()) == {short[0]: 3, short[1]: 3, short[2]: 2}
    bench.drain()
    alone_ = bench.add(40)
    assert sizes(bench.step()) == {alone_: 16}


def test_first_come_first_served() -> None:
    bench = Bench(n_seqs=2, max_running=1)
    requests = [bench.add(3, 2) for _ in range(5)]
    ended: list[Request] = []
    while bench.scheduler.has_work:
        assert bench.scheduler.waiting == [r for r in requests if r.state is PENDING]
        bench.step()
        ended += [r for r in requests if r.finished and r not in ended]
    assert ended == requests


def test_priority_goes_first() -> None:
    bench = Bench(n_seqs=2, max_running=1)
    low, high, mid = bench.add(3, priority=-1), bench.add(3, priority=5), bench.add(3)
    assert bench.scheduler.waiting == [high, mid, low]
    bench.drain()


def test_the_next_place_goes_to_the_client_with_the_fewest_running_requests() -> None:
    bench = Bench(n_seqs=4, max_running=3)
    mine = [bench.add(3, 4, client="mine") for _ in range(8)]
    bench.step()
    assert bench.scheduler.running == mine[:3]
    yours = [bench.add(3, 4, client="yours") for _ in range(2)]
    theirs = bench.add(3, 4, client="theirs")
    nobodys = bench.add(3, 4)
    admitted = []
    while bench.scheduler.has_work:
        admitted += bench.step().admitted
    # The three end together. Of clients with equally many, the one served longest ago is first.
    first, second = [yours[0], theirs, nobodys], [mine[3], yours[1], mine[4]]
    assert admitted == [*first, *second, *mine[5:]]


def test_clients_take_turns_at_a_single_place() -> None:
    bench = Bench(n_seqs=1, max_running=1)
    mine = [bench.add(3, 2, client="mine") for _ in range(4)]
    admitted = [*bench.step().admitted]
    yours = [bench.add(3, 2, client="yours") for _ in range(2)]
    theirs = bench.add(3, 2, client="theirs")
    while bench.scheduler.has_work:
        admitted += bench.step().admitted
    assert admitted == [mine[0], yours[0], theirs, mine[1], yours[1], *mine[2:]]
    bench.check_end()


def test_a_freed_place_goes_to_another_client() -> None:
    bench = Bench(n_seqs=2, max_running=2)
    mine = [bench.add(3, 3, client="mine"), *(bench.add(3, 9, client="mine") for _ in range(3))]
    bench.step()
    yours = [bench.add(3, 3, client="yours") for _ in range(2)]
    while mine[0].state is not FINISHED:
        bench.step()
    bench.step()
    assert bench.scheduler.running == [mine[1], yours[0]]
    while yours[0].state is not FINISHED:
        bench.step()
    bench.step()
    assert bench.scheduler.running == [mine[1], yours[1]]  # not the older ones of the busy client
    bench.drain()
    bench.check_end()


def test_priority_counts_before_clients() -> None:
    bench = Bench(n_seqs=2, max_running=2)
    mine = [bench.add(3, 9, client="mine", priority=1) for _ in range(3)]
    yours = bench.add(3, 9, client="yours")
    bench.step()
    assert bench.scheduler.running == mine[:2]
    while yours.state is PENDING:
        bench.step()
    assert mine[2].state is not PENDING
    bench.drain()


def test_a_client_that_waits_ages_past_a_higher_priority() -> None:
    bench = Bench(n_seqs=1, ageing_s=10.0)
    low = bench.add(3, 2, client="low", priority=-1)
    for _ in range(200):
        bench.now += 1.0
        bench.add(3, 2, client="high")
        bench.step()
        if low.finished:
            break
    assert low.finished
    assert bench.scheduler.waiting


@pytest.mark.parametrize("n_clients", [1, 3, 40])
def test_requests_of_all_clients_end(n_clients: int) -> None:
    bench = Bench(n_seqs=3)
    for i in range(80):
        bench.add(3, 2, client=f"client-{i % n_clients}", priority=i % 2)
        bench.step()
    bench.drain()
    bench.check_end()


def test_prefill_is_in_the_order_of_service() -> None:
    bench = Bench()
    low = bench.add(40, 2, priority=-1)
    assert sizes(bench.step()) == {low: 16}
    high = bench.add(20, 2)
    assert sizes(bench.step()) == {high: 16}
    assert sizes(bench.step()) == {high: 4, low: 12}


def test_a_high_priority_preempts_a_running_request() -> None:
    bench = Bench(n_seqs=2, max_running=2)
    low, mid = bench.add(3, 9, priority=0), bench.add(3, 9, priority=1)
    bench.step()
    high = bench.add(3, 2, priority=2)
    output = bench.step()
    assert output.preempted == [low]
    assert (low.state, low.stats.n_preempted) == (PENDING, 1)
    assert bench.scheduler.n_preemptions == 1
    equal = bench.add(3, 2, priority=1)
    assert bench.step().preempted == []
    bench.drain()
    assert mid.stats.n_preempted == high.stats.n_preempted == equal.stats.n_preempted == 0
    bench.check_end()


def test_a_high_priority_preempts_until_it_fits() -> None:
    bench = Bench(n_seqs=4, n_kv_tokens=32)
    low = [bench.add(7, 5) for _ in range(3)]
    bench.step()
    high = bench.add(15, 5, priority=1)
    assert bench.step().preempted == [low[2], low[1]]
    assert high.state is DECODING
    bench.drain()
    assert low[0].stats.n_preempted == 0
    bench.check_end()


def test_requests_admitted_by_ageing_are_not_preempted() -> None:
    bench = Bench(n_seqs=1, ageing_s=10.0)
    low = bench.add(3, 9)
    bench.step()
    bench.now = 10.5
    high = bench.add(3, 9, priority=1)
    assert bench.step().preempted == []
    assert (low.state, high.state) == (DECODING, PENDING)


@pytest.mark.parametrize("n_seqs", [1, 3])
@pytest.mark.parametrize("difference", [1, 3])
def test_nothing_starves(n_seqs: int, difference: int) -> None:
    """A low priority in an overload of high ones."""
    bench = Bench(n_seqs=n_seqs, ageing_s=20.0)
    low = bench.add(3, 4)
    ends_s = None
    for _ in range(300):
        bench.now += 1.0
        bench.add(3, 4, priority=difference)
        bench.step()
        if ends_s is None and low.finished:
            ends_s = bench.now
    assert ends_s is not None
    # Plus the requests that arrived before its turn: four steps each, n_seqs in parallel.
    assert ends_s <= 20.0 * difference * 4 / n_seqs + 20
    assert bench.scheduler.n_waiting > 0 or n_seqs > 1


def test_without_ageing_priority_alone_counts() -> None:
    bench = Bench(n_seqs=1, ageing_s=math.inf)
    low = bench.add(3, 4)
    for _ in range(200):
        bench.now += 100.0
        bench.add(3, 4, priority=1)
        bench.step()
    assert low.state is PENDING


# LoRA keys


def test_lora_keys_are_not_mixed_and_alternate() -> None:
    bench = Bench(n_seqs=6)
    for lora_key in ("b", None, "a", "b", None, "a"):
        bench.add(2, 20, lora_key=lora_key)
    served = [bench.step().lora_key for _ in range(9)]
    assert served == ["b", None, "a"] * 3
    late = bench.add(2, 3, lora_key="late")
    for r in [r for r in bench.requests if r.lora_key == "a"]:
        bench.scheduler.remove(r, CANCELLED, None)
    assert [bench.step().lora_key for _ in range(6)] == ["late", "b", None, "late", "b", None]
    assert late.n_generated == 2


# Prefixes


def test_a_request_waits_for_a_prefix_being_prefilled() -> None:
    bench = Bench(n_batch=8)
    prefix = list(range(100, 120))
    leader = bench.add([*prefix, 1, 1], 9)
    follower = bench.add([*prefix, 2, 2], 9)
    other = bench.add(4, 9)
    assert [sizes(bench.step()) for _ in range(4)] == [
        {leader: 8},
        {leader: 8},
        {leader: 6, other: 2},
        {leader: 1, follower: 2, other: 2},
    ]
    assert follower.stats.n_reused == 20
    bench.drain()
    assert bench.cache.stats.n_hit_tokens == 20
    bench.check_end()


def test_followers_continue_when_the_leader_ends() -> None:
    bench = Bench(n_batch=8)
    prompt = list(range(100, 130))
    leader, follower = bench.add([*prompt, 1], 3), bench.add([*prompt, 2], 3)
    bench.step()
    assert (bench.scheduler.waiting, bench.scheduler.n_waiting) == ([follower], 1)
    bench.scheduler.remove(leader, CANCELLED, None)
    assert sizes(bench.step()) == {follower: 8}
    assert follower.stats.n_reused == 8
    bench.drain()


def test_followers_can_be_cancelled() -> None:
    bench = Bench(n_batch=8)
    prompt = list(range(100, 130))
    leader, follower = bench.add([*prompt, 1], 3), bench.add([*prompt, 2], 3)
    bench.step()
    bench.scheduler.remove(follower, CANCELLED, None)
    assert bench.scheduler.waiting == []
    bench.drain()
    assert (leader.state, follower.state) == (FINISHED, CANCELLED)


def test_no_waiting_for_a_part_of_a_recurrent_sequence() -> None:
    bench = Bench("recurrent", n_batch=8)
    prompt = list(range(100, 130))
    first, second = bench.add([*prompt, 1], 3), bench.add([*prompt, 2], 3)
    bench.step()
    bench.step()
    assert second.state is PREFILLING
    bench.drain()
    assert first.stats.n_reused == second.stats.n_reused == 0


def test_waiting_for_a_whole_recurrent_prompt() -> None:
    bench = Bench("recurrent", n_seqs=2)
    prompt = list(range(100))
    _, second = bench.add(prompt, 3), bench.add([*prompt, 2], 3)
    bench.drain()
    assert second.stats.n_reused == 100


def test_no_waiting_for_a_prefix_too_short_to_copy() -> None:
    bench = Bench("streams", n_batch=8)
    prompt = list(range(100, 130))
    bench.add([*prompt, 1], 3)
    second = bench.add([*prompt, 2], 3)
    bench.step()
    assert second.state is PREFILLING


def test_no_waiting_for_short_prefixes() -> None:
    bench = Bench(n_batch=8)
    prefix = [1, 2, 3, 4, 5, 6, 7]
    first, second = bench.add([*prefix, 11] * 3, 3), bench.add([*prefix, 12] * 3, 3)
    bench.step()
    assert (first.state, second.state) == (PREFILLING, PREFILLING)


def test_followers_are_compared_once() -> None:
    bench = Bench(n_seqs=4, n_kv_tokens=4096, size=32, n_batch=8)
    prompt = list(range(1000))
    bench.add(prompt, 3)
    for _ in range(300):
        bench.add(prompt, 3)
    looked = []
    match = bench.cache._match
    bench.cache._match = lambda *a: looked.append(0) or match(*a)  # type: ignore[method-assign]
    for _ in range(12):
        output = bench.scheduler.schedule()
        results = {c.request: decode(bench.memory, c) for c in output.chunks}
        bench.scheduler.update(output, results)
    assert len(looked) < 310  # once each, not in each step
    looked.clear()
    output = bench.scheduler.schedule()
    assert looked == []


# Preemption


def test_the_latest_of_the_lowest_priority_is_preempted() -> None:
    bench = Bench(n_seqs=3, n_kv_tokens=32)
    first, second, low = bench.add(7, 20), bench.add(7, 20), bench.add(7, 20, priority=-1)
    preempted: list[Request] = []
    while first.state is not FINISHED:
        preempted += bench.step().preempted
    assert preempted[0] is low
    assert first not in preempted
    bench.drain()
    assert [r.state for r in bench.requests] == [FINISHED] * 3
    assert [r.n_generated for r in bench.requests] == [20] * 3
    assert bench.scheduler.n_preemptions == sum(r.stats.n_preempted for r in bench.requests) > 0
    assert second.stats.n_preempted <= low.stats.n_preempted
    bench.check_end()


def test_a_preempted_request_reuses_its_cached_tokens() -> None:
    bench = Bench(n_seqs=2)
    request = bench.add(9, 9)
    bench.step()
    bench.step()
    bench.scheduler.preempt(request)
    assert (request.state, request.num_computed_tokens) == (PENDING, 0)
    output = bench.step()
    assert sizes(output) == {request: 1}
    assert request.stats.n_reused == 0  # counts the first admission only
    bench.drain()


def test_a_step_has_no_tokens_of_a_preempted_request() -> None:
    """The late one is scheduled before the cache is full for an early one, and is dropped."""
    bench = Bench(n_seqs=3, n_kv_tokens=24, n_batch=8)
    late = bench.add(3, 30, priority=-1)
    bench.step()
    early = bench.add(7, 30)
    for _ in range(60):
        output = bench.step()
        assert not {c.request for c in output.chunks} & set(output.preempted)
        if output.preempted:
            assert output.preempted == [late]
            break
    assert late.stats.n_preempted == 1
    bench.drain()
    assert early.stats.n_preempted == 0


# Draft tokens


def draft_tokens(request: Request, n_right: int, n_wrong: int = 0) -> list[int]:
    right = alone(request, request.n_generated + n_right)[request.n_generated :]
    wrong = (answer(request.lora_key, request.tokens + right) + 1) % N_VOCAB
    return right + [wrong] * n_wrong


@pytest.mark.parametrize(("n_right", "n_wrong"), [(0, 1), (0, 3), (2, 0), (2, 1), (3, 2), (6, 6)])
@pytest.mark.parametrize("kind", ["unified", "streams"])
def test_right_draft_tokens_are_accepted(kind: str, n_right: int, n_wrong: int) -> None:
    bench = Bench(kind)
    request = bench.add(5, 20)
    bench.step()
    request.draft = draft_tokens(request, n_right, n_wrong)
    output = bench.step()
    (chunk,) = output.chunks
    assert (chunk.n_draft, len(chunk.tokens)) == (n_right + n_wrong, 1 + n_right + n_wrong)
    assert request.n_generated == 2 + n_right
    assert bench.cache.n_tokens(chunk.seq_id) == 6 + n_right
    assert request.draft == []
    assert (request.stats.n_drafted, request.stats.n_accepted) == (n_right + n_wrong, n_right)
    bench.drain()
    assert request.n_generated == 20


def test_drafts_leave_a_token_for_the_others() -> None:
    bench = Bench(n_batch=4)
    requests = [bench.add(1, 20) for _ in range(3)]
    bench.step()
    for request in requests:
        request.draft = draft_tokens(request, 3)
    assert list(sizes(bench.step()).values()) == [2, 1, 1]


def test_drafts_are_dropped_when_the_cache_is_full() -> None:
    bench = Bench(n_seqs=2, n_kv_tokens=16)
    first, second = bench.add(7, 5), bench.add(3, 5)
    bench.step()
    first.draft, second.draft = draft_tokens(first, 4), draft_tokens(second, 4)
    output = bench.step()
    assert {c.request: c.n_draft for c in output.chunks} == {first: 4, second: 0}
    assert output.preempted == []


def test_drafts_stay_within_n_ctx() -> None:
    bench = Bench(n_ctx=8)
    request = bench.add(5, 99)
    bench.step()
    request.draft = draft_tokens(request, 6)
    (chunk,) = bench.step().chunks
    assert chunk.start + len(chunk.tokens) == 8
    assert request.stats.finish_reason == "context"


def test_preemption_drops_draft_tokens() -> None:
    bench = Bench()
    request = bench.add(5, 9)
    bench.step()
    request.draft = [1, 2]
    bench.scheduler.preempt(request)
    assert request.draft == []


# Failures


def test_an_error_fails_its_request_alone() -> None:
    bench = Bench()
    good, bad = bench.add(5, 3), bench.add(5, 3)
    output = bench.scheduler.schedule()
    results = {c.request: decode(bench.memory, c) for c in output.chunks}
    error = RuntimeError("broken")
    bench.update(output, {**results, bad: TokenResult(error=error)})
    assert (bad.state, bad.error) == (FAILED, error)
    assert bench.memory.tokens[1] == []
    bench.drain()
    assert (good.state, good.error) == (FINISHED, None)
    bench.check_end()


def test_a_lost_sequence_is_computed_again() -> None:
    bench = Bench()
    request = bench.add(5, 4)
    bench.step()
    bench.step()
    output = bench.scheduler.schedule()
    bench.memory.seq_rm(output.chunks[0].seq_id)
    bench.update(output, {request: TokenResult(lost=True)})
    assert (request.state, request.n_generated, request.stats.n_preempted) == (PENDING, 2, 1)
    (chunk,) = bench.step().chunks
    assert (chunk.start, len(chunk.tokens)) == (0, 7)
    bench.drain()
    assert request.generated_tokens == alone(request, 4)
    bench.check_end()


def test_tokens_sampled_before_the_loss_stay() -> None:
    bench = Bench()
    request = bench.add(5, 9)
    bench.step()
    request.draft = draft_tokens(request, 3)
    output = bench.scheduler.schedule()
    (token,) = draft_tokens(request, 1)
    bench.memory.seq_rm(output.chunks[0].seq_id)
    bench.update(output, {request: TokenResult([token], lost=True)})
    assert request.n_generated == 2
    bench.drain()
    assert request.n_generated == 9


def test_chunks_without_a_result_are_scheduled_again() -> None:
    bench = Bench()
    first, second = bench.add(5, 3), bench.add(5, 3)
    output = bench.scheduler.schedule()
    bench.memory.decode(output.chunks[0])
    bench.update(output, {first: TokenResult([answer(None, first.tokens)])})
    assert second.num_computed_tokens == 0
    assert sizes(bench.step()) == {first: 1, second: 5}
    bench.drain()


@pytest.mark.parametrize("state", [FAILED, CANCELLED])
@pytest.mark.parametrize("n_steps", [0, 1, 2])
def test_remove(state: RequestState, n_steps: int) -> None:
    """While it waits, prefills, and decodes."""
    bench = Bench(n_batch=8)
    other, request = bench.add(3, 5), bench.add(9, 5)
    for _ in range(n_steps):
        bench.step()
    assert request.state is [PENDING, PREFILLING, DECODING][n_steps]
    error = RuntimeError("why")
    held = request.seq_id
    bench.scheduler.remove(request, state, error)
    bench.ends[request] += 1
    assert (request.state, request.error, request.seq_id) == (state, error, None)
    if held is not None:  # its tokens may serve others, unless it failed
        assert bool(bench.memory.tokens[held]) == (state is CANCELLED)
    bench.drain()
    assert other.state is FINISHED
    bench.check_end()


def test_remove_after_the_end() -> None:
    bench = Bench()
    request = bench.add(3, 1)
    bench.drain()
    with pytest.raises(ValidationError, match="is finished; it cannot be cancelled"):
        bench.scheduler.remove(request, CANCELLED, RuntimeError())
    assert (request.state, request.error) == (FINISHED, None)


def test_an_update_after_a_removal_changes_nothing() -> None:
    bench = Bench()
    request = bench.add(3, 5)
    output = bench.scheduler.schedule()
    results = {c.request: decode(bench.memory, c) for c in output.chunks}
    bench.scheduler.remove(request, FAILED, None)
    assert bench.scheduler.update(output, results) == []
    assert request.n_generated == 0


def test_deadlines() -> None:
    bench = Bench(n_seqs=1)
    running, late = bench.add(3, 99, timeout_s=5.0), bench.add(3, 9, timeout_s=2.0)
    free = bench.add(3, 9)
    bench.step()
    assert bench.scheduler.expired() == []
    bench.now = 2.0
    assert bench.scheduler.expired() == [late]
    assert bench.scheduler.expired() == [late]
    bench.scheduler.remove(late, CANCELLED, None)
    assert bench.scheduler.expired() == []
    bench.now = 5.5
    assert bench.scheduler.expired() == [running]
    bench.scheduler.remove(running, CANCELLED, None)
    bench.add(3, 9, timeout_s=1.0)
    bench.now = 99.0
    assert bench.scheduler.expired() == [bench.requests[3]]
    bench.scheduler.remove(bench.requests[3], CANCELLED, None)
    bench.drain()
    assert free.state is FINISHED


def test_deadlines_are_not_searched_before_the_next_one() -> None:
    bench = Bench(n_seqs=1)
    bench.add(3, 99, timeout_s=5.0)
    looked = []
    entries = bench.scheduler._entries
    bench.scheduler._entries = lambda: looked.append(0) or entries()  # type: ignore[method-assign]
    for _ in range(10):
        bench.scheduler.expired()
    assert looked == []


# Any order of events


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come, get drafts, are lost, fail and are cancelled; each ends once."""

    @initialize(
        kind=st.sampled_from(KINDS),
        n_seqs=st.integers(1, 4),
        n_blocks=st.integers(3, 8),
        n_prefill_chunk=st.sampled_from([None, 1, 3]),
        n_batch=st.integers(4, 12),
        n_prefill_shared=st.sampled_from([None, 1, 5]),
        mix_prefill=st.booleans(),
    )
    def begin(
        self,
        kind: str,
        n_seqs: int,
        n_blocks: int,
        n_prefill_chunk: int | None,
        n_batch: int,
        n_prefill_shared: int | None,
        mix_prefill: bool,
    ) -> None:
        self.bench = Bench(
            kind,
            n_seqs,
            n_seqs * n_blocks * 4,
            n_prefill_chunk=n_prefill_chunk,
            n_batch=n_batch,
            n_prefill_shared=n_prefill_shared,
            mix_prefill=mix_prefill,
            ageing_s=5.0,
        )

    @rule(
        prefix=st.integers(0, 3),
        own=st.lists(st.integers(0, 1), min_size=1, max_size=5),
        n=st.integers(1, 12),
        priority=st.integers(-1, 1),
        lora_key=st.sampled_from([None, None, "g"]),
        timeout_s=st.sampled_from([None, None, 4.0]),
        client=st.sampled_from([None, "a", "b"]),
    )
    def add(
        self,
        prefix: int,
        own: list[int],
        n: int,
        priority: int,
        lora_key: Hashable,
        timeout_s: float | None,
        client: str | None,
    ) -> None:
        prompt = [[], [2] * 4, [2] * 9, [2, 3] * 7][prefix] + own
        if len(prompt) < self.bench.scheduler.n_ctx:
            options: dict[str, Any] = {"lora_key": lora_key, "timeout_s": timeout_s}
            self.bench.add(prompt, n, priority=priority, client=client, **options)

    @rule(n=st.integers(1, 5), seconds=st.floats(0, 2))
    def steps(self, n: int, seconds: float) -> None:
        for _ in range(n):
            self.bench.now += seconds
            self.bench.step()
        for request in self.bench.scheduler.expired():
            assert request.deadline_s is not None
            assert request.deadline_s <= self.bench.now
            self.end(request, CANCELLED)

    @rule(data=st.data())
    def draft(self, data: st.DataObject) -> None:
        if self.bench.memory.kind in ("unified", "streams"):
            for request in self.bench.scheduler.running:
                if request.state is DECODING and len(request.tokens) == (
                    request.num_computed_tokens + 1
                ):
                    n_right, n_wrong = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 2)))
                    left = request.max_tokens - request.n_generated - 1
                    request.draft = draft_tokens(request, n_right, n_wrong)[:left]

    @rule(data=st.data())
    def trouble(self, data: st.DataObject) -> None:
        """Some chunks are not decoded, some sequences are lost, some requests fail."""
        bench = self.bench
        output = bench.scheduler.schedule()
        bench.check(output)
        results = {}
        for chunk in output.chunks:
            what = data.draw(st.sampled_from(["decoded", "skipped", "lost", "error"]))
            if what == "decoded":
                results[chunk.request] = decode(bench.memory, chunk)
            elif what == "lost":
                bench.memory.seq_rm(chunk.seq_id)
                results[chunk.request] = TokenResult(lost=True)
            elif what == "error":
                results[chunk.request] = TokenResult(error=RuntimeError())
        bench.update(output, results)

    @precondition(lambda self: self.bench.scheduler.has_work)
    @rule(data=st.data(), state=st.sampled_from([FAILED, CANCELLED]))
    def remove(self, data: st.DataObject, state: RequestState) -> None:
        scheduler = self.bench.scheduler
        every = sorted([*scheduler.running, *scheduler.waiting], key=lambda r: r.number)
        self.end(every[data.draw(st.integers(0, len(every) - 1))], state)

    def end(self, request: Request, state: RequestState) -> None:
        self.bench.scheduler.remove(request, state, None)
        if state is FAILED:
            self.bench.ends[request] += 1
        self.bench.check_state()

    @rule()
    def clear(self) -> None:
        self.bench.cache.clear()

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        bench = self.bench
        n = sum(len(r.prompt_tokens) + r.max_tokens for r in bench.requests if not r.finished)
        bench.drain(10 * n + 10)
        bench.check_end()
        for request in bench.requests:
            assert request.finished
            if request.state is FINISHED:
                full = request.stats.finish_reason == "context"
                assert request.n_generated == request.max_tokens or full
                assert len(request.tokens) >= bench.scheduler.n_ctx or not full


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def record(seed: int, kind: str) -> list[object]:
    """Return a log of a random run."""
    rng = random.Random(seed)
    n_prefill_chunk, mix_prefill = rng.choice([2, None]), rng.choice([True, False])
    bench = Bench(
        kind,
        4,
        160,
        n_batch=12,
        n_prefill_chunk=n_prefill_chunk,
        mix_prefill=mix_prefill,
        ageing_s=7.0,
    )
    log: list[object] = []
    for _ in range(150):
        bench.now += rng.random()
        if rng.random() < 0.4:
            prompt = [1, 2] * rng.randrange(6) + [rng.randrange(3)]
            lora_key = rng.choice([None, None, "x", frozenset({("a", 1.0), ("b", 2.0)})])
            bench.add(prompt, rng.randrange(1, 15), priority=rng.randrange(3), lora_key=lora_key)
        if bench.scheduler.running and rng.random() < 0.05:
            request = rng.choice(bench.scheduler.running)
            bench.scheduler.remove(request, CANCELLED, None)
        output = bench.step()
        first = bench.requests[0].number if bench.requests else 0
        chunks = [(c.request.number - first, *c[1:]) for c in output.chunks]
        log.append((str(output.lora_key)[:1], chunks, [r.number - first for r in output.preempted]))
    bench.drain()
    log += [(r.state, r.tokens) for r in bench.requests]
    bench.check_end()
    return log


@pytest.mark.parametrize("kind", KINDS)
def test_runs_are_deterministic(kind: str) -> None:
    for seed in range(2):
        assert record(seed, kind) == record(seed, kind)

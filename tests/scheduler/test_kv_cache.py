"""KVCache: blocks, prefixes, and that the accounting agrees with the memory."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.fake_memory import KINDS, N_VOCAB, FakeMemory, answer, check_cache

from llama_cffi import KVCache, Request, ValidationError
from llama_cffi.generation.prompt import Prompt, common_prefix_length
from llama_cffi.scheduler import Allocation, ScheduledTokens
from llama_cffi.scheduler.kv_cache import CacheStats


def hold(cache: KVCache, tokens: list[int], lora_key: str | int | None = None) -> int:
    """Allocate a sequence for *tokens* and decode them; return its number."""
    allocation = cache.acquire(tokens, lora_key)
    assert allocation is not None
    seq_id, n = allocation
    if isinstance(cache._memory, FakeMemory):
        cache._memory.decode(
            ScheduledTokens(Request(tokens, lora_key=lora_key), seq_id, n, tokens[n:], 0, False)
        )
    cache.append(seq_id, tokens[n:])
    return seq_id


def fill(
    cache: KVCache, tokens: list[int], lora_key: str | int | None = None, keep: bool = True
) -> int:
    """Hold and release a sequence with *tokens*; return its number."""
    seq_id = hold(cache, tokens, lora_key)
    cache.release(seq_id, keep)
    return seq_id


def make(
    kind: str, n_seqs: int = 4, n_kv_tokens: int = 64, size: int = 4
) -> tuple[KVCache, FakeMemory]:
    memory = FakeMemory(kind, n_seqs, n_kv_tokens)
    cache = KVCache(
        n_seqs, n_kv_tokens, size, unified=kind in ("unified", "windowed"), memory=memory
    )
    return cache, memory


# Blocks


@pytest.mark.parametrize(("unified", "n_blocks", "most"), [(True, 12, 48), (False, 10, 20)])
def test_sizes(unified: bool, n_blocks: int, most: int) -> None:
    cache = KVCache(2, 51 if unified else 47, 4, unified=unified)
    assert (cache.n_blocks, cache.n_free_blocks, cache.max_tokens) == (n_blocks, n_blocks, most)
    assert cache.stats == CacheStats(n_blocks, n_blocks, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("n_seqs", "n_kv_tokens", "size", "unified"),
    [(0, 64, 4, True), (4, 12, 4, True), (4, 15, 4, False), (2, 64, 0, True), (1, 0, 4, True)],
)
def test_too_small(n_seqs: int, n_kv_tokens: int, size: int, unified: bool) -> None:
    with pytest.raises(
        ValidationError, match=f"={n_kv_tokens} is less than a block of {size} tokens"
    ):
        KVCache(n_seqs, n_kv_tokens, size, unified=unified)


def test_acquire_reserves_one_more_token() -> None:
    cache = KVCache(2, 32, 4)
    assert cache.acquire([1] * 8) == Allocation(0, 0)
    assert (len(cache.blocks_of(0)), cache.n_free_blocks) == (3, 5)
    cache.append(0, [1] * 8)
    assert cache.reserve(0, 9)
    assert len(cache.blocks_of(0)) == 3


def test_reserve() -> None:
    cache = KVCache(2, 32, 4)
    cache.acquire([1] * 3)
    cache.acquire([2] * 15)
    assert cache.n_free_blocks == 3
    assert cache.reserve(0, 16)
    assert cache.n_free_blocks == 0
    assert cache.reserve(0, 16)
    assert not cache.reserve(0, 17)
    assert len(cache.blocks_of(0)) == 4
    cache.release(1)
    assert cache.reserve(0, 32)
    assert not cache.reserve(0, 33)


def test_reserve_in_streams_is_bounded_by_the_stream() -> None:
    cache = KVCache(2, 32, 4, unified=False)
    cache.acquire([1])
    assert cache.reserve(0, 16)
    assert not cache.reserve(0, 17)
    assert cache.n_free_blocks == 4
    assert cache.acquire([2] * 16) is None
    assert cache.acquire([2] * 15) == Allocation(1, 0)


def test_a_failed_acquire_changes_nothing() -> None:
    cache = KVCache(2, 32, 4)
    cache.acquire([1] * 15)
    before = cache.stats
    assert cache.acquire([2] * 16) is None  # five blocks
    assert cache.acquire([2] * 11, n_spare=2) is None
    assert cache.acquire([2] * 32) is None  # more than there are
    assert cache.stats == before
    assert cache.acquire([2] * 11, n_spare=1) == Allocation(1, 0)
    assert cache.acquire([3]) is None
    assert cache.n_free_blocks == 1


def test_spare_may_be_idle() -> None:
    cache = KVCache(3, 32, 4)
    fill(cache, [1] * 12)
    assert cache.n_free_blocks == 5
    assert cache.acquire([2] * 19, n_spare=3) == Allocation(1, 0)
    assert cache.n_free_blocks == 0
    assert cache.stats.n_evictions == 0
    assert not cache.acquire([3] * 12)
    assert cache.acquire([3] * 11) == Allocation(2, 0)
    assert cache.stats.n_evictions == 1


def test_release_without_keep() -> None:
    cache, memory = make("unified")
    fill(cache, [1] * 9, keep=False)
    assert cache.n_free_blocks == cache.n_blocks
    assert memory.tokens == [[]] * 4
    assert cache.n_matched([1] * 9) == 0


def test_release_frees_reserved_blocks() -> None:
    cache = KVCache(2, 64, 4)
    hold(cache, [1] * 5)
    cache.reserve(0, 40)
    cache.release(0)
    assert len(cache.blocks_of(0)) == 2
    assert cache.stats.n_cached == 2


def test_truncate_frees_blocks_and_prefixes() -> None:
    cache = KVCache(2, 64, 4)
    hold(cache, [1] * 12)
    cache.truncate(0, 6)
    assert (cache.n_tokens(0), len(cache.blocks_of(0))) == (6, 2)
    assert cache.n_matched([1] * 20) == 6


def test_forget() -> None:
    cache, memory = make("unified")
    fill(cache, [1] * 9)
    cache.forget(0)
    assert cache.n_tokens(0) == 0
    assert cache.n_free_blocks == cache.n_blocks
    assert memory.tokens[0] == []


@pytest.mark.parametrize("how", ["forget", "release"])
def test_the_remains_of_a_failed_step_are_removed(how: str) -> None:
    """C decoded more than was recorded; the next request must not continue after it."""
    cache, memory = make("unified")
    cache.acquire([1] * 5)
    memory.decode(ScheduledTokens(Request([1] * 5), 0, 0, [1] * 3, 0, False))
    if how == "forget":
        cache.forget(0)
    cache.release(0, keep=False)
    assert memory.tokens[0] == []


# Prefixes


@pytest.mark.parametrize("kind", ["unified", "streams"])
@pytest.mark.parametrize("n", [70, 97, 128, 130])
def test_a_prefix_is_found_to_the_token(kind: str, n: int) -> None:
    cache, _ = make(kind, 2, 1024, 32)
    first = [(7 * i) % 11 for i in range(130)]
    hold(cache, first)
    prompt = [*first[:n], 99, 98]
    assert cache.n_matched(prompt) == n
    assert cache.acquire(prompt) == Allocation(1, n)
    assert cache.n_tokens(1) == n
    shared = n // 32 if kind == "unified" else 0
    assert cache.blocks_of(1)[:shared] == cache.blocks_of(0)[:shared]
    assert not set(cache.blocks_of(1)[shared:]) & set(cache.blocks_of(0))
    assert cache.stats.n_shared == shared


def test_all_but_the_last_token() -> None:
    cache = KVCache(2, 64, 4)
    fill(cache, [1, 2, 3, 4, 5, 6, 7, 8])
    assert cache.n_matched([1, 2, 3, 4, 5, 6, 7, 8]) == 7
    assert cache.n_matched([1]) == 0
    assert cache.n_matched([1, 2, 3, 4, 5, 6, 7, 8, 9]) == 8


def test_lora_keys_share_nothing() -> None:
    cache = KVCache(3, 64, 4)
    fill(cache, [1] * 9, lora_key="a")
    assert cache.n_matched([1] * 9) == 0
    assert cache.n_matched([1] * 9, "b") == 0
    assert cache.n_matched([1] * 9, "a") == 8


def test_lora_keys_of_equal_hash_share_nothing() -> None:
    assert hash(-1) == hash(-2)
    cache = KVCache(3, 64, 4)
    fill(cache, [1] * 9, lora_key=-1)
    assert cache.n_matched([1] * 9, -2) == 0


def test_the_longest_prefix_and_among_equals_an_idle_one() -> None:
    cache = KVCache(4, 256, 4)
    for prompt in ([1] * 10 + [2], [1] * 14 + [3]):
        fill(cache, prompt)
    assert cache.n_matched([1] * 20) == 14
    busy = cache.acquire([1] * 14 + [3, 4])
    assert busy == Allocation(1, 15)
    assert cache.acquire([1] * 10 + [2, 5]) == Allocation(0, 11)


def test_a_continued_conversation_stays_in_its_sequence() -> None:
    cache, memory = make("unified")
    fill(cache, [1, 2, 3])
    fill(cache, [4, 5, 6])
    calls = memory.n_calls
    assert cache.acquire([1, 2, 3, 7]) == Allocation(0, 3)
    assert memory.n_calls == calls


def test_shared_cells_are_copied_if_the_rest_may_be_reused() -> None:
    cache, _ = make("unified")
    fill(cache, [1] * 8 + [2] * 8)
    assert cache.acquire([1] * 8 + [3] * 8) == Allocation(1, 8)
    assert cache.n_matched([1] * 8 + [2] * 8) == 15


def test_own_cells_reuse_a_long_prefix_in_place() -> None:
    cache, _ = make("streams", 3, 1024, 32)
    prompt = list(range(100))
    fill(cache, prompt)
    assert cache.acquire([*prompt[:80], 7]) == Allocation(0, 80)
    assert cache.n_tokens(0) == 80


def test_own_cells_keep_a_sequence_for_more_than_a_short_prefix() -> None:
    cache, _ = make("streams", 3, 1024, 32)
    prompt = list(range(100))
    fill(cache, prompt)
    assert cache.acquire([0, 200, 201]) == Allocation(1, 0)
    assert cache.n_matched(prompt) == 99


def test_own_cells_do_not_copy_a_short_prefix() -> None:
    cache, memory = make("streams", 3, 1024, 32)
    prompt = list(range(100))
    hold(cache, prompt)
    assert cache.acquire(prompt[:40]) == Allocation(1, 0)
    assert memory.n_calls == 0


def test_a_single_sequence_is_always_reused() -> None:
    cache, _ = make("unified", 1)
    fill(cache, [1] * 10)
    assert cache.acquire([1, 1, 1, 1, 1, 2]) == Allocation(0, 5)


@pytest.mark.parametrize("n", [4, 5, 11])
def test_recurrent_memory_continues_at_the_end_only(n: int) -> None:
    cache, _ = make("recurrent")
    fill(cache, [1] * 11)
    found = 11 if n == 11 else 0
    assert cache.n_matched([1] * n + [2]) == found
    allocation = cache.acquire([1] * n + [2])
    assert allocation == (Allocation(0, 11) if found else Allocation(1, 0))


def test_can_branch() -> None:
    for kind in KINDS:
        cache, _ = make(kind)
        assert cache.can_branch(0)
        hold(cache, [1, 2, 3])
        assert cache.can_branch(0) == (kind != "recurrent")


def test_a_truncated_shared_block_is_replaced() -> None:
    """A sequence continues in the middle of a block that it shares."""
    cache, _ = make("unified", 2, 64, 4)
    fill(cache, [1] * 8)
    assert fill(cache, [1] * 8 + [2]) == 0
    assert hold(cache, [1] * 8 + [3]) == 1  # shares two blocks
    assert cache.stats.n_shared == 2
    assert cache.acquire([1] * 6 + [5] * 6) == Allocation(0, 6)  # the only idle one
    assert cache.stats.n_shared == 1
    assert len(set(cache.blocks_of(0)) | set(cache.blocks_of(1))) == 4 + 3 - 1


# Eviction


def test_the_least_recently_used_sequence_is_evicted() -> None:
    cache = KVCache(3, 256, 4)
    for token in (1, 2, 3):
        fill(cache, [token] * 9)
    assert cache.acquire([1] * 10) == Allocation(0, 9)
    cache.release(0)
    assert fill(cache, [4] * 9) == 1
    assert fill(cache, [5] * 9) == 2
    assert cache.n_matched([1] * 9) == 8
    assert cache.n_matched([2] * 9) == 0
    assert cache.stats.n_evictions == 2


def test_blocks_of_the_least_recently_used_sequence_are_taken() -> None:
    cache = KVCache(4, 32, 4)
    fill(cache, [1] * 12)
    fill(cache, [2] * 12)
    cache.acquire([3] * 10)
    assert cache.n_matched([1] * 9) == 0
    assert cache.n_matched([2] * 9) == 8


def test_the_reused_sequence_is_evicted_last() -> None:
    cache = KVCache(4, 48, 4)
    fill(cache, [1] * 12)
    fill(cache, [2] * 12)
    assert cache.acquire([1] * 8 + [3] * 24) == Allocation(2, 8)  # 9 blocks, 2 of them shared
    assert cache.n_matched([2] * 9) == 0
    assert cache.stats.n_evictions == 1


def test_low_numbers_first() -> None:
    cache = KVCache(4, 256, 4)
    assert [cache.acquire([i] * 3) for i in range(4)] == [Allocation(i, 0) for i in range(4)]
    cache.release(2, keep=False)
    cache.release(1, keep=False)
    assert cache.acquire([9]) == Allocation(1, 0)


def test_hits_are_counted() -> None:
    cache = KVCache(2, 64, 4)
    fill(cache, [1] * 9)
    fill(cache, [1] * 12)
    stats = cache.stats
    assert (stats.n_lookup_tokens, stats.n_hit_tokens) == (21, 9)


# Clearing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [10, 1000])
def test_clear_is_one_call_for_any_content(kind: str, n: int) -> None:
    cache, memory = make(kind, 4, 4 * 2048, 32)
    for token in range(3):
        fill(cache, [token] * n)
    calls = memory.n_calls
    cache.clear()
    assert memory.n_calls == calls + 1
    assert cache.n_free_blocks == cache.n_blocks
    assert all(cache.n_tokens(s) == 0 for s in range(4))
    assert cache.n_matched([1] * 10) == 0
    assert cache.stats.n_lookup_tokens == 3 * n  # counts stay


@pytest.mark.parametrize("n", [10, 1000])
def test_clear_keeps_sequences_in_use(n: int) -> None:
    cache, memory = make("streams", 4, 4 * 2048, 32)
    for token in range(3):
        fill(cache, [token] * n)
    busy = cache.acquire([7] * n)
    assert busy == Allocation(3, 0)
    calls = memory.n_calls
    cache.clear()
    assert memory.n_calls == calls + 3  # a call for each idle one
    assert cache.n_free_blocks == cache.n_blocks - len(cache.blocks_of(3))
    assert cache.reserve(3, n + 1)


class Counting(Prompt):
    """Tokens that count accesses."""

    looks = 0

    def __iter__(self) -> object:  # type: ignore[override]
        for token in super().__iter__():
            Counting.looks += 1
            yield token

    def __getitem__(self, key: object) -> object:  # type: ignore[override]
        Counting.looks += 1
        return super().__getitem__(key)  # type: ignore[index]


@pytest.mark.parametrize("n", [100, 1600])
def test_release_reads_no_token(n: int) -> None:
    cache = KVCache(2, 4096, 32)
    for token in (1, 2):
        hold(cache, [token] * n)
        cache._sequences[token - 1].tokens = Counting([token] * n)
    Counting.looks = 0
    cache.release(0)
    cache.clear()  # all but one
    cache.release(1, keep=False)
    cache.clear()
    assert Counting.looks == 0


def test_without_a_memory_it_only_counts() -> None:
    cache = KVCache(2, 64, 4)
    fill(cache, [1] * 9)
    assert cache.acquire([1] * 6 + [2]) == Allocation(1, 6)
    cache.forget(1)
    cache.release(1)
    cache.clear()
    assert cache.n_free_blocks == cache.n_blocks


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 128, 200])
def test_common_prefix_length(n: int) -> None:
    a = list(range(200))
    b = [*range(n), -1, *range(n + 1, 300)]
    assert common_prefix_length(a, b) == common_prefix_length(b, tuple(a)) == n
    assert common_prefix_length(a, a[:n]) == n
    assert common_prefix_length(a[:n], a) == n


# Any order of calls


class CacheMachine(RuleBasedStateMachine):
    """Sequences come, grow, shrink and go; the accounting agrees with the memory."""

    @initialize(kind=st.sampled_from(KINDS), n_seqs=st.integers(1, 4), n_blocks=st.integers(1, 6))
    def begin(self, kind: str, n_seqs: int, n_blocks: int) -> None:
        self.kind = kind
        self.cache, self.memory = make(kind, n_seqs, n_seqs * n_blocks * 4)
        self.prompts: dict[int, Request] = {}
        self.old: list[list[int]] = []

    @rule(
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=22),
        lora_key=st.sampled_from([None, "g"]),
        n_spare=st.integers(0, 1),
        old=st.integers(0, 30),
    )
    def acquire(self, tokens: list[int], lora_key: str | None, n_spare: int, old: int) -> None:
        tokens = (self.old[old] if old < len(self.old) else []) + tokens
        before = self.cache.stats
        matched = self.cache.n_matched(tokens, lora_key)
        allocation = self.cache.acquire(tokens, lora_key, n_spare)
        if allocation is None:
            assert self.cache.stats == before
            if not self.prompts and not n_spare:
                assert len(tokens) + 1 > self.cache.max_tokens, "all sequences were idle"
            return
        assert allocation.seq_id not in self.prompts
        assert allocation.n_cached in (0, matched)
        assert allocation.n_cached < len(tokens)
        assert self.memory.tokens[allocation.seq_id] == tokens[: allocation.n_cached]
        assert len(self.cache.blocks_of(allocation.seq_id)) * 4 > len(tokens)
        request = Request(tokens, lora_key=lora_key)
        request.seq_id, request.num_computed_tokens = allocation
        self.prompts[allocation.seq_id] = request

    def choose(self, data: st.DataObject) -> Request:
        return self.prompts[data.draw(st.sampled_from(sorted(self.prompts)))]

    @precondition(lambda self: self.prompts)
    @rule(data=st.data(), n=st.integers(1, 9))
    def decode(self, data: st.DataObject, n: int) -> None:
        request = self.choose(data)
        seq_id, start = request.seq_id, request.num_computed_tokens
        assert seq_id is not None
        while len(request.tokens) < start + n:
            request.tokens.append(answer(None, request.tokens) % 2)
        tokens = request.tokens[start : start + n]
        busy = {block for s in self.prompts for block in self.cache.blocks_of(s)}
        if self.cache.reserve(seq_id, start + n):
            self.memory.decode(ScheduledTokens(request, seq_id, start, tokens, 0, False))
            self.cache.append(seq_id, tokens)
            request.num_computed_tokens += n
        elif self.cache.unified:
            needed = -(-(start + n) // 4) - len(self.cache.blocks_of(seq_id))
            assert needed > self.cache.n_blocks - len(busy)

    @precondition(lambda self: self.prompts)
    @rule(data=st.data(), n=st.integers(1, 3))
    def reject(self, data: st.DataObject, n: int) -> None:
        """Remove rejected draft tokens, which were just decoded."""
        request = self.choose(data)
        end = request.num_computed_tokens - n
        assert request.seq_id is not None
        shared = [
            b
            for s in range(self.cache.n_seqs)
            if s != request.seq_id
            for b in self.cache.blocks_of(s)
        ]
        own = [b not in shared for b in self.cache.blocks_of(request.seq_id)]
        if end > 0 and own[end // 4] and self.memory.can_truncate(request.seq_id, end):
            self.cache.truncate(request.seq_id, end)
            request.num_computed_tokens = end
            del request.tokens[end:]
            request.tokens.append(answer(None, request.tokens) % N_VOCAB)

    @precondition(lambda self: self.prompts)
    @rule(data=st.data(), keep=st.booleans())
    def release(self, data: st.DataObject, keep: bool) -> None:
        request = self.choose(data)
        assert request.seq_id is not None
        del self.prompts[request.seq_id]
        self.old = [*self.old, request.tokens[: request.num_computed_tokens]][-10:]
        self.cache.release(request.seq_id, keep)
        if not keep:
            assert self.cache.blocks_of(request.seq_id) == []

    @precondition(lambda self: self.prompts)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        request = self.choose(data)
        assert request.seq_id is not None
        del self.prompts[request.seq_id]
        self.cache.forget(request.seq_id)
        self.cache.release(request.seq_id)

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        assert self.cache.stats.n_cached == 0
        for s in range(self.cache.n_seqs):
            assert s in self.prompts or not self.cache.blocks_of(s)

    @invariant()
    def account(self) -> None:
        if hasattr(self, "cache"):
            self.memory.check_cells()
            check_cache(self.cache, self.memory, set(self.prompts))


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)

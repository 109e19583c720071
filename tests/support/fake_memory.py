"""A fake of llama.cpp's memory that records how each cell was computed, and a fake model."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence

from llama_cffi.scheduler import KVCache, Request, ScheduledTokens, TokenResult

N_VOCAB = 5
# Size of the sliding window in positions.
WINDOW = 6
KINDS = ("unified", "streams", "recurrent", "windowed")


class FakeMemory:
    """Cells by sequence and position.

    A cell records the tokens that it was computed from, so the next decode detects wrong reuse.

    Args:
        kind: `unified`: sequences share all cells. `streams`: each has its own cells and only whole
            sequences are copied. `recurrent`: a sequence can only continue at its end. `windowed`:
            positions outside of the window are dropped immediately.
        n_seqs: Number of sequences.
        n_cells: Number of cells of all sequences together.
    """

    def __init__(self, kind: str, n_seqs: int, n_cells: int) -> None:
        self.kind, self.n_seqs, self.n_cells = kind, n_seqs, n_cells
        # Per sequence: position -> (number of the cell, hash of what it was computed from).
        self.cells: list[dict[int, tuple[int, int]]] = [{} for _ in range(n_seqs)]
        self.tokens: list[list[int]] = [[] for _ in range(n_seqs)]
        self.n_calls = 0
        self._numbers = itertools.count()

    def seq_rm(self, seq_id: int, p0: int = -1, p1: int = -1) -> bool:
        self.n_calls += 1
        assert p1 == -1
        for s in range(self.n_seqs) if seq_id < 0 else (seq_id,):
            if p0 > 0:
                assert self.can_truncate(s, p0), "removed a part that cannot be removed"
                self.tokens[s] = self.tokens[s][:p0]
                self.cells[s] = {p: c for p, c in self.cells[s].items() if p < p0}
            else:
                self.tokens[s], self.cells[s] = [], {}
        return True

    def seq_cp(self, source: int, target: int, p0: int = -1, p1: int = -1) -> None:
        self.n_calls += 1
        assert source != target
        assert not self.cells[target], "a copy over another sequence"
        n = len(self.tokens[source])
        whole = p0 <= 0 and not 0 <= p1 < n
        assert whole or self.kind in ("unified", "windowed"), "a copy of a part"
        end = n if whole else p1
        self.tokens[target] = self.tokens[source][:end]
        copied = {p: cell for p, cell in self.cells[source].items() if p < end}
        if self.kind == "streams":
            copied = {p: (next(self._numbers), how) for p, (_, how) in copied.items()}
        self.cells[target] = copied

    def can_truncate(self, seq_id: int, p0: int) -> bool:
        if p0 == 0 or p0 >= len(self.tokens[seq_id]):
            return True
        if self.kind == "recurrent":
            return False
        reach = WINDOW if self.kind == "windowed" else 2**31
        return all(p in self.cells[seq_id] for p in range(max(0, p0 - reach + 1), p0))

    def decode(self, chunk: ScheduledTokens) -> None:
        """Decode a chunk as C does, and check that it is valid."""
        request, seq_id = chunk.request, chunk.seq_id
        tokens = self.tokens[seq_id]
        assert chunk.start == len(tokens), "a gap"
        assert request.tokens[: chunk.start] == tokens, "tokens of another request"
        chain = [hash(request.lora_key)]  # of the tokens up to each position
        for token in tokens:
            chain.append(hash((chain[-1], token)))
        reach = {"windowed": WINDOW - 1, "recurrent": 1}.get(self.kind, chunk.start)
        for p in range(max(0, chunk.start - reach), chunk.start):
            assert self.cells[seq_id][p][1] == chain[p + 1], "computed from other tokens"
        for token in chunk.tokens:
            chain.append(hash((chain[-1], token)))
            cell = next(self._numbers), chain[-1]
            if self.kind == "recurrent":
                self.cells[seq_id] = {}
            self.cells[seq_id].pop(len(tokens) - WINDOW if self.kind == "windowed" else -1, None)
            self.cells[seq_id][len(tokens)] = cell
            tokens.append(token)
        self.check_cells()

    def check_cells(self) -> None:
        """Check that no more cells are used than exist."""
        if self.kind == "streams":
            assert max(map(len, self.cells)) <= self.n_cells // self.n_seqs
        held = {number for cells in self.cells for number, _ in cells.values()}
        assert len(held) <= self.n_cells


def check_cache(cache: KVCache, memory: FakeMemory, busy: set[int]) -> None:
    """Check the invariants of the cache's accounting."""
    held = [cache.blocks_of(s) for s in range(cache.n_seqs)]
    in_use = {block for blocks in held for block in blocks}
    assert len(in_use) + cache.n_free_blocks == cache.n_blocks
    assert cache.stats.n_free == cache.n_free_blocks
    assert in_use <= set(range(cache.n_blocks))
    owners = [s for s, blocks in enumerate(held) for _ in blocks]
    every = [block for blocks in held for block in blocks]
    assert cache.stats.n_shared == sum(every.count(block) > 1 for block in in_use)
    of_busy = {block for s in busy for block in held[s]}
    assert cache.stats.n_cached == len(in_use - of_busy)
    size = cache.block_size
    where: dict[int, tuple[int, list[int]]] = {}
    for s, blocks in enumerate(held):
        assert len(set(blocks)) == len(blocks)
        assert cache.n_tokens(s) == len(memory.tokens[s])
        assert cache._sequences[s].tokens == memory.tokens[s]
        if s not in busy:
            assert len(blocks) == -(-len(memory.tokens[s]) // size)
        for i, block in enumerate(blocks):
            content = memory.tokens[s][: (i + 1) * size]
            if every.count(block) > 1:
                assert cache.unified
                assert len(content) == (i + 1) * size, "a shared block is not full"
                assert where.setdefault(block, (i, content)) == (i, content)
    if not cache.unified:
        assert all(owners.count(s) * size <= cache.max_tokens for s in owners)
    cells = {number for cells in memory.cells for number, _ in cells.values()}
    assert len(cells) <= len(in_use) * size, "more cells in use than accounted for"


def answer(lora_key: Hashable, tokens: Sequence[int]) -> int:
    """Return the next token, a function of *tokens*."""
    return (31 * sum(tokens[-9:]) + 7 * len(tokens) + len(str(lora_key))) % N_VOCAB


def alone(request: Request, n: int) -> list[int]:
    """Return the first *n* tokens of a request without others."""
    tokens = list(request.prompt_tokens)
    for _ in range(n):
        tokens.append(answer(request.lora_key, tokens))
    return tokens[len(request.prompt_tokens) :]


def decode(memory: FakeMemory, chunk: ScheduledTokens) -> TokenResult:
    """Decode a chunk and sample as the engine does, accepting correct draft tokens."""
    memory.decode(chunk)
    if not chunk.samples:
        return TokenResult()
    request = chunk.request
    first = len(chunk.tokens) - chunk.n_draft
    known = request.tokens[: chunk.start] + chunk.tokens[:first]
    new: list[int] = []
    n_accepted = 0
    for draft in [*chunk.tokens[first:], None]:
        new.append(answer(request.lora_key, known + new))
        if request.n_generated + len(new) >= request.max_tokens:
            return TokenResult(new, n_accepted, "length")
        if draft != new[-1]:
            break
        n_accepted += 1
    return TokenResult(new, n_accepted)

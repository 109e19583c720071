"""KVCache: which sequence holds which tokens, how much room is left, and what can be reused.

Accounting only: the cells themselves are C's, reached through the three calls of `CacheMemory`.
Room is counted in blocks, as in vLLM's PagedAttention (https://arxiv.org/abs/2309.06180); a prefix
is found by the hashes of its blocks and then compared token by token.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from ..errors import ValidationError
from ..generation.prompt import common_prefix_length

__all__ = ["CacheMemory", "CacheStats", "KVCache", "Lease"]

# Where each sequence has its own cells, C copies all of them, which costs about so many tokens.
_WORTH_A_COPY = 64


class CacheMemory(Protocol):
    """What the cache needs of `Memory`."""

    def seq_rm(self, seq_id: int, p0: int = -1, p1: int = -1) -> bool:
        """Remove positions [p0, p1)."""

    def seq_cp(self, source: int, target: int, p0: int = -1, p1: int = -1) -> None:
        """Copy positions [p0, p1)."""

    def can_truncate(self, seq_id: int, p0: int) -> bool:
        """Whether the sequence can go on from p0."""


class Lease(NamedTuple):
    """A sequence for a request, and how many of its tokens are in there already."""

    seq_id: int
    n_cached: int


class CacheStats(NamedTuple):
    """What the cache holds and did.

    Attributes:
        n_blocks: Blocks in all.
        n_free: Of nobody.
        n_cached: Held by nothing but finished sequences, given up when room is needed.
        n_shared: Held by several sequences.
        n_lookup_tokens: Tokens of all prompts.
        n_hit_tokens: Of these, found in the cache.
        n_evictions: Finished sequences that were given up.
    """

    n_blocks: int
    n_free: int
    n_cached: int
    n_shared: int
    n_lookup_tokens: int
    n_hit_tokens: int
    n_evictions: int


@dataclass(eq=False, slots=True)
class _Sequence:
    seq_id: int
    tokens: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)  # of the full blocks, each with those before
    group: Hashable = None
    busy: bool = False
    used: int = 0


class KVCache:
    """Room and prefixes of the sequences of one context.

    A finished sequence stays until its room is needed; the one unused for longest goes first.

    Args:
        n_seqs: Sequences of the context.
        n_cells: Tokens that fit into it, those of all sequences together.
        block_size: Tokens of a block.
        unified: Whether the sequences share the cells; else each has an equal part for itself.
        memory: The context's; None = account only.

    Attributes:
        n_blocks: Blocks in all.
        max_tokens: What one sequence can hold.
        n_worth: Least tokens that are taken from another sequence.

    Raises:
        ValidationError: There is not one block for each sequence.
    """

    def __init__(
        self,
        n_seqs: int,
        n_cells: int,
        block_size: int = 32,
        *,
        unified: bool = True,
        memory: CacheMemory | None = None,
    ) -> None:
        self.n_seqs, self.block_size, self.unified = n_seqs, block_size, unified
        n_shares = 1 if unified else max(n_seqs, 1)
        share = n_cells // n_shares // max(block_size, 1)
        self.n_blocks = share * n_shares
        if n_seqs < 1 or block_size < 1 or self.n_blocks < n_seqs:
            raise ValidationError(
                f"{n_cells} cells are not a block of {block_size} tokens for each of {n_seqs} "
                "sequences; make the context larger"
            )
        self.max_tokens = share * block_size
        self.n_worth = 1 if unified else _WORTH_A_COPY
        self._memory = memory
        self._clock = self._lookups = self._hits = self._evictions = 0
        self._reset()

    def _reset(self) -> None:
        self._sequences = [_Sequence(i) for i in range(self.n_seqs)]
        self._free = list(range(self.n_blocks - 1, -1, -1))
        self._references = [0] * self.n_blocks
        self._busy = [0] * self.n_blocks  # how many of a block's holders are in use
        self._n_busy = 0  # blocks that somebody in use holds
        self._index: dict[int, dict[int, None]] = {}

    # Requests

    def acquire(
        self, tokens: Sequence[int], group: Hashable = None, n_spare: int = 0
    ) -> Lease | None:
        """Give a request a sequence with room for *tokens* and one more.

        What a sequence of the same group holds of their beginning is kept or copied, all but the
        last token: only decoding gives logits.

        Args:
            tokens: What the sequence shall hold.
            group: See `Request`.
            n_spare: Blocks that have to stay free or idle.

        Returns:
            None when there is no room or no sequence; nothing changed then.
        """
        if all(s.busy for s in self._sequences):
            return None
        source, n = self._match(tokens, group)
        target = self._target(source, n)
        if source is not target and n < self.n_worth:
            source, n = None, 0
        kept: list[int] = []
        if source is not None and (source is target or self.unified):
            kept = source.blocks[: n // self.block_size]
            if source is target:
                kept += self._own_rest(target, n)
        n_new = self._blocks(len(tokens) + 1) - len(kept)
        if not self._fits(len(tokens) + 1, n_new + n_spare, kept):
            return None
        if source is target:
            self._truncate(target, n)
        else:
            if target.tokens:
                self._evict(target)
            if source is not None:
                self._copy(source, target, n)
        self._use(target, True)
        target.group = group
        self._lookups += len(tokens)
        self._hits += n
        self._allocate(target, len(tokens) + 1, source)
        return Lease(target.seq_id, n)

    def reserve(self, seq_id: int, n_tokens: int) -> bool:
        """Make room for *n_tokens* in all in a sequence; False when there is none."""
        sequence = self._sequences[seq_id]
        if n_tokens <= len(sequence.blocks) * self.block_size:
            return True
        n_new = self._blocks(n_tokens) - len(sequence.blocks)
        if not self._fits(n_tokens, n_new):
            return False
        self._allocate(sequence, n_tokens)
        return True

    def append(self, seq_id: int, tokens: Sequence[int]) -> None:
        """Note that *tokens* were decoded; there was room for them."""
        sequence, size = self._sequences[seq_id], self.block_size
        assert len(sequence.tokens) + len(tokens) <= len(sequence.blocks) * size, "no room reserved"
        sequence.tokens += tokens
        if len(sequence.tokens) >= (len(sequence.hashes) + 1) * size:
            self._index_blocks(sequence)

    def truncate(self, seq_id: int, n: int) -> None:
        """Keep the first *n* tokens of a sequence."""
        self._truncate(self._sequences[seq_id], n)

    def release(self, seq_id: int, keep: bool = True) -> None:
        """Take a sequence back; with *keep* its tokens stay for prompts that begin so."""
        sequence = self._sequences[seq_id]
        self._use(sequence, False)
        self._clock += 1
        sequence.used = self._clock
        if keep:
            self._shrink(sequence, len(sequence.tokens))
        else:
            self._drop(sequence)

    def forget(self, seq_id: int) -> None:
        """Note that C lost a sequence; whoever has it has to begin again."""
        self._drop(self._sequences[seq_id])

    def clear(self) -> None:
        """Forget everything that is not in use, in one go."""
        if any(s.busy for s in self._sequences):
            for sequence in self._sequences:
                if sequence.tokens and not sequence.busy:
                    self._drop(sequence)
            return
        if self._memory is not None:
            self._memory.seq_rm(-1)
        self._reset()

    # What there is

    def n_tokens(self, seq_id: int) -> int:
        """Return how many tokens a sequence holds."""
        return len(self._sequences[seq_id].tokens)

    def n_matched(self, tokens: Sequence[int], group: Hashable = None) -> int:
        """Return how many tokens `acquire` would find; nothing changes."""
        return self._match(tokens, group)[1]

    def can_branch(self, seq_id: int) -> bool:
        """Whether another sequence can have less than all of this one; recurrent ones cannot."""
        sequence = self._sequences[seq_id]
        return self._can_truncate(sequence, max(len(sequence.tokens) - 1, 0))

    def blocks_of(self, seq_id: int) -> list[int]:
        """Return the blocks of a sequence, in order."""
        return list(self._sequences[seq_id].blocks)

    @property
    def n_free_blocks(self) -> int:
        """Blocks of nobody."""
        return len(self._free)

    @property
    def stats(self) -> CacheStats:
        """What it holds and did."""
        return CacheStats(
            self.n_blocks,
            len(self._free),
            self._n_idle,
            sum(n > 1 for n in self._references),
            self._lookups,
            self._hits,
            self._evictions,
        )

    # Prefixes

    def _match(self, tokens: Sequence[int], group: Hashable) -> tuple[_Sequence | None, int]:
        """Return the sequence that holds most of the beginning of *tokens*, and how much."""
        size, most = self.block_size, len(tokens) - 1
        key, at = hash(group), 0
        found: dict[int, None] | None = None
        while at + size <= most:
            key = hash((key, tuple(tokens[at : at + size])))
            here = self._index.get(key)
            if not here:
                break
            found, at = here, at + size
        best: _Sequence | None = None
        n_best = 0
        # Those with most blocks in common first; their memory may not be able to go back so far.
        for candidates in ([self._sequences[i] for i in found or ()], self._sequences):
            for sequence in candidates:
                if sequence.group != group or not sequence.tokens:
                    continue
                n = min(common_prefix_length(sequence.tokens, tokens), most)
                if n < len(sequence.tokens) and not self._can_truncate(sequence, n):
                    continue
                if n > n_best or (best is not None and n == n_best and best.busy > sequence.busy):
                    best, n_best = sequence, n
            if best is not None:
                break
        return best, n_best

    def _can_truncate(self, sequence: _Sequence, n: int) -> bool:
        return self._memory is None or n == 0 or self._memory.can_truncate(sequence.seq_id, n)

    def _target(self, source: _Sequence | None, n: int) -> _Sequence:
        """Return the sequence that a request gets; one is idle.

        Not *source* where another prompt may want what is behind its first *n* tokens, and a copy
        is cheap or not worth it. Low numbers first: C computes sequences together whose numbers
        follow each other.
        """
        if source is not None and not source.busy:
            in_place = n == len(source.tokens) or (not self.unified and n >= self.n_worth)
            if in_place:
                return source
        idle = [s for s in self._sequences if not s.busy]
        for sequence in idle:
            if not sequence.tokens:
                return sequence
        others = [s for s in idle if s is not source]
        return min(others or idle, key=lambda s: s.used)

    def _copy(self, source: _Sequence, target: _Sequence, n: int) -> None:
        memory = self._memory
        if memory is not None:
            if self.unified and n < len(source.tokens):
                memory.seq_cp(source.seq_id, target.seq_id, 0, n)
            else:
                memory.seq_cp(source.seq_id, target.seq_id)
                if n < len(source.tokens):
                    memory.seq_rm(target.seq_id, n)
        target.group = source.group
        target.tokens = source.tokens[:n]
        if self.unified:
            target.blocks = source.blocks[: n // self.block_size]
            for block in target.blocks:
                self._references[block] += 1

    def _index_blocks(self, sequence: _Sequence) -> None:
        size = self.block_size
        while (len(sequence.hashes) + 1) * size <= len(sequence.tokens):
            at = len(sequence.hashes) * size
            before = sequence.hashes[-1] if sequence.hashes else hash(sequence.group)
            key = hash((before, tuple(sequence.tokens[at : at + size])))
            sequence.hashes.append(key)
            self._index.setdefault(key, {})[sequence.seq_id] = None

    # Room

    def _blocks(self, n_tokens: int) -> int:
        return -(-n_tokens // self.block_size)

    def _fits(self, n_tokens: int, n_new: int, kept: Sequence[int] = ()) -> bool:
        if n_tokens > self.max_tokens:
            return False
        if not self.unified or n_new <= len(self._free):
            return True  # who has cells for itself has them
        return n_new <= len(self._free) + self._n_idle - sum(not self._busy[b] for b in kept)

    @property
    def _n_idle(self) -> int:
        """How many blocks only idle sequences hold."""
        return self.n_blocks - len(self._free) - self._n_busy

    def _use(self, sequence: _Sequence, busy: bool) -> None:
        """Note that somebody uses a sequence, or nobody does any more."""
        if sequence.busy != busy:
            sequence.busy = busy
            for block in sequence.blocks:
                self._hold(block, 1 if busy else -1)

    def _hold(self, block: int, change: int) -> None:
        before = self._busy[block]
        self._busy[block] = after = before + change
        self._n_busy += (after > 0) - (before > 0)

    def _own_rest(self, sequence: _Sequence, n: int) -> list[int]:
        """Return the block that token *n* goes into, if it is begun and of this sequence alone.

        What others hold of it fills it already.
        """
        at = n // self.block_size
        rest = sequence.blocks[at : at + 1] if n % self.block_size else []
        return [block for block in rest if self._references[block] == 1]

    def _allocate(
        self, sequence: _Sequence, n_tokens: int, spared: _Sequence | None = None
    ) -> None:
        """Give a sequence blocks for *n_tokens*; idle ones make room, *spared* last."""
        n = self._blocks(n_tokens) - len(sequence.blocks)
        while len(self._free) < n:
            idle = [s for s in self._sequences if not s.busy and s.blocks]
            self._evict(min(idle, key=lambda s: (s is spared, s.used)))
        for _ in range(n):
            block = self._free.pop()
            self._references[block] = 1
            if sequence.busy:
                self._hold(block, 1)
            sequence.blocks.append(block)
        self._index_blocks(sequence)

    def _evict(self, sequence: _Sequence) -> None:
        self._evictions += 1
        self._drop(sequence)

    def _drop(self, sequence: _Sequence) -> None:
        if self._memory is not None:  # also where a failed step left more than is known here
            self._memory.seq_rm(sequence.seq_id)
        self._strip(sequence, 0)

    def _truncate(self, sequence: _Sequence, n: int) -> None:
        if self._memory is not None and n < len(sequence.tokens):
            self._memory.seq_rm(sequence.seq_id, n if n else -1)
        self._strip(sequence, n)

    def _strip(self, sequence: _Sequence, n: int) -> None:
        del sequence.tokens[n:]
        while len(sequence.hashes) * self.block_size > n:
            key = sequence.hashes.pop()
            holders = self._index[key]
            del holders[sequence.seq_id]
            if not holders:
                del self._index[key]
        self._shrink(sequence, n)

    def _shrink(self, sequence: _Sequence, n: int) -> None:
        """Give back the blocks behind the first *n* tokens."""
        n_kept = n // self.block_size + len(self._own_rest(sequence, n))
        while len(sequence.blocks) > n_kept:
            block = sequence.blocks.pop()
            self._references[block] -= 1
            if sequence.busy:
                self._hold(block, -1)
            if not self._references[block]:
                self._free.append(block)

"""KVCache: which sequence holds which tokens, what is free, and which prefixes can be reused.

Accounting only: the cells belong to C and are reached through the three calls of `CacheMemory`.
Cells are counted in blocks, as in vLLM's PagedAttention (https://arxiv.org/abs/2309.06180). A
prefix is found by the hashes of its blocks and then compared token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..errors import KvCacheFullError, ValidationError
from ..generation.prompt import Prompt, block_hashes, common_prefix_length
from ..validation import not_picklable
from .renamed import renamed_arguments

if TYPE_CHECKING:
    from .prompt_store import PromptStore, StoredPrefix

__all__ = ["Allocation", "CacheMemory", "CacheStats", "KVCache"]

# Where each sequence has its own cells, C copies all of them, at the price of about 64 tokens.
_MIN_COPIED_PREFIX = 64
# A state is saved or loaded where at least so many tokens need not be computed.
_MIN_STORED = 64
# A checkpoint ends before the last tokens of a prompt: templates end the next prompt differently.
_CHECKPOINT_TAIL = 16


class CacheMemory(Protocol):
    """The part of `Memory` that the cache uses."""

    def seq_rm(self, seq_id: int, p0: int = -1, p1: int = -1) -> bool:
        """Remove positions [p0, p1)."""
        ...

    def seq_cp(self, source: int, target: int, p0: int = -1, p1: int = -1) -> None:
        """Copy positions [p0, p1)."""

    def can_truncate(self, seq_id: int, p0: int) -> bool:
        """Whether the sequence can continue from p0."""
        ...


class Allocation(NamedTuple):
    """A sequence for a request, and the number of its tokens that are already cached."""

    seq_id: int
    n_cached: int


class CacheStats(NamedTuple):
    """Occupancy of the cache, and counts so far.

    Attributes:
        n_blocks: Number of blocks.
        n_free: Free blocks.
        n_cached: Blocks held by finished sequences only; evicted when others need them.
        n_shared: Blocks held by several sequences.
        n_lookup_tokens: Tokens of all prompts.
        n_hit_tokens: Prompt tokens found in the cache, restored ones too.
        n_evictions: Evicted finished sequences.
        n_restored_tokens: Prompt tokens restored from stored states.
        n_stored: Prompts stored outside of the cache, in RAM or on disk.
        n_stored_bytes: Bytes of those in RAM.
    """

    n_blocks: int
    n_free: int
    n_cached: int
    n_shared: int
    n_lookup_tokens: int
    n_hit_tokens: int
    n_evictions: int
    n_restored_tokens: int = 0
    n_stored: int = 0
    n_stored_bytes: int = 0


@dataclass(eq=False, slots=True)
class _Sequence:
    seq_id: int
    tokens: Prompt = field(default_factory=Prompt)
    blocks: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)  # of full blocks, chained
    lora_key: Hashable = None
    busy: bool = False
    used: int = 0
    stores: bool = True  # whether the store keeps it


class KVCache:
    """Blocks and prefixes of the sequences of one context.

    A finished sequence stays until its blocks are needed; the least recently used one is evicted
    first.

    Args:
        n_seqs: Number of sequences in the context.
        n_kv_tokens: Capacity in tokens, all sequences together. Formerly `n_cells`.
        block_size: Tokens per block.
        unified: Whether the sequences share the cells; otherwise each has an equal part of its own.
        memory: The memory of the context; None = accounting only.
        store: Keeps the sequences that are evicted; None = they are lost.

    Attributes:
        n_blocks: Number of blocks.
        max_tokens: Capacity of one sequence in tokens.
        min_prefix: Shortest prefix, in tokens, that is copied from another sequence.

    Raises:
        ValidationError: There is less than one block per sequence.
    """

    @renamed_arguments(n_cells="n_kv_tokens")
    def __init__(
        self,
        n_seqs: int,
        n_kv_tokens: int,
        block_size: int = 32,
        *,
        unified: bool = True,
        memory: CacheMemory | None = None,
        store: PromptStore | None = None,
    ) -> None:
        self.n_seqs, self.block_size, self.unified = n_seqs, block_size, unified
        n_shares = 1 if unified else max(n_seqs, 1)
        share = n_kv_tokens // n_shares // max(block_size, 1)
        self.n_blocks = share * n_shares
        if n_seqs < 1 or block_size < 1 or self.n_blocks < n_seqs:
            raise ValidationError(
                f"n_kv_tokens={n_kv_tokens} is less than a block of {block_size} tokens for each "
                f"of {n_seqs} sequences; increase n_ctx or n_kv_tokens"
            )
        self.max_tokens = share * block_size
        self.min_prefix = 1 if unified else _MIN_COPIED_PREFIX
        self._memory, self._store = memory, store
        self._clock = self._lookups = self._hits = self._evictions = 0
        self._reset()

    def _reset(self) -> None:
        self._sequences = [_Sequence(i) for i in range(self.n_seqs)]
        self._free = list(range(self.n_blocks - 1, -1, -1))
        self._references = [0] * self.n_blocks
        self._busy = [0] * self.n_blocks  # number of holders in use, per block
        self._n_busy = 0  # blocks with a holder in use
        self._index: dict[int, dict[int, None]] = {}

    # Requests

    __reduce__ = not_picklable("make another one", "it accounts for one context")

    def __repr__(self) -> str:
        return (
            f"<KVCache {self.n_seqs} sequences, {self.n_blocks} blocks of {self.block_size} tokens>"
        )

    def acquire(
        self,
        tokens: Sequence[int],
        lora_key: Hashable = None,
        n_spare: int = 0,
        *,
        cache_prompt: bool = True,
    ) -> Allocation | None:
        """Allocate a sequence and the blocks for *tokens* and one more.

        The longest prefix that a sequence with the same LoRA key holds is kept or copied, except
        the last token: only decoding gives logits.

        Args:
            tokens: The tokens to hold.
            lora_key: See `Request`.
            n_spare: Blocks that must remain free or idle.
            cache_prompt: Reuse a prefix; False: all tokens are decoded, and never stored.

        Returns:
            None when there are too few blocks or no idle sequence; nothing has changed then.
        """
        if all(s.busy for s in self._sequences):
            return None
        source, n = self._match(tokens, lora_key) if cache_prompt else (None, 0)
        if cache_prompt and (stored := self._stored(tokens, lora_key, n)) is not None:
            restored = self._restore(tokens, lora_key, n_spare, stored)
            if restored is not None:
                return restored
            source, n = self._match(tokens, lora_key)  # its sequence may be gone
        target = self._target(source, n)
        if source is not target and n < self.min_prefix:
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
            self._save(target, n)
            self._truncate(target, n)
        else:
            if target.tokens:
                self._evict(target)
            if source is not None:
                self._copy(source, target, n)
        target.stores = cache_prompt
        return self._allocated(target, tokens, lora_key, n, source)

    def reserve(self, seq_id: int, n_tokens: int) -> bool:
        """Extend a sequence to *n_tokens* in total; False when there are too few blocks."""
        sequence = self._sequences[seq_id]
        if n_tokens <= len(sequence.blocks) * self.block_size:
            return True
        n_new = self._blocks(n_tokens) - len(sequence.blocks)
        if not self._fits(n_tokens, n_new):
            return False
        self._allocate(sequence, n_tokens)
        return True

    def append(self, seq_id: int, tokens: Sequence[int]) -> None:
        """Record decoded *tokens*, for which `reserve` succeeded."""
        sequence, size = self._sequences[seq_id], self.block_size
        assert len(sequence.tokens) + len(tokens) <= len(sequence.blocks) * size, "not reserved"
        sequence.tokens.add(tokens)
        if len(sequence.tokens) >= (len(sequence.hashes) + 1) * size:
            self._index_blocks(sequence)

    def truncate(self, seq_id: int, n: int) -> None:
        """Keep the first *n* tokens of a sequence."""
        self._truncate(self._sequences[seq_id], n)

    def release(self, seq_id: int, keep: bool = True) -> None:
        """Release a sequence; with *keep* its tokens stay for prompts with that prefix."""
        sequence = self._sequences[seq_id]
        self._use(sequence, False)
        self._clock += 1
        sequence.used = self._clock
        if keep:
            self._shrink(sequence, len(sequence.tokens))
        else:
            self._drop(sequence)

    def forget(self, seq_id: int) -> None:
        """Record that C lost a sequence: its tokens must be decoded again."""
        self._drop(self._sequences[seq_id])

    def is_busy(self, seq_id: int) -> bool:
        """Return whether a request uses a sequence."""
        return self._sequences[seq_id].busy

    def idle(self, seq_id: int) -> tuple[Prompt, Hashable]:
        """Return the tokens of a sequence that is not in use, and its LoRA key.

        Raises:
            ValidationError: It is in use.
        """
        sequence = self._idle(seq_id)
        return sequence.tokens, sequence.lora_key

    def replace(
        self, seq_id: int, tokens: Sequence[int], lora_key: Hashable, load: Callable[[int], object]
    ) -> None:
        """Replace a sequence that is not in use by a saved one.

        Args:
            seq_id: The sequence.
            tokens: The tokens of the saved one.
            lora_key: See `Request`.
            load: Loads them into the sequence, which is empty then; if it raises, it stays empty.

        Raises:
            KvCacheFullError: There are too few blocks; nothing has changed.
            ValidationError: The sequence is in use.
        """
        sequence, n = self._idle(seq_id), len(tokens)
        if not self._fits(n, self._blocks(n)):
            raise KvCacheFullError(
                f"running requests leave too few free cells for the {n} tokens of the saved "
                "prompt; try again when some have ended"
            )
        self._load(sequence, tokens, lora_key, n, load)
        self._index_blocks(sequence)
        self.release(seq_id)

    def erase(self, seq_id: int) -> int:
        """Drop a sequence that is not in use, also from the RAM of the store; return its length.

        Raises:
            ValidationError: It is in use.
        """
        sequence = self._idle(seq_id)
        n = len(sequence.tokens)
        if self._store is not None:
            self._store.discard(sequence.tokens, sequence.lora_key)
        self._drop(sequence)
        return n

    def clear(self, *, stored: bool = False) -> None:
        """Drop every sequence that is not in use; with *stored* also what the store has in RAM."""
        if stored and self._store is not None:
            self._store.clear()
        if any(s.busy for s in self._sequences):
            for sequence in self._sequences:
                if sequence.tokens and not sequence.busy:
                    self._drop(sequence)
            return
        if self._memory is not None:
            self._memory.seq_rm(-1)
        self._reset()

    # Queries

    def n_tokens(self, seq_id: int) -> int:
        """Return the number of tokens in a sequence."""
        return len(self._sequences[seq_id].tokens)

    def n_matched(self, tokens: Sequence[int], lora_key: Hashable = None) -> int:
        """Return the length of the prefix that `acquire` would reuse."""
        n = self._match(tokens, lora_key)[1]
        stored = self._stored(tokens, lora_key, n, now=False)
        return n if stored is None else stored.n

    def waits_for_store(self, tokens: Sequence[int], lora_key: Hashable = None) -> bool:
        """Whether a stored prompt will be ready for `acquire` after the next step, or later."""
        if self._store is None or len(self._store) == 0:
            return False
        n = self._match(tokens, lora_key)[1]
        stored = self._stored(tokens, lora_key, n, now=False)
        return stored is not None and not self._store.is_ready(stored)

    def checkpoints(
        self, tokens: Sequence[int], lora_key: Hashable, n_cached: int, max_tokens: int
    ) -> list[int]:
        """Return after which tokens of a prompt its sequence should be stored, ascending.

        Only for sequences that cannot be cut anywhere: before the end of the prompt, from where
        the next turn of a conversation continues, and where the prompt departs from an earlier
        one, since others may begin the same.

        Args:
            tokens: The prompt.
            lora_key: See `Request`.
            n_cached: Number of its tokens that are cached.
            max_tokens: Most tokens of prompt and answer.
        """
        store = self._store
        if store is None or not store.needs_checkpoints(max_tokens):
            return []
        end = len(tokens) - _CHECKPOINT_TAIL
        branch = store.n_common(tokens, lora_key)
        for sequence in self._sequences:
            if sequence.lora_key == lora_key:
                branch = max(branch, common_prefix_length(sequence.tokens, tokens))
        found = [n for n in (branch, end) if n_cached + _MIN_STORED <= n <= end]
        return found[-1:] if len(found) == 2 and found[1] - found[0] < _MIN_STORED else found

    def checkpoint(self, seq_id: int) -> None:
        """Store a sequence as it is now."""
        sequence = self._sequences[seq_id]
        if self._store is not None and not self._is_stored(sequence):
            self._store.save(seq_id, sequence.tokens, sequence.lora_key)

    def store_all(self) -> None:
        """Store every sequence that is not in use, before the context is closed."""
        for sequence in sorted(self._sequences, key=lambda s: s.used):
            if not sequence.busy:
                self._save(sequence, wait=True)

    def can_branch(self, seq_id: int) -> bool:
        """Whether a part of this sequence can be copied; that of a recurrent model cannot."""
        sequence = self._sequences[seq_id]
        return self._can_truncate(sequence, max(len(sequence.tokens) - 1, 0))

    def blocks_of(self, seq_id: int) -> list[int]:
        """Return the blocks of a sequence, in order."""
        return list(self._sequences[seq_id].blocks)

    @property
    def n_free_blocks(self) -> int:
        """Number of free blocks."""
        return len(self._free)

    @property
    def stats(self) -> CacheStats:
        """Occupancy, and counts so far."""
        store = self._store
        return CacheStats(
            self.n_blocks,
            len(self._free),
            self._n_idle,
            sum(n > 1 for n in self._references),
            self._lookups,
            self._hits,
            self._evictions,
            *(() if store is None else (store.n_restored_tokens, len(store), store.n_bytes)),
        )

    # Prefixes

    def _match(
        self, tokens: Sequence[int], lora_key: Hashable, other_than: _Sequence | None = None
    ) -> tuple[_Sequence | None, int]:
        """Return the sequence with the longest usable prefix of *tokens*, and its length."""
        most = len(tokens) - 1
        found: dict[int, None] | None = None
        for key in block_hashes(tokens, self.block_size, hash(lora_key), end=most):
            here = self._index.get(key)
            if not here:
                break
            found = here
        best: _Sequence | None = None
        n_best = 0
        # Those with most blocks in common first; the memory may be unable to truncate them.
        for candidates in ([self._sequences[i] for i in found or ()], self._sequences):
            for sequence in candidates:
                if sequence.lora_key != lora_key or not sequence.tokens or sequence is other_than:
                    continue
                n = min(common_prefix_length(sequence.tokens, tokens), most)
                n = sequence.tokens.boundary(n)
                if n < len(sequence.tokens) and not self._can_truncate(sequence, n):
                    continue
                if n > n_best or (best is not None and n == n_best and best.busy > sequence.busy):
                    best, n_best = sequence, n
            if best is not None:
                break
        return best, n_best

    def _stored(
        self, tokens: Sequence[int], lora_key: Hashable, n: int, now: bool = True
    ) -> StoredPrefix | None:
        """Return the stored prompt to restore, for a prefix much longer than *n* tokens.

        Args:
            tokens: The prompt.
            lora_key: See `Request`.
            n: Length of the prefix in the cells.
            now: Only if the next decode need not come first.
        """
        store = self._store
        if store is None or (now and not store.can_restore):
            return None
        return store.find(tokens, lora_key, n + _MIN_STORED)

    def _restore(
        self, tokens: Sequence[int], lora_key: Hashable, n_spare: int, stored: StoredPrefix
    ) -> Allocation | None:
        """Allocate a sequence with a stored prefix; None: the state is damaged, or too large."""
        store = self._store
        assert store is not None
        most = max(len(stored.tokens), len(tokens) + 1)  # the rest is removed once it is loaded
        if not self._fits(most, self._blocks(most) + n_spare):
            return None
        state = store.read(stored)  # before an evicted sequence takes its place in the store
        if state is None:
            return None
        target, read = self._target(None, 0), state

        def load(seq_id: int) -> bool:
            return store.restore(stored, read, seq_id)

        if not self._load(target, stored.tokens, lora_key, most, load):
            return None
        self._truncate(target, stored.n)
        return self._allocated(target, tokens, lora_key, stored.n)

    def _load(
        self,
        target: _Sequence,
        tokens: Sequence[int],
        lora_key: Hashable,
        n_tokens: int,
        load: Callable[[int], object],
    ) -> bool:
        """Put a sequence to use that *load* fills; return False if that does.

        Args:
            target: The sequence; evicted first.
            tokens: What it holds then.
            lora_key: See `Request`.
            n_tokens: How many to allocate.
            load: Returns False, or raises, when it fails.
        """
        if target.tokens:
            self._evict(target)
        self._use(target, True)
        self._allocate(target, n_tokens)
        is_loaded = False
        try:
            is_loaded = load(target.seq_id) is not False
        finally:
            if not is_loaded:
                self._drop(target)
                self._use(target, False)
        if is_loaded:
            target.lora_key, target.stores = lora_key, True
            target.tokens = Prompt(tokens)
        return is_loaded

    def _idle(self, seq_id: int) -> _Sequence:
        sequence = self._sequences[seq_id]
        if sequence.busy:
            raise ValidationError(
                f"sequence {seq_id} is in use by a request; try again when it has ended"
            )
        return sequence

    def _is_stored(self, sequence: _Sequence, n_known: int = 0) -> bool:
        """Whether all but a few tokens of a sequence can be had again without computing them."""
        tokens, lora_key, store = sequence.tokens, sequence.lora_key, self._store
        assert store is not None
        n_known = max(n_known, self._match(tokens, lora_key, sequence)[1])
        least = len(tokens) - _MIN_STORED + 1
        # The last token counts here.
        return n_known >= least or store.find([*tokens, -1], lora_key, least) is not None

    def _save(self, sequence: _Sequence, n_kept: int = 0, wait: bool = False) -> None:
        """Store a sequence of which only the first *n_kept* tokens will remain.

        Not if that is most of them: then a conversation goes on without its last answer.
        """
        n = len(sequence.tokens)
        if self._store is None or not sequence.stores or n - n_kept < _MIN_STORED or 2 * n_kept > n:
            return
        if not self._is_stored(sequence, n_kept):
            self._store.save(sequence.seq_id, sequence.tokens, sequence.lora_key, wait=wait)

    def _allocated(
        self,
        target: _Sequence,
        tokens: Sequence[int],
        lora_key: Hashable,
        n: int,
        spared: _Sequence | None = None,
    ) -> Allocation:
        """Put a sequence that holds the first *n* of *tokens* to use."""
        self._use(target, True)
        target.lora_key = lora_key
        self._lookups += len(tokens)
        self._hits += n
        self._allocate(target, len(tokens) + 1, spared)
        return Allocation(target.seq_id, n)

    def _can_truncate(self, sequence: _Sequence, n: int) -> bool:
        if self._memory is None or n == 0:
            return True
        return self._memory.can_truncate(sequence.seq_id, sequence.tokens.position(n))

    def _target(self, source: _Sequence | None, n: int) -> _Sequence:
        """Return the sequence to allocate; at least one is idle.

        Not *source* where another prompt may reuse the tokens after its first *n*, and a copy is
        cheap or the prefix too short. Low numbers first: C batches sequences with consecutive
        numbers.
        """
        if source is not None and not source.busy:
            in_place = n == len(source.tokens) or (not self.unified and n >= self.min_prefix)
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
                memory.seq_cp(source.seq_id, target.seq_id, 0, source.tokens.position(n))
            else:
                memory.seq_cp(source.seq_id, target.seq_id)
                if n < len(source.tokens):
                    memory.seq_rm(target.seq_id, source.tokens.position(n))
        target.lora_key = source.lora_key
        target.tokens = source.tokens.part(0, n)
        if self.unified:
            target.blocks = source.blocks[: n // self.block_size]
            for block in target.blocks:
                self._references[block] += 1

    def _index_blocks(self, sequence: _Sequence) -> None:
        size, hashes = self.block_size, sequence.hashes
        start = len(hashes) * size
        if start + size > len(sequence.tokens):  # most tokens complete no block
            return
        before = hashes[-1] if hashes else hash(sequence.lora_key)
        for key in block_hashes(sequence.tokens, size, before, start):
            hashes.append(key)
            self._index.setdefault(key, {})[sequence.seq_id] = None

    # Blocks

    def _blocks(self, n_tokens: int) -> int:
        return -(-n_tokens // self.block_size)

    def _fits(self, n_tokens: int, n_new: int, kept: Sequence[int] = ()) -> bool:
        if n_tokens > self.max_tokens:
            return False
        if not self.unified or n_new <= len(self._free):
            return True  # its cells are its own
        return n_new <= len(self._free) + self._n_idle - sum(not self._busy[b] for b in kept)

    @property
    def _n_idle(self) -> int:
        """Number of blocks that only idle sequences hold."""
        return self.n_blocks - len(self._free) - self._n_busy

    def _use(self, sequence: _Sequence, busy: bool) -> None:
        """Mark a sequence as in use or idle."""
        if sequence.busy != busy:
            sequence.busy = busy
            for block in sequence.blocks:
                self._hold(block, 1 if busy else -1)

    def _hold(self, block: int, change: int) -> None:
        before = self._busy[block]
        self._busy[block] = after = before + change
        self._n_busy += (after > 0) - (before > 0)

    def _own_rest(self, sequence: _Sequence, n: int) -> list[int]:
        """Return the partly filled block that token *n* goes into, unless it is shared.

        A shared block is full for its other holders.
        """
        at = n // self.block_size
        rest = sequence.blocks[at : at + 1] if n % self.block_size else []
        return [block for block in rest if self._references[block] == 1]

    def _allocate(
        self, sequence: _Sequence, n_tokens: int, spared: _Sequence | None = None
    ) -> None:
        """Extend a sequence to *n_tokens*, evicting idle ones if necessary, *spared* last."""
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
        self._save(sequence)
        self._drop(sequence)

    def _drop(self, sequence: _Sequence) -> None:
        if self._memory is not None:  # a failed step may have left more than is recorded
            self._memory.seq_rm(sequence.seq_id)
        self._strip(sequence, 0)

    def _truncate(self, sequence: _Sequence, n: int) -> None:
        if self._memory is not None and n < len(sequence.tokens):
            self._memory.seq_rm(sequence.seq_id, sequence.tokens.position(n) if n else -1)
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
        """Free the blocks after the first *n* tokens."""
        n_kept = n // self.block_size + len(self._own_rest(sequence, n))
        while len(sequence.blocks) > n_kept:
            block = sequence.blocks.pop()
            self._references[block] -= 1
            if sequence.busy:
                self._hold(block, -1)
            if not self._references[block]:
                self._free.append(block)

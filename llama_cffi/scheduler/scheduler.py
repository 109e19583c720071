"""Scheduler: selects the tokens that the next step decodes. Pure Python: it makes no C calls.

Iteration-level scheduling (Orca, https://www.usenix.org/conference/osdi22/presentation/yu) with
chunked prefill (Sarathi-Serve, https://arxiv.org/abs/2403.02310): each step takes one token of
every decoding request and fills up with chunks of prompts. Where C would compute the two one
after the other anyway, prefill and decode steps alternate instead.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Hashable, Mapping
from operator import itemgetter
from typing import NamedTuple

from ..errors import ContextOverflowError, ValidationError
from ..generation.prompt import common_prefix_length
from ..validation import not_picklable
from .kv_cache import Allocation, KVCache
from .renamed import renamed_arguments
from .request import Request, RequestState
from .scheduler_output import ScheduledTokens, SchedulerOutput, TokenResult
from .waiting_queue import Entry, WaitingQueue

__all__ = ["ScheduledTokens", "Scheduler", "SchedulerOutput", "TokenResult"]

_PENDING, _PREFILLING = RequestState.PENDING, RequestState.PREFILLING
_DECODING, _FINISHED = RequestState.DECODING, RequestState.FINISHED
_FAILED, _CANCELLED = RequestState.FAILED, RequestState.CANCELLED

_MAX_LOOKUPS = 32  # waiting requests compared with the prefilling ones, per step


class _Turn(NamedTuple):
    """The last turn of a LoRA key, and its prompt tokens since the last decode step."""

    step: int
    n_prefilled: int


_NEVER = _Turn(0, 0)
_by_sequence = itemgetter(ScheduledTokens._fields.index("seq_id"))


class Scheduler:
    """Selects the work of each step.

    Waiting requests are served by priority, then in order of arrival. Waiting `ageing_s` seconds
    counts as much as one step of priority, so no request starves. Between several clients with
    waiting requests of one priority, the one with the fewest running requests is served first, so
    that none holds all sequences. When the KV cache is full, the last request in the order of
    priority and arrival is preempted and computed again later. A waiting request of higher priority
    preempts running ones of lower priority that come after it in this order. A request whose prompt
    shares a prefix with one that is being prefilled waits for that prefix, and later requests may
    pass it.

    Args:
        cache: Allocates sequences and finds prefixes.
        max_running: Maximum number of running requests; None = one per sequence.
        n_batch: Maximum number of tokens in a step.
        n_prefill_shared: Maximum number of prompt tokens in a step that prefills several requests;
            None = n_batch. Where more tokens are no faster, they only delay the first answers.
        n_prefill_chunk: Maximum number of prompt tokens in a step with decoding requests, for each
            prefilling request; None = n_batch. Smaller chunks lower the latency between tokens.
            Formerly `n_chunk`.
        mix_prefill: Whether prefill and decode tokens share a step; otherwise they alternate, with
            as many prompt tokens in between as one step could have. Formerly `mixes`.
        n_ctx: Maximum number of tokens of one request, prompt and answer; None = the capacity of
            a sequence.
        ageing_s: See above, seconds; `math.inf` = only priority counts.
        clock: Returns the time in seconds.

    Attributes:
        n_preemptions: Number of preemptions so far.

    Raises:
        ValidationError: *n_batch* is smaller than *max_running*, or a number is not positive.
    """

    @renamed_arguments(n_chunk="n_prefill_chunk", mixes="mix_prefill")
    def __init__(
        self,
        cache: KVCache,
        *,
        max_running: int | None = None,
        n_batch: int = 512,
        n_prefill_shared: int | None = None,
        n_prefill_chunk: int | None = None,
        mix_prefill: bool = True,
        n_ctx: int | None = None,
        ageing_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cache, self.clock = cache, clock
        self.max_running = min(max_running or cache.n_seqs, cache.n_seqs)
        self.n_batch, self.n_prefill_chunk = n_batch, min(n_prefill_chunk or n_batch, n_batch)
        self.n_prefill_shared = min(n_prefill_shared or n_batch, n_batch)
        self.n_ctx = min(n_ctx or cache.max_tokens, cache.max_tokens)
        self.mix_prefill, self.ageing_s = mix_prefill, ageing_s
        self.running: list[Request] = []
        self.n_preemptions = 0
        self._waiting = WaitingQueue()
        # By prefilling request: those that wait for its first n tokens.
        self._followers: dict[Request, list[tuple[int, Entry]]] = {}
        self._next_deadline_s = math.inf  # a lower bound
        self._turns: dict[Hashable, _Turn] = {}
        self._step = 0
        if self.n_prefill_chunk < 1 or self.max_running < 1 or self.n_ctx < 1 or not ageing_s > 0:
            raise ValidationError(
                f"n_batch={n_batch}, n_prefill_chunk={n_prefill_chunk}, max_running={max_running}, "
                f"n_ctx={n_ctx} and ageing_s={ageing_s} must be positive"
            )
        if self.n_batch < self.max_running:
            raise ValidationError(
                f"n_batch={n_batch} is less than one token for each of {self.max_running} requests"
            )

    @property
    def waiting(self) -> list[Request]:
        """The waiting requests, by priority and arrival."""
        return [request for _, _, request in sorted(self._entries())]

    @property
    def n_waiting(self) -> int:
        """Number of waiting requests."""
        return len(self._waiting) + sum(map(len, self._followers.values()))

    @property
    def has_work(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.running or self._waiting or self._followers)

    __reduce__ = not_picklable("make another one", "its requests belong to one engine")

    def __repr__(self) -> str:
        n_running = len(self.running)
        return f"<Scheduler {n_running} of {self.max_running} running, {self.n_waiting} waiting>"

    def add(self, request: Request) -> None:
        """Add a request to the waiting ones.

        Raises:
            ContextOverflowError: The prompt fills the context, so no token can be generated.
        """
        n_prompt = len(request.prompt)
        if n_prompt >= self.n_ctx:
            raise ContextOverflowError(
                f"the prompt has {n_prompt} tokens, but prompt and answer together may have at "
                f"most {self.n_ctx}; shorten the prompt or increase n_ctx",
                n_tokens=n_prompt,
                n_ctx=self.n_ctx,
            )
        if request.deadline_s is not None:
            self._next_deadline_s = min(self._next_deadline_s, request.deadline_s)
        self._wait(request)

    def remove(self, request: Request, state: RequestState, error: BaseException | None) -> None:
        """End a waiting or running request before its answer is complete.

        Args:
            request: The request.
            state: Its final state.
            error: The error to report, if any.

        Raises:
            ValidationError: It has already ended.
        """
        request.move(state)
        request.error = error
        if request.seq_id is not None:
            self._release(request, keep=state is _CANCELLED)
            return
        for leader, followers in list(self._followers.items()):
            followers[:] = [pair for pair in followers if pair[1][2] is not request]
            heapq.heapify(followers)
            if not followers:
                del self._followers[leader]
        self._waiting.discard(request)

    def clear(self) -> None:
        """Forget all requests, of an engine that does no more steps."""
        self.running.clear()
        self._waiting.clear()
        self._followers.clear()

    @property
    def time_to_deadline_s(self) -> float | None:
        """Seconds until a request may be past its deadline; None: none has one."""
        if self._next_deadline_s == math.inf:
            return None
        return max(0.0, self._next_deadline_s - self.clock())

    def expired(self) -> list[Request]:
        """Return the requests past their deadline."""
        now = self.clock()
        if now < self._next_deadline_s:
            return []
        every = [*self.running, *(entry[2] for entry in self._entries())]
        timed = [(r.deadline_s, r) for r in every if r.deadline_s is not None]
        self._next_deadline_s = min((deadline for deadline, _ in timed), default=math.inf)
        return [request for deadline, request in timed if deadline <= now]

    def schedule(self) -> SchedulerOutput:
        """Select the tokens of the next step and reserve KV cache for them.

        The output has no chunks when no request can run: there is none, or all wait for a prefix
        that another request computes.
        """
        self._step += 1
        output = SchedulerOutput()
        self._admit(output)
        if not self.running:
            return output
        # A dict, not a set: in the order of arrival. New keys come first.
        turns = {
            request.lora_key: self._turns.get(request.lora_key, _NEVER) for request in self.running
        }
        key = output.lora_key = min(turns, key=turns.__getitem__)
        n_prefilled = turns[key].n_prefilled
        members = [r for r in self.running if r.lora_key == key]
        decoding = [request for request in members if request.state is _DECODING]
        prefilling = [request for request in members if request.state is _PREFILLING]
        limit = min(self.n_prefill_chunk * len(prefilling), self.n_batch)
        if not decoding:
            limit = self.n_batch
        elif prefilling and not self.mix_prefill:
            if n_prefilled < limit:
                decoding, limit = [], limit - n_prefilled
            else:
                prefilling = []
        if len(prefilling) > 1:
            limit = min(limit, self.n_prefill_shared)
        for i, request in enumerate(decoding, 1):
            self._schedule_decode(output, request, len(decoding) - i)
        n_prefill = min(limit, self.n_batch - output.n_tokens)
        for request in sorted(prefilling, key=self.rank):
            if request.seq_id is None:
                continue
            n_left = len(request.tokens) - request.num_computed_tokens
            if n_prefill <= 0 or (output.chunks and n_left > n_prefill and not self.mix_prefill):
                break  # C would compute parts of different lengths one after another
            n_prefill -= self._schedule_prefill(output, request, n_prefill)
        n_prefilled = 0 if decoding else n_prefilled + output.n_tokens
        self._turns = {**turns, key: _Turn(self._step, n_prefilled)}
        output.chunks.sort(key=_by_sequence)
        return output

    def update(
        self, output: SchedulerOutput, results: Mapping[Request, TokenResult]
    ) -> list[Request]:
        """Apply the results of a step; return the requests that ended.

        Args:
            output: From `schedule`.
            results: One for each chunk; none for chunks that were not decoded.
        """
        ended = []
        for chunk in output.chunks:
            request = chunk.request
            result = results.get(request)
            if result is None or request.seq_id != chunk.seq_id:
                continue  # not decoded, or ended in the meantime
            if result.error is not None:
                self._release(request, keep=False)
                request.error = result.error
                request.move(_FAILED)
                ended.append(request)
                continue
            if result.lost:
                self.cache.forget(chunk.seq_id)
                request.tokens += result.tokens  # sampled before the loss
            else:
                self._advance(chunk, result)
            full = "context" if len(request.tokens) >= self.n_ctx else ""
            if reason := result.finish_reason or full:
                self._release(request, keep=True)
                request.stats.finish_reason = reason
                request.move(_FINISHED)
                ended.append(request)
            elif result.lost:
                self.preempt(request)
        return ended

    def preempt(self, request: Request) -> None:
        """Return a running request to the waiting ones; its KV cache may be evicted."""
        self.n_preemptions += 1
        request.stats.n_preempted += 1
        self._release(request, keep=True)
        request.num_computed_tokens = 0
        request.draft = []
        request.move(_PENDING)
        self._wait(request)

    def rank(self, request: Request) -> tuple[float, int]:
        """Return the order of service, lowest first, and the number of the request.

        Ageing never reorders two waiting requests.
        """
        return request.created_s / self.ageing_s - request.priority, request.number

    # Steps

    def _admit(self, output: SchedulerOutput) -> None:
        self._wake_followers()
        n_lookups = _MAX_LOOKUPS
        while self._waiting and n_lookups:
            entry = self._waiting.first(self.running)
            request = entry[2]
            if len(self.running) >= self.max_running and self._victim(request) is None:
                return
            if (
                self.running
                and request.cache_prompt
                and self.cache.waits_for_store(request.tokens, request.lora_key)
            ):
                return
            leader, n = self._leader(request)
            if leader is not None:
                n_lookups -= 1
                self._waiting.pop(entry)
                heapq.heappush(self._followers.setdefault(leader, []), (n, entry))
                continue
            allocation = self._acquire(output, request)
            if allocation is None:
                return
            self._waiting.pop(entry)
            request.seq_id, request.num_computed_tokens = allocation
            request.last_seq_id = request.seq_id
            if request.cache_prompt:
                request.checkpoints = self.cache.checkpoints(
                    request.tokens,
                    request.lora_key,
                    allocation.n_cached,
                    len(request.prompt) + request.max_tokens,
                )
            if not request.stats.n_preempted:
                request.stats.n_reused = allocation.n_cached
                request.stats.queue_s = self.clock() - request.created_s
            request.move(_PREFILLING)
            self.running.append(request)
            output.admitted.append(request)

    def _acquire(self, output: SchedulerOutput, request: Request) -> Allocation | None:
        """Allocate a sequence, preempting requests of lower priority if necessary."""
        while True:
            if len(self.running) < self.max_running:
                # Spare a block per running request, or they would soon preempt this one.
                n_spare = len(self.running)
                allocation = self.cache.acquire(
                    request.tokens, request.lora_key, n_spare, cache_prompt=request.cache_prompt
                )
                if allocation is not None:
                    return allocation
            victim = self._victim(request)
            if victim is None:
                return None
            self._preempt(output, victim)

    def _victim(self, request: Request) -> Request | None:
        """Return the request to preempt for another one: the last of those that it precedes.

        Lower priority alone is not enough: a request admitted by ageing would be preempted again
        immediately.
        """
        lower = [r for r in self.running if r.priority < request.priority]
        rank = self.rank(request)
        return max((r for r in lower if self.rank(r) > rank), key=self.rank, default=None)

    def _preempt(self, output: SchedulerOutput, victim: Request) -> None:
        self.preempt(victim)
        output.preempted.append(victim)

    def _leader(self, request: Request) -> tuple[Request | None, int]:
        """Return the prefilling request whose prefix is worth waiting for, and its length."""
        n_min = max(2 * self.cache.block_size, self.cache.min_prefix)
        n_cached: int | None = None
        may_wait = request.cache_prompt and len(request.tokens) >= n_min
        for other in self.running if may_wait else ():
            if other.state is not _PREFILLING or other.lora_key != request.lora_key:
                continue
            if len(other.tokens) < n_min or other.tokens[n_min - 1] != request.tokens[n_min - 1]:
                continue  # a cheap test that most fail
            n = common_prefix_length(other.tokens, request.tokens)
            if n < n_min or n <= other.num_computed_tokens or not self._can_follow(other, n):
                continue
            if n_cached is None:
                n_cached = self.cache.n_matched(request.tokens, request.lora_key)
            if n - n_cached >= n_min:
                return other, n
        return None, 0

    def _can_follow(self, leader: Request, n: int) -> bool:
        """Whether others can reuse the first *n* tokens of a prefilling request once computed."""
        return n == len(leader.tokens) or self.cache.can_branch(self._seq(leader))

    def _wake_followers(self) -> None:
        """Requeue followers whose prefix is computed, or will not become available."""
        for leader, followers in list(self._followers.items()):
            while followers:
                n, entry = followers[0]
                if (
                    leader.state is _PREFILLING
                    and n > leader.num_computed_tokens
                    and self._can_follow(leader, n)
                ):
                    break
                heapq.heappop(followers)
                self._waiting.push(entry)
            if not followers:
                del self._followers[leader]

    def _entries(self) -> list[Entry]:
        """Return all waiting requests, unordered."""
        held = [entry for pairs in self._followers.values() for _, entry in pairs]
        return [*self._waiting, *held]

    def _schedule_decode(self, output: SchedulerOutput, request: Request, n_after: int) -> None:
        """Schedule a decoding request; keep one token for each of the *n_after* next ones."""
        seq_id = request.seq_id
        if seq_id is None:
            return  # preempted for another request of this step
        start, n_draft = request.num_computed_tokens, 0
        n_free = min(self.n_batch - output.n_tokens - n_after, self.n_ctx - start)
        tokens = request.tokens[start : start + n_free]  # more than one after forced tokens
        end = start + len(tokens)
        if not (self.cache.reserve(seq_id, end) or self._preempt_for(output, request, end)):
            return
        if request.draft:
            draft = request.draft[: n_free - len(tokens)]
            if self.cache.reserve(seq_id, end + len(draft)):
                n_draft = len(draft)
                tokens += draft
        samples = end == len(request.tokens)
        output.add(ScheduledTokens(request, seq_id, start, tokens, n_draft, samples))

    def _schedule_prefill(self, output: SchedulerOutput, request: Request, n_most: int) -> int:
        start, seq_id = request.num_computed_tokens, self._seq(request)
        if request.checkpoints:
            n_most = min(n_most, request.checkpoints[0] - start)
        part = request.part(start, start + n_most)
        end = start + len(part)
        if not (self.cache.reserve(seq_id, end) or self._preempt_for(output, request, end)):
            return 0
        samples = end == len(request.tokens)
        output.add(ScheduledTokens(request, seq_id, start, part, 0, samples))
        return len(part)

    def _preempt_for(self, output: SchedulerOutput, request: Request, n_tokens: int) -> bool:
        """Preempt others until *n_tokens* fit; False = the request itself was preempted."""
        while not self.cache.reserve(self._seq(request), n_tokens):
            victim = max(self.running, key=self.rank)
            output.drop(victim)
            self._preempt(output, victim)
            if victim is request:
                return False
        return True

    def _advance(self, chunk: ScheduledTokens, result: TokenResult) -> None:
        """Record the decoded and the sampled tokens."""
        request = chunk.request
        n_kept = len(chunk.tokens)
        if chunk.n_draft:
            n_kept -= chunk.n_draft - result.n_accepted
            request.stats.n_drafted += chunk.n_draft
            request.stats.n_accepted += result.n_accepted
        self.cache.append(chunk.seq_id, chunk.tokens)
        if n_kept < len(chunk.tokens):
            self.cache.truncate(chunk.seq_id, chunk.start + n_kept)
        request.num_computed_tokens = end = chunk.start + n_kept
        if request.checkpoints and end >= request.checkpoints[0]:
            request.checkpoints.pop(0)
            self.cache.checkpoint(chunk.seq_id)
        request.draft = []
        if chunk.samples and request.state is _PREFILLING:
            request.move(_DECODING)
        request.tokens += result.tokens

    def _release(self, request: Request, keep: bool) -> None:
        if request.seq_id is not None:
            self.cache.release(request.seq_id, keep)
        request.seq_id = None
        self.running.remove(request)

    def _wait(self, request: Request) -> None:
        self._waiting.push((*self.rank(request), request))

    @staticmethod
    def _seq(request: Request) -> int:
        assert request.seq_id is not None
        return request.seq_id

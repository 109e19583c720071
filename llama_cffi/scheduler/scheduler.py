"""Scheduler: which tokens of which requests the next step decodes. Pure: it calls no C.

Iteration-level scheduling (Orca, https://www.usenix.org/conference/osdi22/presentation/yu) with
chunked prefill (Sarathi-Serve, https://arxiv.org/abs/2403.02310): every step takes one token of
each request that is decoding, and fills up with parts of prompts. Where C would compute the two
one after the other anyway, steps take turns instead.
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
from .kv_cache import KVCache, Lease
from .request import Request, RequestState
from .scheduler_output import Chunk, Plan, Result

__all__ = ["Chunk", "Plan", "Result", "Scheduler"]

_PENDING, _PREFILLING = RequestState.PENDING, RequestState.PREFILLING
_DECODING, _FINISHED = RequestState.DECODING, RequestState.FINISHED
_FAILED, _CANCELLED = RequestState.FAILED, RequestState.CANCELLED

_LOOKS = 32  # requests compared with those in the making, most in a step

_Entry = tuple[float, int, Request]  # the order of service, then the request


class _Served(NamedTuple):
    """When a group's turn was last, and whether prompts are next where they do not mix."""

    step: int
    prompts_next: bool


_NEVER = _Served(0, False)
_by_sequence = itemgetter(Chunk._fields.index("seq_id"))


class Scheduler:
    """Chooses the work of each step.

    Who waits is served by priority, and among equals in the order of arrival. Waiting `ageing_s`
    seconds counts as much as one step of priority, so nothing waits for ever. When room runs out
    the last in this order is put back and computed again later; for a request of a higher priority
    that comes before them in this order, those of lower ones make way, too. A prompt that begins
    as one in the making waits for that, and later ones may pass it.

    Args:
        cache: Room and prefixes.
        max_running: Most requests at once; None = one for each sequence.
        n_batch: Most tokens in a step.
        n_chunk: Most tokens of prompts in a step while others decode, for each prompt in the
            making; None = n_batch. Less makes those that decode wait less for others' prompts.
        mixes: Whether prompts share a step with tokens of those that decode; else they take turns.
        n_ctx: Most tokens of prompt and answer of one request; None = what one can have.
        ageing_s: See above, seconds; `math.inf` = priority alone counts.
        clock: Tells the time in seconds.

    Attributes:
        n_preemptions: How often a request was put back.

    Raises:
        ValidationError: *n_batch* has no room for a token of each request, or a number is not
            positive.
    """

    def __init__(
        self,
        cache: KVCache,
        *,
        max_running: int | None = None,
        n_batch: int = 512,
        n_chunk: int | None = None,
        mixes: bool = True,
        n_ctx: int | None = None,
        ageing_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cache, self.clock = cache, clock
        self.max_running = min(max_running or cache.n_seqs, cache.n_seqs)
        self.n_batch, self.n_chunk = n_batch, min(n_chunk or n_batch, n_batch)
        self.n_ctx = min(n_ctx or cache.max_tokens, cache.max_tokens)
        self.mixes, self.ageing_s = mixes, ageing_s
        self.running: list[Request] = []
        self.n_preemptions = 0
        self._waiting: list[_Entry] = []
        # Whose prompt begins as that of a running one, and how much of that they wait for.
        self._followers: dict[Request, list[tuple[int, _Entry]]] = {}
        self._next_deadline_s = math.inf  # none is earlier
        self._served: dict[Hashable, _Served] = {}
        self._step = 0
        if self.n_chunk < 1 or self.max_running < 1 or self.n_ctx < 1 or not ageing_s > 0:
            raise ValidationError(
                f"n_batch={n_batch}, n_chunk={n_chunk}, max_running={max_running}, n_ctx={n_ctx} "
                f"and ageing_s={ageing_s} have to be positive"
            )
        if self.n_batch < self.max_running:
            raise ValidationError(
                f"n_batch={n_batch} has no room for a token of each of {self.max_running} requests"
            )

    @property
    def waiting(self) -> list[Request]:
        """Who waits, the next one first."""
        return [request for _, _, request in sorted(self._entries())]

    @property
    def n_waiting(self) -> int:
        """How many wait."""
        return len(self._waiting) + sum(map(len, self._followers.values()))

    @property
    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self.running or self._waiting or self._followers)

    def add(self, request: Request) -> None:
        """Let a request wait for its turn.

        Raises:
            ContextOverflowError: Its prompt leaves no room for an answer.
        """
        room = self.n_ctx - len(request.prompt_tokens)
        if room < 1:
            raise ContextOverflowError(
                f"the prompt has {len(request.prompt_tokens)} tokens, a request at most "
                f"{self.n_ctx} with its answer; shorten it or make n_ctx larger"
            )
        if request.deadline_s is not None:
            self._next_deadline_s = min(self._next_deadline_s, request.deadline_s)
        self._wait(request)

    def remove(self, request: Request, state: RequestState, error: BaseException | None) -> None:
        """End a request that waits or runs, for another reason than its answer.

        Args:
            request: The request.
            state: What becomes of it.
            error: Why it failed, if it did.

        Raises:
            ValidationError: It has ended already.
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
        self._waiting = [entry for entry in self._waiting if entry[2] is not request]
        heapq.heapify(self._waiting)

    def expired(self) -> list[Request]:
        """Return the requests whose deadline has passed."""
        now = self.clock()
        if now < self._next_deadline_s:
            return []
        every = [*self.running, *(entry[2] for entry in self._entries())]
        timed = [(r.deadline_s, r) for r in every if r.deadline_s is not None]
        self._next_deadline_s = min((deadline for deadline, _ in timed), default=math.inf)
        return [request for deadline, request in timed if deadline <= now]

    def schedule(self) -> Plan:
        """Plan the next step; its chunks have room in the cache.

        Without chunks nothing can run: nothing is there, or who waits does so for a prefix that
        is computed for another one.
        """
        self._step += 1
        plan = Plan()
        self._admit(plan)
        if not self.running:
            return plan
        # In the order of arrival, as a set has none; new ones come first.
        served = {
            request.group: self._served.get(request.group, _NEVER) for request in self.running
        }
        plan.group = min(served, key=served.__getitem__)
        prompts_next = served[plan.group].prompts_next
        members = [r for r in self.running if r.group == plan.group]
        decoding = [request for request in members if request.state is _DECODING]
        prefilling = [request for request in members if request.state is _PREFILLING]
        limit = self.n_chunk * len(prefilling) if decoding else self.n_batch
        if decoding and prefilling and not self.mixes:
            if prompts_next:
                decoding = []
            else:
                prefilling = []
            prompts_next = not prompts_next
        self._served = {**served, plan.group: _Served(self._step, prompts_next)}
        for i, request in enumerate(decoding, 1):
            self._plan_decode(plan, request, len(decoding) - i)
        n_prefill = min(limit, self.n_batch - plan.n_tokens)
        for request in sorted(prefilling, key=self._rank):
            if n_prefill > 0 and request.seq_id is not None:
                n_prefill -= self._plan_prefill(plan, request, n_prefill)
        plan.chunks.sort(key=_by_sequence)
        return plan

    def update(self, plan: Plan, results: Mapping[Request, Result]) -> list[Request]:
        """Take what became of a plan; return the requests that ended.

        Args:
            plan: From `schedule`.
            results: One for each chunk; none for those that were not tried.
        """
        ended = []
        for chunk in plan.chunks:
            request = chunk.request
            result = results.get(request)
            if result is None or request.seq_id != chunk.seq_id:
                continue  # not tried, or ended since
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
        """Put a running request back among those that wait; what it computed may be given up."""
        self.n_preemptions += 1
        request.stats.n_preempted += 1
        self._release(request, keep=True)
        request.num_computed_tokens = 0
        request.draft = []
        request.move(_PENDING)
        self._wait(request)

    # Steps

    def _admit(self, plan: Plan) -> None:
        self._wake_followers()
        n_looks = _LOOKS
        while self._waiting and n_looks:
            entry = self._waiting[0]
            request = entry[2]
            if len(self.running) >= self.max_running and self._victim(request) is None:
                return
            leader, n = self._leader(request)
            if leader is not None:
                n_looks -= 1
                heapq.heappop(self._waiting)
                heapq.heappush(self._followers.setdefault(leader, []), (n, entry))
                continue
            lease = self._acquire(plan, request)
            if lease is None:
                return
            heapq.heappop(self._waiting)  # still the first: who was put back comes later
            request.seq_id, request.num_computed_tokens = lease
            if not request.stats.n_preempted:
                request.stats.n_reused = lease.n_cached
                request.stats.queue_s = self.clock() - request.created_s
            request.move(_PREFILLING)
            self.running.append(request)
            plan.admitted.append(request)

    def _acquire(self, plan: Plan, request: Request) -> Lease | None:
        """Get a sequence with room, if need be that of requests of lower priorities."""
        while True:
            if len(self.running) < self.max_running:
                # A block for each that runs, or they would soon have to put it back.
                n_spare = len(self.running)
                lease = self.cache.acquire(request.tokens, request.group, n_spare)
                if lease is not None:
                    return lease
            victim = self._victim(request)
            if victim is None:
                return None
            self._put_back(plan, victim)

    def _victim(self, request: Request) -> Request | None:
        """Return who makes way for a request: the last of those that it comes before.

        A lower priority alone does not do: whose turn came by ageing would lose it at once.
        """
        lower = [r for r in self.running if r.priority < request.priority]
        rank = self._rank(request)
        return max((r for r in lower if self._rank(r) > rank), key=self._rank, default=None)

    def _put_back(self, plan: Plan, victim: Request) -> None:
        self.preempt(victim)
        plan.preempted.append(victim)

    def _leader(self, request: Request) -> tuple[Request | None, int]:
        """Return whose prompt, in the making, begins so that waiting for it saves work.

        Also how many tokens the two have in common.
        """
        worth = max(2 * self.cache.block_size, self.cache.n_worth)
        n_cached: int | None = None
        for other in self.running if len(request.tokens) >= worth else ():
            if other.state is not _PREFILLING or other.group != request.group:
                continue
            if len(other.tokens) < worth or other.tokens[worth - 1] != request.tokens[worth - 1]:
                continue  # mostly so
            n = common_prefix_length(other.tokens, request.tokens)
            if n < worth or n <= other.num_computed_tokens or not self._can_follow(other, n):
                continue
            if n_cached is None:
                n_cached = self.cache.n_matched(request.tokens, request.group)
            if n - n_cached >= worth:
                return other, n
        return None, 0

    def _can_follow(self, leader: Request, n: int) -> bool:
        """Whether the first *n* tokens of a prompt in the making can be had once they are there."""
        return n == len(leader.tokens) or self.cache.can_branch(self._seq(leader))

    def _wake_followers(self) -> None:
        """Let those wait for their turn again who have what they waited for, or cannot get it."""
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
                heapq.heappush(self._waiting, entry)
            if not followers:
                del self._followers[leader]

    def _entries(self) -> list[_Entry]:
        """Return all that wait, in no order."""
        held = [entry for pairs in self._followers.values() for _, entry in pairs]
        return [*self._waiting, *held]

    def _plan_decode(self, plan: Plan, request: Request, n_after: int) -> None:
        """Plan what a request wants decoded, and leave a token for each of the *n_after* next."""
        seq_id = request.seq_id
        if seq_id is None:
            return  # it was put back for another one of this step
        start, n_draft = request.num_computed_tokens, 0
        room = min(self.n_batch - plan.n_tokens - n_after, self.n_ctx - start)
        tokens = request.tokens[start : start + room]  # more than one after forced ones
        end = start + len(tokens)
        if not (self.cache.reserve(seq_id, end) or self._make_room(plan, request, end)):
            return
        if request.draft:
            draft = request.draft[: room - len(tokens)]
            if self.cache.reserve(seq_id, end + len(draft)):
                n_draft = len(draft)
                tokens += draft
        plan.add(Chunk(request, seq_id, start, tokens, n_draft, end == len(request.tokens)))

    def _plan_prefill(self, plan: Plan, request: Request, n_most: int) -> int:
        start, seq_id = request.num_computed_tokens, self._seq(request)
        part = request.tokens[start : start + n_most]
        end = start + len(part)
        if not (self.cache.reserve(seq_id, end) or self._make_room(plan, request, end)):
            return 0
        plan.add(Chunk(request, seq_id, start, part, 0, end == len(request.tokens)))
        return len(part)

    def _make_room(self, plan: Plan, request: Request, n_tokens: int) -> bool:
        """Put others back for a request; False = it was put back itself."""
        while not self.cache.reserve(self._seq(request), n_tokens):
            victim = max(self.running, key=self._rank)
            plan.drop(victim)
            self._put_back(plan, victim)
            if victim is request:
                return False
        return True

    def _advance(self, chunk: Chunk, result: Result) -> None:
        """Note what was decoded and sampled."""
        request = chunk.request
        n_kept = len(chunk.tokens)
        if chunk.n_draft:
            n_kept -= chunk.n_draft - result.n_accepted
            request.stats.n_drafted += chunk.n_draft
            request.stats.n_accepted += result.n_accepted
        self.cache.append(chunk.seq_id, chunk.tokens)
        if n_kept < len(chunk.tokens):
            self.cache.truncate(chunk.seq_id, chunk.start + n_kept)
        request.num_computed_tokens = chunk.start + n_kept
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
        heapq.heappush(self._waiting, (*self._rank(request), request))

    def _rank(self, request: Request) -> tuple[float, int]:
        """Return the order of service: less is earlier. Waiting changes it for all alike."""
        return request.created_s / self.ageing_s - request.priority, request.number

    @staticmethod
    def _seq(request: Request) -> int:
        assert request.seq_id is not None
        return request.seq_id

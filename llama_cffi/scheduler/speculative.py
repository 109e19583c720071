"""Speculative decoding: guesses at the next tokens, verified by the model in one step.

Every token is still chosen by the request's own chain from the model's own logits; a guess only
decides whether the logits after it are there already. So the answers are what they would be
without (https://arxiv.org/abs/2211.17192 proves it for the general case).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ..binding import Batch, Context, Model
from ..errors import LlamaError, ValidationError
from ..generation.prompt import common_prefix_length
from ..validation import integer, real
from .mtp import MtpHead
from .request import Request, RequestState

if TYPE_CHECKING:
    from ..binding import Vocab

__all__ = ["DraftModel", "Drafter", "PromptLookup", "Speculator"]

_UNKNOWN_RATE = 0.6  # of right guesses, before there were any
_MEMORY = 0.8  # how much of the rate comes from earlier guesses
_WORTH = 0.35  # a guess is made while it is right so probably
_PROBE = 16  # steps after which a request without guesses gets one


class Drafter(Protocol):
    """Guesses which tokens come next.

    Attributes:
        n_draft: Most guesses at once.
    """

    n_draft: int

    def open(self, model: Model, n_parallel: int, n_ctx: int) -> None:
        """Get ready for the requests of a model.

        Args:
            model: The model that verifies.
            n_parallel: Most requests at once.
            n_ctx: Most tokens of one request.

        Raises:
            ValidationError: It cannot guess for this model.
        """

    def draft(self, requests: Sequence[Request], lengths: Sequence[int]) -> list[list[int]]:
        """Return guesses for each request, no more than its length; none is fine."""

    def forget(self, request: Request) -> None:
        """Note that a request has ended."""

    def close(self) -> None:
        """Free everything."""


class PromptLookup:
    """Guesses that what followed the last words before follows them again.

    Good for answers that repeat the prompt: summaries, edits, extraction. Costs nothing on a
    miss (https://github.com/apoorvumang/prompt-lookup-decoding).

    Args:
        n_draft: Most guesses at once.
        n_gram: Most tokens that have to be equal; the longest match counts.
        n_gram_min: And fewest.

    Raises:
        ValidationError: A number is out of range.
    """

    def __init__(self, n_draft: int = 10, n_gram: int = 3, n_gram_min: int = 2) -> None:
        self.n_draft = integer("n_draft", n_draft, 1, 64)
        self.n_gram_min = integer("n_gram_min", n_gram_min, 1, 16)
        self.n_gram = integer("n_gram", n_gram, self.n_gram_min, 16)
        self._seen: dict[Request, tuple[int, dict[tuple[int, ...], int]]] = {}

    def open(self, model: Model, n_parallel: int, n_ctx: int) -> None:
        """Do nothing; *model*, *n_parallel* and *n_ctx* do not matter."""

    def draft(self, requests: Sequence[Request], lengths: Sequence[int]) -> list[list[int]]:
        """Return what followed the last occurrence of the last tokens."""
        return [self._draft(r, n) for r, n in zip(requests, lengths, strict=True)]

    def forget(self, request: Request) -> None:
        """Drop its index."""
        self._seen.pop(request, None)

    def close(self) -> None:
        """Drop all indexes."""
        self._seen.clear()

    def _draft(self, request: Request, n: int) -> list[int]:
        tokens = request.tokens
        end, index = self._seen.get(request, (0, {}))
        found = -1
        # Ends of n-grams, without the last token: it is what is looked for.
        for at in range(max(end, self.n_gram_min), len(tokens)):
            for size in range(self.n_gram_min, min(self.n_gram, at) + 1):
                index[tuple(tokens[at - size : at])] = at
        self._seen[request] = len(tokens), index
        for size in range(min(self.n_gram, len(tokens) - 1), self.n_gram_min - 1, -1):
            found = index.get(tuple(tokens[-size:]), -1)
            if found >= 0:
                break
        return tokens[found : found + n] if found >= 0 else []


class DraftModel:
    """Guesses with a smaller model of the same vocabulary.

    Args:
        model_path: Its GGUF file, or a `Model`, which is then not closed.
        n_draft: Most guesses at once.
        p_min: Guesses end where the small model is less sure than that.
        n_threads: 0 = physical cores.
        n_gpu_layers: Layers on the GPU; -1 = all.

    Raises:
        ValidationError: A number is out of range.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str] | Model,
        n_draft: int = 8,
        p_min: float = 0.5,
        *,
        n_threads: int = 0,
        n_gpu_layers: int = -1,
    ) -> None:
        self.n_draft = integer("n_draft", n_draft, 1, 64)
        self.p_min = real("p_min", p_min, 0, 1)
        self._path, self._n_threads, self._n_gpu_layers = model_path, n_threads, n_gpu_layers
        self._model: Model | None = None
        self._context: Context
        self._batch: Batch
        self._held: list[list[int]] = []  # tokens of each sequence
        self._seq: dict[Request, int] = {}

    def open(self, model: Model, n_parallel: int, n_ctx: int) -> None:
        """Load the small model.

        Args:
            model: The model that verifies; the small one needs its vocabulary.
            n_parallel: Most requests at once.
            n_ctx: Most tokens of one request.

        Raises:
            ValidationError: Its vocabulary is another one, or its memory cannot go back.
            ModelLoadError: It cannot be loaded.
        """
        path = self._path
        small = path if isinstance(path, Model) else Model(path, n_gpu_layers=self._n_gpu_layers)
        self._model = small
        _check_vocab(small.vocab, model.vocab, small.path.name)
        check_goes_back(small)
        self._context = Context(
            small, n_ctx=n_ctx * n_parallel, n_seq_max=n_parallel, n_threads=self._n_threads
        )
        n_batch = max(n_parallel, self._context.n_batch)
        self._batch = Batch(n_batch, library=small.library)
        self._held = [[] for _ in range(n_parallel)]

    def draft(self, requests: Sequence[Request], lengths: Sequence[int]) -> list[list[int]]:
        """Return what the small model would say, greedily; all requests in one batch."""
        if not self._seq.keys() >= set(requests):  # who was put back may have to give way
            self._seq = {r: s for r, s in self._seq.items() if r in requests}
        drafts: list[list[int]] = [[] for _ in requests]
        rows = self._catch_up([(i, r) for i, r in enumerate(requests) if lengths[i]])
        while rows:
            going = []
            for i, row in rows:
                token = self._guess(row)
                if token is None:
                    continue
                drafts[i].append(token)
                if len(drafts[i]) < lengths[i]:
                    going.append((i, token))
            rows = self._advance(requests, going)
        return drafts

    def forget(self, request: Request) -> None:
        """Give its sequence to another one."""
        self._seq.pop(request, None)

    def close(self) -> None:
        """Free the small model, unless it was given."""
        self._seq.clear()
        if self._model is not None:
            if not isinstance(self._path, Model):
                self._model.close()
            self._model = None

    def _catch_up(self, requests: Sequence[tuple[int, Request]]) -> list[tuple[int, int]]:
        """Decode what is new of the requests; return where each one's last output is.

        What does not fit into one batch with the others waits for the next time.
        """
        tokens: list[int] = []
        positions: list[int] = []
        seq_ids: list[int] = []
        wanted = bytearray()
        rows = []
        for i, request in requests:
            seq_id = self._sequence(request)
            held = self._held[seq_id]
            n = min(common_prefix_length(held, request.tokens), len(request.tokens) - 1)
            if n < len(held):
                self._context.memory.seq_rm(seq_id, n)
                del held[n:]
            room = self._batch.n_tokens_max - len(tokens)
            new = request.tokens[n : n + room]
            if not new:
                continue
            tokens += new
            positions += range(n, n + len(new))
            seq_ids += [seq_id] * len(new)
            is_whole = n + len(new) == len(request.tokens)
            wanted += bytes(len(new) - 1) + bytes([is_whole])
            held += new
            if is_whole:
                rows.append((i, len(tokens) - 1))
        return rows if self._decode(tokens, positions, seq_ids, bytes(wanted)) else []

    def _advance(
        self, requests: Sequence[Request], going: Sequence[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """Decode a guess of each; return where each one's output is."""
        seq_ids = [self._seq[requests[i]] for i, _ in going]
        positions = [len(self._held[s]) for s in seq_ids]
        for (_, token), seq_id in zip(going, seq_ids, strict=True):
            self._held[seq_id].append(token)
        tokens = [token for _, token in going]
        if not self._decode(tokens, positions, seq_ids, b"\x01" * len(tokens)):
            return []
        return [(i, row) for row, (i, _) in enumerate(going)]

    def _decode(
        self, tokens: list[int], positions: list[int], seq_ids: list[int], wanted: bytes
    ) -> bool:
        if not tokens:
            return False
        self._batch.put(tokens, positions, seq_ids, wanted)
        try:
            self._context.decode(self._batch)
        except LlamaError:  # guesses are a favour: go on without
            for seq_id in set(seq_ids):
                self._context.memory.seq_rm(seq_id)
                self._held[seq_id].clear()
            return False
        return True

    def _guess(self, row: int) -> int | None:
        """Return the most probable token, if it is probable enough."""
        import numpy as np

        logits = self._context.logits(row, copy=False)
        token = int(logits.argmax())
        if self.p_min and 1 / np.exp(logits - logits[token]).sum() < self.p_min:
            return None
        return token

    def _sequence(self, request: Request) -> int:
        """Return the sequence of a request; a new one goes where most of it is."""
        if request not in self._seq:
            free = set(range(len(self._held))) - set(self._seq.values())
            tokens = request.tokens
            self._seq[request] = max(
                sorted(free), key=lambda s: common_prefix_length(self._held[s], tokens)
            )
        return self._seq[request]


class Speculator:
    """Asks a drafter for as many guesses as pay, request by request.

    The share of right guesses, an average that forgets, says how many are made: the last one has
    to be right with a probability of about a third. Where hardly any is right there are none, but
    for a probe now and then.

    Args:
        drafter: Guesses.
        model: Verifies.
        n_parallel: Most requests at once.
        n_ctx: Most tokens of one.

    Raises:
        ValidationError: The memory of the model cannot go back behind a wrong guess, or the
            drafter does not fit it.
    """

    def __init__(self, drafter: Drafter, model: Model, n_parallel: int, n_ctx: int) -> None:
        check_goes_back(model)
        if not all(callable(getattr(drafter, name, None)) for name in ("open", "draft", "close")):
            raise ValidationError(f"draft={drafter!r} is no drafter; give PromptLookup() or such")
        self._drafter = drafter
        self.observe = drafter.observe if isinstance(drafter, MtpHead) else None
        self._rates: dict[Request, _Rate] = {}
        try:
            drafter.open(model, n_parallel, n_ctx)
        except BaseException:
            drafter.close()
            raise

    def draft(self, requests: Sequence[Request]) -> None:
        """Put guesses into those that decode and wait for one token."""
        ready = [
            r
            for r in requests
            if r.state is RequestState.DECODING and len(r.tokens) == r.num_computed_tokens + 1
        ]
        if not ready:
            return
        lengths = []
        for request in ready:
            rate = self._rates.get(request)
            if rate is None:
                rate = self._rates[request] = _Rate()
            # The last token of the answer needs no guess.
            left = request.max_tokens - request.n_generated - 1
            most = left if request.n_draft is None else min(left, request.n_draft)
            lengths.append(max(0, min(rate.length(request), most, self._drafter.n_draft)))
        drafts = self._drafter.draft(ready, lengths)
        for request, draft in zip(ready, drafts, strict=True):
            request.draft = draft

    def forget(self, request: Request) -> None:
        """Note that a request has ended."""
        self._rates.pop(request, None)
        self._drafter.forget(request)

    def close(self) -> None:
        """Free the drafter."""
        self._drafter.close()


class _Rate:
    """How often the guesses for one request were right."""

    def __init__(self) -> None:
        self._rate = _UNKNOWN_RATE
        self._seen = (0, 0)
        self._steps = 0

    def length(self, request: Request) -> int:
        """Return how many guesses pay now."""
        stats = request.stats
        n_drafted, n_accepted = stats.n_drafted - self._seen[0], stats.n_accepted - self._seen[1]
        if n_drafted:
            self._seen = stats.n_drafted, stats.n_accepted
            # After the first wrong guess the others say nothing.
            n_tried = min(n_drafted, n_accepted + 1)
            share = _MEMORY**n_tried
            self._rate = share * self._rate + (1 - share) * n_accepted / n_tried
        self._steps += 1
        if self._rate < _WORTH:
            return int(self._steps % _PROBE == 0)
        return int(math.log(_WORTH) / math.log(min(self._rate, 0.98)))


def check_goes_back(model: Model) -> None:
    """Refuse a model whose memory cannot take back wrong guesses.

    Raises:
        ValidationError: It is recurrent, or looks through a sliding window.
    """
    if model.keeps_states or model.n_swa:
        raise ValidationError(
            f"{model.path.name}: speculative decoding has to take back wrong guesses, and the "
            "memory of recurrent models and sliding windows cannot; go on without"
        )


def _check_vocab(small: Vocab, large: Vocab, name: str) -> None:
    n = large.n_tokens
    if small.n_tokens != n or any(small.text(t) != large.text(t) for t in range(n)):
        raise ValidationError(
            f"the draft model {name} has another vocabulary ({small.n_tokens} tokens against "
            f"{large.n_tokens}); take a smaller model of the same family"
        )

"""Speculative decoding: draft tokens that the model verifies in one step.

Every token is still sampled by the chain of its request from the logits of the model. A draft token
only decides whether the logits after it are already computed. So answers do not change
(https://arxiv.org/abs/2211.17192 proves the general case).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ..binding import Batch, Context, Model
from ..errors import LlamaError, ValidationError
from ..generation.model_source import ModelSource, open_model
from ..generation.prompt import common_prefix_length
from ..validation import check_float, check_int
from .mtp import MtpHead
from .ngram_cache import NgramCache
from .request import Request, RequestState

if TYPE_CHECKING:
    from ..binding import Vocab

__all__ = ["DraftModel", "Drafter", "PromptLookup", "Speculator"]

_INITIAL_RATE = 0.6  # the acceptance rate assumed before the first draft
_DECAY = 0.8  # weight of the earlier rate, per draft token
_MIN_PROBABILITY = 0.35  # a token is drafted while its acceptance is at least as probable
_PROBE_STEPS = 16  # steps between the draft tokens of a request with a low rate


class Drafter(Protocol):
    """Drafts the next tokens of requests.

    Attributes:
        n_draft: Maximum number of draft tokens per step.
        reads_media: Whether it drafts for prompts with pictures or sounds, whose cells are negative
            in `Request.tokens`; if absent, it does not.
    """

    n_draft: int

    def open(self, model: Model, n_parallel: int, n_ctx: int) -> None:
        """Prepare for the requests of a model.

        Args:
            model: The model that verifies.
            n_parallel: Maximum number of running requests.
            n_ctx: Maximum number of tokens of one request.

        Raises:
            ValidationError: It cannot draft for this model.
        """

    def draft(self, requests: Sequence[Request], lengths: Sequence[int]) -> list[list[int]]:
        """Return up to *lengths* draft tokens per request; empty lists are allowed."""
        ...

    def forget(self, request: Request) -> None:
        """Forget a request that has ended."""

    def close(self) -> None:
        """Free everything."""


class PromptLookup:
    """Drafts what followed an earlier occurrence of the last tokens (prompt lookup decoding).

    Suits answers that repeat the prompt: summaries, edits, extraction. A miss costs nothing
    (https://github.com/apoorvumang/prompt-lookup-decoding).

    Args:
        n_draft: Maximum number of draft tokens per step.
        n_gram: Longest n-gram to match; longer matches win.
        n_gram_min: Shortest n-gram to match.
        cache: Drafts from earlier answers where the request itself has no match.
        learn: Whether answers are added to *cache* when they end.

    Raises:
        ValidationError: A number is out of range, or *cache* is not an `NgramCache`.
    """

    reads_media = True

    def __init__(
        self,
        n_draft: int = 10,
        n_gram: int = 3,
        n_gram_min: int = 2,
        cache: NgramCache | None = None,
        learn: bool = True,
    ) -> None:
        if cache is not None and not isinstance(cache, NgramCache):
            raise ValidationError(f"cache must be an NgramCache, got {cache!r}")
        self.cache, self.learn = cache, bool(learn)
        self._n_vocab = 0
        self.n_draft = check_int("n_draft", n_draft, 1, 64)
        self.n_gram_min = check_int("n_gram_min", n_gram_min, 1, 16)
        self.n_gram = check_int("n_gram", n_gram, self.n_gram_min, 16)
        self._seen: dict[Request, tuple[int, dict[tuple[int, ...], int]]] = {}

    def __repr__(self) -> str:
        return f"PromptLookup(n_draft={self.n_draft}, n_gram={self.n_gram})"

    def open(self, model: Model, n_parallel: int, n_ctx: int) -> None:
        """Draft tokens of *model* only; *n_parallel* and *n_ctx* are ignored."""
        self._n_vocab = model.vocab.n_tokens

    def draft(self, requests: Sequence[Request], lengths: Sequence[int]) -> list[list[int]]:
        """Return the tokens that followed the latest match, or that the cache has."""
        return [self._draft(r, n) for r, n in zip(requests, lengths, strict=True)]

    def forget(self, request: Request) -> None:
        """Drop the n-gram index of a request; its answer goes into the cache."""
        self._seen.pop(request, None)
        if self.cache is not None and self.learn:
            self.cache.update(request.tokens, request.n_generated)

    def close(self) -> None:
        """Drop all indices."""
        self._seen.clear()

    def _draft(self, request: Request, n: int) -> list[int]:
        tokens = request.tokens
        end, index = self._seen.get(request, (0, {}))
        found = -1
        # Index the ends of n-grams, except at the last token: that is the query.
        for at in range(max(end, self.n_gram_min), len(tokens)):
            for size in range(self.n_gram_min, min(self.n_gram, at) + 1):
                index[tuple(tokens[at - size : at])] = at
        self._seen[request] = len(tokens), index
        for size in range(min(self.n_gram, len(tokens) - 1), self.n_gram_min - 1, -1):
            found = index.get(tuple(tokens[-size:]), -1)
            if found >= 0:
                break
        if found >= 0:
            return [*itertools.takewhile(lambda token: token >= 0, tokens[found : found + n])]
        if self.cache is None:
            return []
        drafted = self.cache.draft(tokens, n)
        # A cache of another model may have tokens that this one lacks, which C would not survive.
        return [*itertools.takewhile(lambda token: token < self._n_vocab, drafted)]


class DraftModel:
    """Drafts with a smaller model of the same vocabulary.

    Args:
        model_path: A GGUF file, `hf:owner/repo:file`, or a `Model`, which stays open at the end.
        n_draft: Maximum number of draft tokens per step.
        p_min: A draft ends before a token of lower probability.
        n_threads: CPU threads; 0 = the number of physical cores.
        n_gpu_layers: Layers on the GPU; -1 = all.

    Raises:
        ValidationError: A number is out of range.
    """

    def __init__(
        self,
        model_path: ModelSource,
        n_draft: int = 8,
        p_min: float = 0.5,
        *,
        n_threads: int = 0,
        n_gpu_layers: int = -1,
    ) -> None:
        self.n_draft = check_int("n_draft", n_draft, 1, 64)
        self.p_min = check_float("p_min", p_min, 0, 1)
        self._path, self._n_threads, self._n_gpu_layers = model_path, n_threads, n_gpu_layers
        self._model: Model | None = None
        self._context: Context
        self._batch: Batch
        self._held: list[list[int]] = []  # tokens of each sequence
        self._seq: dict[Request, int] = {}

    @property
    def model_path(self) -> ModelSource:
        """The model, as it was given."""
        return self._path

    @property
    def n_gpu_layers(self) -> int:
        """Layers on the GPU."""
        return self._n_gpu_layers

    def __repr__(self) -> str:
        state = "" if self._model is None else ", in use"
        return f"DraftModel({str(self._path)!r}, n_draft={self.n_draft}{state})"

    def open(self, model: Model, n_parallel: int, n_ctx: int) -> None:
        """Load the draft model.

        Args:
            model: The model that verifies; the draft model needs the same vocabulary.
            n_parallel: Maximum number of running requests.
            n_ctx: Maximum number of tokens of one request.

        Raises:
            ValidationError: The vocabularies differ, or the memory cannot remove rejected tokens.
            ModelLoadError: The draft model cannot be loaded.
        """
        small, self._owns_model = open_model(self._path, n_gpu_layers=self._n_gpu_layers)
        self._model = small
        _check_vocab(small.vocab, model.vocab, small.path.name)
        check_truncates(small)
        self._context = Context(
            small, n_ctx=n_ctx * n_parallel, n_seq_max=n_parallel, n_threads=self._n_threads
        )
        n_batch = max(n_parallel, self._context.n_batch)
        self._batch = Batch(n_batch, library=small.library)
        self._held = [[] for _ in range(n_parallel)]

    def draft(self, requests: Sequence[Request], lengths: Sequence[int]) -> list[list[int]]:
        """Draft greedily with the small model, all requests in one batch."""
        if not self._seq.keys() >= set(requests):  # a preempted one may lose its sequence
            self._seq = {r: s for r, s in self._seq.items() if r in requests}
        drafts: list[list[int]] = [[] for _ in requests]
        rows = self._catch_up([(i, r) for i, r in enumerate(requests) if lengths[i]])
        while rows:
            continuing = []
            for i, row in rows:
                token = self._next_token(row)
                if token is None:
                    continue
                drafts[i].append(token)
                if len(drafts[i]) < lengths[i]:
                    continuing.append((i, token))
            rows = self._advance(requests, continuing)
        return drafts

    def forget(self, request: Request) -> None:
        """Free the sequence of a request."""
        self._seq.pop(request, None)

    def close(self) -> None:
        """Free the draft model, unless the caller owns it."""
        self._seq.clear()
        if self._model is not None:
            if self._owns_model:
                self._model.close()
            self._model = None

    def _catch_up(self, requests: Sequence[tuple[int, Request]]) -> list[tuple[int, int]]:
        """Decode the new tokens of the requests; return the row of each one's last output.

        Tokens that do not fit into one batch are decoded next time.
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
            n_free = self._batch.n_tokens_max - len(tokens)
            new = request.tokens[n : n + n_free]
            if not new:
                continue
            tokens += new
            positions += request.positions(n, n + len(new))
            seq_ids += [seq_id] * len(new)
            is_whole = n + len(new) == len(request.tokens)
            wanted += bytes(len(new) - 1) + bytes([is_whole])
            held += new
            if is_whole:
                rows.append((i, len(tokens) - 1))
        return rows if self._decode(tokens, positions, seq_ids, bytes(wanted)) else []

    def _advance(
        self, requests: Sequence[Request], drafted: Sequence[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """Decode a draft token of each request; return the row of each one's output."""
        tokens: list[int] = []
        positions: list[int] = []
        seq_ids: list[int] = []
        for i, token in drafted:
            request = requests[i]
            seq_id = self._seq[request]
            n = len(self._held[seq_id])
            tokens.append(token)
            positions += request.positions(n, n + 1)
            seq_ids.append(seq_id)
            self._held[seq_id].append(token)
        if not self._decode(tokens, positions, seq_ids, b"\x01" * len(tokens)):
            return []
        return [(i, row) for row, (i, _) in enumerate(drafted)]

    def _decode(
        self, tokens: list[int], positions: list[int], seq_ids: list[int], wanted: bytes
    ) -> bool:
        if not tokens:
            return False
        self._batch.put(tokens, positions, seq_ids, wanted)
        try:
            self._context.decode(self._batch)
        except LlamaError:  # drafts are optional
            for seq_id in set(seq_ids):
                self._context.memory.seq_rm(seq_id)
                self._held[seq_id].clear()
            return False
        return True

    def _next_token(self, row: int) -> int | None:
        """Return the most probable token, or None if its probability is below `p_min`."""
        import numpy as np

        logits = self._context.logits(row, copy=False)
        token = int(logits.argmax())
        if self.p_min and 1 / np.exp(logits - logits[token]).sum() < self.p_min:
            return None
        return token

    def _sequence(self, request: Request) -> int:
        """Return the sequence of a request; a new one gets that with the longest common prefix."""
        if request not in self._seq:
            free = set(range(len(self._held))) - set(self._seq.values())
            tokens = request.tokens
            self._seq[request] = max(
                sorted(free), key=lambda s: common_prefix_length(self._held[s], tokens)
            )
        return self._seq[request]


class Speculator:
    """Chooses the number of draft tokens of each request and has them drafted.

    A moving average of the acceptance rate decides: the last draft token should be accepted with a
    probability of about a third. Requests with a low rate get no draft tokens, except for an
    occasional probe.

    Args:
        drafter: Drafts.
        model: Verifies.
        n_parallel: Maximum number of running requests.
        n_ctx: Maximum number of tokens of one request.

    Raises:
        ValidationError: The memory of the model cannot remove rejected tokens, or the drafter does
            not support the model.
    """

    def __init__(self, drafter: Drafter, model: Model, n_parallel: int, n_ctx: int) -> None:
        check_truncates(model)
        if not all(callable(getattr(drafter, name, None)) for name in ("open", "draft", "close")):
            raise ValidationError(
                f"draft must be a drafter such as PromptLookup(), got {drafter!r}"
            )
        self._drafter, self._reads_media = drafter, getattr(drafter, "reads_media", False)
        self.observe = drafter.observe if isinstance(drafter, MtpHead) else None
        self._rates: dict[Request, _Rate] = {}
        try:
            drafter.open(model, n_parallel, n_ctx)
        except BaseException:
            drafter.close()
            raise

    def draft(self, requests: Sequence[Request]) -> None:
        """Set the draft tokens of the decoding requests that need one new token."""
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
            # The last token of the answer needs no draft.
            left = request.max_tokens - request.n_generated - 1
            most = left if request.n_draft is None else min(left, request.n_draft)
            if request.tokens.media and not self._reads_media:
                most = 0
            lengths.append(max(0, min(rate.length(request), most, self._drafter.n_draft)))
        drafts = self._drafter.draft(ready, lengths)
        for request, draft in zip(ready, drafts, strict=True):
            request.draft = draft

    def forget(self, request: Request) -> None:
        """Forget a request that has ended."""
        self._rates.pop(request, None)
        self._drafter.forget(request)

    def close(self) -> None:
        """Close the drafter."""
        self._drafter.close()


class _Rate:
    """The acceptance rate of one request, a moving average."""

    def __init__(self) -> None:
        self._rate = _INITIAL_RATE
        self._seen = (0, 0)
        self._steps = 0

    def length(self, request: Request) -> int:
        """Return the number of tokens to draft now."""
        stats = request.stats
        n_drafted, n_accepted = stats.n_drafted - self._seen[0], stats.n_accepted - self._seen[1]
        if n_drafted:
            self._seen = stats.n_drafted, stats.n_accepted
            # Tokens after the first rejected one were not tried.
            n_tried = min(n_drafted, n_accepted + 1)
            share = _DECAY**n_tried
            self._rate = share * self._rate + (1 - share) * n_accepted / n_tried
        self._steps += 1
        if self._rate < _MIN_PROBABILITY:
            return int(self._steps % _PROBE_STEPS == 0)
        return int(math.log(_MIN_PROBABILITY) / math.log(min(self._rate, 0.98)))


def check_truncates(model: Model) -> None:
    """Refuse a model whose memory cannot remove rejected draft tokens.

    Raises:
        ValidationError: It is recurrent, or has a sliding window.
    """
    if model.keeps_states or model.n_swa:
        raise ValidationError(
            f"{model.path.name}: speculative decoding must remove rejected draft tokens, which the "
            "memory of recurrent models and sliding windows cannot; use draft=None"
        )


def _check_vocab(small: Vocab, large: Vocab, name: str) -> None:
    n = large.n_tokens
    if small.n_tokens != n or any(small.text(t) != large.text(t) for t in range(n)):
        raise ValidationError(
            f"the draft model {name} has a different vocabulary ({small.n_tokens} tokens, not "
            f"{large.n_tokens}); use a smaller model of the same family"
        )

"""Embeddings of any number of strings of any length, and the scores of rerankers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..binding import Batch, Context, Model
from ..errors import CancelledError, ContextOverflowError, ValidationError
from ..generation.model_source import ModelOptions, ModelSource, open_model
from ..progress import Progress, reporting
from ..validation import as_list, check_int, checked_arguments, not_picklable
from .resizable_context import ResizableContext
from .wordpiece import WordPiece

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["Embedder", "EmbedderStats", "Embeddings", "RerankResult", "similarity"]

Embeddings = NDArray[np.float32] | list[NDArray[np.float32]]

_MAX_SEQUENCES = 64  # every build supports as many in one context
_TEXTS = 'a list of str, such as ["text"]'
_RERANK_TEMPLATE = "tokenizer.chat_template.rerank"


@dataclass(frozen=True)
class RerankResult:
    """How well a document answers a query.

    Attributes:
        index: Index of the document in the list that was given.
        score: The raw score of the model's head; larger is better, the scale is the model's.
        document: The document.
    """

    index: int
    score: float
    document: str


class EmbedderStats(NamedTuple):
    """Counts so far, of embeddings and of pairs that were scored.

    Attributes:
        n_inputs: Inputs.
        n_tokens: Tokens of the inputs.
        n_reused: Tokens of inputs that were given more than once, and computed once.
        n_steps: Computed batches.
        n_step_inputs: Inputs in each batch, added up.
        seconds: Time of computing.
    """

    n_inputs: int = 0
    n_tokens: int = 0
    n_reused: int = 0
    n_steps: int = 0
    n_step_inputs: int = 0
    seconds: float = 0.0


class Embedder:
    """Computes embeddings with any kind of model: encoders (BERT, T5) and decoders.

    Several inputs are computed in one batch. The context grows for an input that is longer, up to
    the model's training length. Any thread may call it; calls run one at a time.

    Args:
        model: A GGUF file, `hf:owner/repo:file`, or a loaded `Model`, which stays open at the end.
        pooling: How the embeddings of the tokens are combined: `mean`, `cls` (the first), `last`,
            `rank` (the scores of a reranker) or `none`; None = the model's own, which is `none`
            for most decoders.
        n_ctx: Tokens of a batch; grows for a longer input.
        n_threads: Number of threads; 0 = physical cores.
        **options: Arguments of `Model` as `Llama` takes them, such as `n_gpu_layers`; a loaded
            model keeps its own.

    Attributes:
        model: The model.
        owns_model: Whether `close` frees the model, too; False where one was given.
        pooling: The pooling in use.
        n_tokens_max: Most tokens of one input.
        stats: Counts so far.

    Raises:
        ModelLoadError: The model cannot be loaded.
        ValidationError: The model has no embeddings, or does not support this pooling.
        LlamaError: There is not enough memory.
    """

    @checked_arguments(ModelOptions.__annotations__)
    def __init__(
        self,
        model: ModelSource,
        *,
        pooling: str | None = None,
        n_ctx: int = 512,
        n_threads: int = 0,
        **options: Unpack[ModelOptions],
    ) -> None:
        self._n_ctx = check_int("n_ctx", n_ctx, 1)
        self._closed = False
        self.stats = EmbedderStats()
        self.model, self.owns_model = open_model(model, **options)
        try:
            self._open(pooling, n_threads)
        except BaseException:
            if self.owns_model:
                self.model.close()
            raise

    def _open(self, pooling: str | None, n_threads: int) -> None:
        model = self.model
        # A small first context finds options that the model does not support.
        self._context = ResizableContext(
            partial(_create_context, model, pooling, n_threads),
            lambda context: context.n_ubatch,
            min(self._n_ctx, 32),
            1,
        )
        self.pooling = self._context.current.pooling
        self._tokenizer = WordPiece(model) if model.vocab.type == "wpm" else model.vocab
        n_positions = self._context.current.kind.n_positions
        self.n_tokens_max = min(model.n_ctx_train, n_positions or model.n_ctx_train)

    def close(self) -> None:
        """Free the context, and a model that was opened here. A second call does nothing."""
        self._closed = True
        self._context.close()
        if self.owns_model:
            self.model.close()

    __reduce__ = not_picklable(
        "pass the model's path to the other process and open it there; threads can share it"
    )

    def __repr__(self) -> str:
        closed = " closed" if self._closed else ""
        facts = f"pooling={self.pooling} n_tokens_max={self.n_tokens_max}"
        return f"<Embedder {self.model.path.name} {facts}{closed}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def embed(
        self,
        texts: Sequence[str | Sequence[int]],
        *,
        normalize: bool = True,
        truncate: bool = False,
        progress: Progress = None,
    ) -> Embeddings:
        """Return the embeddings of *texts*, in order.

        Shapes: (len(texts), n_embd) float32; with pooling `rank` (len(texts), number of classes);
        with pooling `none` a list of (tokens of the input, n_embd).

        Args:
            texts: Any number of strings of any length, or of lists of token ids, including
                special ones. The empty string consists of the special tokens that the model adds,
                else of BOS or EOS.
            normalize: Scale every embedding to length 1, except zeros; scores are not scaled.
            truncate: Cut inputs to `n_tokens_max` tokens, keeping the final special token.
            progress: True shows a bar; a function is called with 0.0 to 1.0 and may return False
                to stop.

        Raises:
            ContextOverflowError: An input is longer than the model supports, without *truncate*.
            ValidationError: *texts* is a str instead of a list, an item is neither a str nor a
                list of tokens, a list is empty, or a token does not exist.
            CancelledError: *progress* returned False.
            LlamaError: There is not enough memory.
        """
        tokens = [
            self._tokenize(text) if isinstance(text, str) else text
            for text in as_list("texts", texts, _TEXTS)
        ]
        return self.embed_tokens(tokens, normalize=normalize, truncate=truncate, progress=progress)

    def embed_tokens(
        self,
        texts: Sequence[Sequence[int]],
        *,
        normalize: bool = True,
        truncate: bool = False,
        progress: Progress = None,
    ) -> Embeddings:
        """Do `embed` with token ids, including special ones; at least one per input.

        Raises:
            ValidationError: Also if an input is empty, or a token does not exist.
        """
        check = self.model.vocab.check_all
        lists = [
            as_list(f"text {i}", item, "a str or a list of token ids")
            for i, item in enumerate(as_list("texts", texts, _TEXTS))
        ]
        inputs = [
            self._truncated(f"text {i}", tuple(check(tokens)), truncate)
            for i, tokens in enumerate(lists)
        ]
        vectors = self._compute(inputs, progress)
        if normalize and self.pooling != "rank":
            vectors = {tokens: _normalized(found) for tokens, found in vectors.items()}
        if self.pooling == "none":
            return [vectors[tokens].copy() for tokens in inputs]
        if not inputs:
            rank = self.pooling == "rank"
            width = self.model.n_cls_out if rank else self.model.n_embd_out
            return np.empty((0, width), np.float32)
        return np.stack([vectors[tokens] for tokens in inputs])

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        truncate: bool = False,
        progress: Progress = None,
    ) -> list[RerankResult]:
        """Return *documents* sorted by how well they answer *query*, best first.

        Query and document are joined as the model requires: by the `rerank` template in its GGUF,
        else as `[CLS] query [SEP] document [SEP]` for WordPiece vocabularies, else with BOS, EOS
        and SEP where the vocabulary adds them. Names of special tokens in the strings are not
        parsed. The score is the first class of the model's head.

        Args:
            query: The question.
            documents: Any number of strings.
            top_n: Number of results to return; None = all.
            truncate: Cut documents that are too long together with the query.
            progress: As for `embed`.

        Raises:
            ValidationError: The model is not a reranker, this embedder uses another pooling, or
                the model does not specify how query and document are joined.
            ContextOverflowError: A pair is longer than the model supports.
        """
        if self.pooling != "rank":
            raise ValidationError(
                f"this embedder has pooling={self.pooling!r}; rerank needs a model with a "
                "classification head (cls.*) and Embedder(model, pooling='rank')"
            )
        documents = as_list("documents", documents, _TEXTS)
        n = len(documents) if top_n is None else check_int("top_n", top_n, 0)
        pairs = [self._pair(query, i, document, truncate) for i, document in enumerate(documents)]
        scores = self._compute(pairs, progress)
        results = [
            RerankResult(i, float(scores[pair][0]), document)
            for i, (pair, document) in enumerate(zip(pairs, documents, strict=True))
        ]
        return sorted(results, key=lambda r: -r.score)[:n]

    def _tokenize(self, text: str) -> list[int]:
        tokens = self._tokenizer.tokenize(text)
        if not tokens:
            vocab = self.model.vocab
            token = vocab.bos if vocab.bos is not None else vocab.eos
            if token is None:
                raise ValidationError(
                    "the empty string has no tokens, since the model has neither BOS nor EOS"
                )
            tokens = [token]
        return tokens

    def _truncated(self, name: str, tokens: tuple[int, ...], truncate: bool) -> tuple[int, ...]:
        """Return *tokens*, cut to what the model supports if *truncate* allows it."""
        if not tokens:
            raise ValidationError(f"{name} has no token")
        excess = len(tokens) - self.n_tokens_max
        if excess <= 0:
            return tokens
        if not truncate:
            raise ContextOverflowError(
                f"{name} has {len(tokens)} tokens and the model supports {self.n_tokens_max}; "
                "split it, or pass truncate=True",
                n_tokens=len(tokens),
                n_ctx=self.n_tokens_max,
            )
        vocab = self.model.vocab
        end = tokens[-1:] if tokens[-1] in (vocab.eos, vocab.sep) else ()
        return (*tokens[: self.n_tokens_max - len(end)], *end)

    def _pair(self, query: str, i: int, document: str, truncate: bool) -> tuple[int, ...]:
        """Join query and document as the model requires."""
        vocab = self.model.vocab
        template = self.model.metadata.get(_RERANK_TEMPLATE)
        if template is not None:
            before, between, after = _split_template(template)
            joined = f"{before}{query}{between}{document}{after}"
            if not (self._names_special(query) or self._names_special(document)):
                tokens = vocab.tokenize(joined, add_special=False, parse_special=True)
                if len(tokens) <= self.n_tokens_max:
                    return tuple(tokens)
            parts = [
                vocab.tokenize(part, add_special=False, parse_special=True)
                for part in (before, between, after)
            ]
        else:
            parts = _separators(self.model)
        query_tokens, tokens = (
            self._tokenizer.tokenize(text, add_special=False) for text in (query, document)
        )
        head, tail = [*parts[0], *query_tokens, *parts[1]], parts[2]
        n_left = self.n_tokens_max - len(head) - len(tail)
        if n_left < len(tokens) and not (truncate and n_left > 0):
            raise ContextOverflowError(
                f"document {i} has {len(tokens)} tokens and the query with its separators "
                f"{len(head) + len(tail)}; the model supports {self.n_tokens_max}. Split the "
                "document, or pass truncate=True",
                n_tokens=len(head) + len(tokens) + len(tail),
                n_ctx=self.n_tokens_max,
            )
        return (*head, *tokens[:n_left], *tail)

    def _names_special(self, text: str) -> bool:
        vocab = self.model.vocab
        plain, parsed = (vocab.tokenize(text, False, special) for special in (False, True))
        return plain != parsed

    def _compute(
        self, inputs: Sequence[tuple[int, ...]], progress: Progress
    ) -> dict[tuple[int, ...], NDArray[np.float32]]:
        """Return C's result for each distinct input: one vector, or one for each token."""
        found: dict[tuple[int, ...], NDArray[np.float32]] = {}
        given = Counter(inputs)
        distinct = list(given)
        if not distinct:
            return found
        # C splits the sequences of a recurrent model into parts of equal length, and pools each.
        n_seqs = 1 if self.model.keeps_states else min(len(distinct), _MAX_SEQUENCES)
        total, longest = sum(map(len, distinct)), max(map(len, distinct))
        n_tokens = max(longest, min(total, self._n_ctx))
        with (
            self._context.use(n_tokens, min(n_seqs, n_tokens)) as context,
            reporting(progress, "embedding") as report,
        ):
            batch = Batch(context.n_ubatch, library=self.model.library)
            for group in _batches(distinct, context.n_ubatch, n_seqs):
                started = time.perf_counter()
                found |= self._run(context, batch, group)
                self._count(group, given, time.perf_counter() - started)
                if not report(len(found) / len(distinct)):
                    raise CancelledError(
                        f"progress stopped it after {len(found)} of {len(distinct)} texts"
                    )
        return found

    def _count(
        self, group: Sequence[tuple[int, ...]], given: Counter[tuple[int, ...]], seconds: float
    ) -> None:
        """Count a batch; the context is in use by this thread only."""
        old = self.stats
        n_tokens = sum(len(tokens) * given[tokens] for tokens in group)
        self.stats = EmbedderStats(
            old.n_inputs + sum(given[tokens] for tokens in group),
            old.n_tokens + n_tokens,
            old.n_reused + n_tokens - sum(map(len, group)),
            old.n_steps + 1,
            old.n_step_inputs + len(group),
            old.seconds + seconds,
        )

    def _run(
        self, context: Context, batch: Batch, group: Sequence[tuple[int, ...]]
    ) -> dict[tuple[int, ...], NDArray[np.float32]]:
        batch.clear()
        first = []
        for seq_id, tokens in enumerate(group):
            first.append(len(batch))
            for pos, token in enumerate(tokens):
                batch.add(token, pos, (seq_id,), True)
        context.memory.clear(data=False)
        (context.encode if context.kind.has_encoder else context.decode)(batch)
        if self.pooling != "none":
            return {t: context.sequence_embedding(s) for s, t in enumerate(group)}
        return {
            tokens: np.stack([context.embedding(start + i, copy=False) for i in range(len(tokens))])
            for start, tokens in zip(first, group, strict=True)
        }


def similarity(a: ArrayLike, b: ArrayLike) -> NDArray[np.float32]:
    """Return the cosine similarity of each vector of *a* with each of *b*; 0 for a zero vector.

    Shapes: (n, width) and (m, width) give (n, m) float32; a vector (width,) adds no axis.

    Raises:
        ValidationError: The widths differ, or an array has more than two axes.
    """
    x, y = (np.asarray(v, np.float32) for v in (a, b))
    if not (x.ndim in (1, 2) and y.ndim in (1, 2) and x.shape[-1] == y.shape[-1]):
        raise ValidationError(
            f"arrays must have the shapes (n, width) and (m, width), got {x.shape} and {y.shape}"
        )
    return np.asarray(_normalized(x) @ _normalized(y).T, np.float32)


def _normalized(x: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.asarray(x / np.where(length > 0, length, 1), np.float32)


def _batches(
    inputs: Sequence[tuple[int, ...]], n_tokens: int, n_seqs: int
) -> Iterator[list[tuple[int, ...]]]:
    """Yield groups of inputs, in order, that fit into one batch."""
    group: list[tuple[int, ...]] = []
    used = 0
    for tokens in inputs:
        if group and (len(group) == n_seqs or used + len(tokens) > n_tokens):
            yield group
            group, used = [], 0
        group.append(tokens)
        used += len(tokens)
    yield group


def _split_template(template: str) -> tuple[str, str, str]:
    before, found, rest = template.partition("{query}")
    between, found_too, after = rest.partition("{document}")
    if not (found and found_too):
        raise ValidationError(
            f"the model's template {_RERANK_TEMPLATE} has no {{query}} before a {{document}}: "
            f"{template!r}"
        )
    return before, between, after


def _separators(model: Model) -> list[list[int]]:
    """Return the tokens before the query, between query and document, and after both."""
    vocab = model.vocab
    if vocab.type == "wpm":
        cls, sep = vocab.tokenize("")
        return [[cls], [sep], [sep]]
    eos = vocab.eos if vocab.eos is not None else vocab.sep
    end = [eos] if vocab.add_eos and eos is not None else []
    sep_too = vocab.add_sep or model.gguf.values.get("tokenizer.ggml.add_sep_token") is True
    between = [*end, *([vocab.sep] if sep_too and vocab.sep is not None else [])]
    if not between:
        raise ValidationError(
            f"{model.path.name} does not specify how query and document are joined: it has no "
            f"{_RERANK_TEMPLATE}, and its vocabulary adds neither EOS nor SEP"
        )
    return [[vocab.bos] if vocab.add_bos and vocab.bos is not None else [], between, end]


def _create_context(
    model: Model, pooling: str | None, n_threads: int, n_tokens: int, n_seqs: int
) -> Context:
    n_tokens += -n_tokens % n_seqs  # C divides its buffers among the sequences
    return Context(
        model,
        n_ctx=n_tokens,
        n_batch=n_tokens,
        n_ubatch=n_tokens,  # pooling needs a whole sequence in one ubatch
        n_seq_max=n_seqs,
        n_threads=n_threads,
        embeddings=True,
        pooling=pooling,
        kv_unified=True,
    )

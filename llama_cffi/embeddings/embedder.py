"""Embeddings of any number of texts of any length, and the scores of rerankers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..binding import Batch, Context, Model
from ..errors import CancelledError, ContextOverflowError, ValidationError
from ..progress import Progress, reporting
from ..validation import integer
from .resizable_context import GrowingContext
from .wordpiece import WordPiece

__all__ = ["Embedder", "Embeddings", "RerankResult", "similarity"]

Embeddings = NDArray[np.float32] | list[NDArray[np.float32]]

T = TypeVar("T")

_MAX_SEQUENCES = 64  # what every build takes in one context
_RERANK_TEMPLATE = "tokenizer.chat_template.rerank"


@dataclass(frozen=True)
class RerankResult:
    """How well a document answers a query.

    Attributes:
        index: Where the document is in the list that was given.
        score: What the model's head says of it, larger is better; its scale is the model's.
        document: The document.
    """

    index: int
    score: float
    document: str


class Embedder(GrowingContext):
    """Turns texts into vectors with any kind of model: encoders (BERT, T5) and decoders.

    Several texts are computed in one batch; a longer text than the context makes it larger, up to
    the model's own length. Any thread may call it; calls queue.

    Args:
        model: Closes this embedder's context when it closes.
        pooling: How the vectors of a text's tokens become one: `mean`, `cls` (the first), `last`,
            `rank` (the scores of a reranker) or `none`; None = what the model says, and `none`
            where it says nothing, as most decoders do.
        n_ctx: Tokens of a batch; a longer text makes it larger.
        n_threads: 0 = physical cores.

    Attributes:
        pooling: The pooling that is done.
        n_tokens_max: Most tokens of one text.

    Raises:
        ValidationError: The model has no embeddings, or cannot do this pooling.
        LlamaError: There is not enough memory.
    """

    def __init__(
        self, model: Model, *, pooling: str | None = None, n_ctx: int = 512, n_threads: int = 0
    ) -> None:
        self.model = model
        self._n_ctx = integer("n_ctx", n_ctx, 1)
        self._wanted_pooling, self._n_threads = pooling, n_threads
        super().__init__(min(self._n_ctx, 32), 1)  # finds what does not go together
        kind = self._context.kind
        self.pooling = self._context.pooling
        self._tokenizer = WordPiece(model) if model.vocab.type == "wpm" else model.vocab
        self.n_tokens_max = min(model.n_ctx_train, kind.n_positions or model.n_ctx_train)

    def embed(
        self,
        texts: Sequence[str],
        *,
        normalize: bool = True,
        truncate: bool = False,
        progress: Progress = None,
    ) -> Embeddings:
        """Return the vectors of *texts*, in their order.

        Shapes: (len(texts), n_embd) float32; with pooling `rank` (len(texts), number of classes);
        with pooling `none` a list of (tokens of the text, n_embd).

        Args:
            texts: Any number, of any length; the empty text has the special tokens that the model
                puts around a text, else its BOS or EOS.
            normalize: Give every vector the length 1 (one of zeros stays); scores stay as they are.
            truncate: Cut what is longer than `n_tokens_max`; the token that ends a text stays.
            progress: True shows a bar; a function is called with 0.0 to 1.0, False from it stops.

        Raises:
            ContextOverflowError: A text is longer than the model takes, without *truncate*.
            ValidationError: *texts* is one text, or one of them is no text.
            CancelledError: *progress* returned False.
            LlamaError: There is not enough memory.
        """
        tokens = [self._tokenize(text) for text in _several("texts", texts)]
        return self.embed_tokens(tokens, normalize=normalize, truncate=truncate, progress=progress)

    def embed_tokens(
        self,
        texts: Sequence[Sequence[int]],
        *,
        normalize: bool = True,
        truncate: bool = False,
        progress: Progress = None,
    ) -> Embeddings:
        """Do `embed` with token ids, special ones included; each text has at least one.

        Raises:
            ValidationError: Also when a text has no token, or one that the model does not have.
        """
        check = self.model.vocab.check_all
        several = [_several("a text of texts", text) for text in _several("texts", texts)]
        tokens = [tuple(check(text)) for text in several]
        fitting = [self._fit(f"text {i}", text, truncate) for i, text in enumerate(tokens)]
        rows = self._compute(fitting, progress)
        if normalize and self.pooling != "rank":
            rows = {text: _unit(found) for text, found in rows.items()}
        if self.pooling == "none":
            return [rows[text].copy() for text in fitting]
        if not fitting:
            rank = self.pooling == "rank"
            width = self.model.n_cls_out if rank else self.model.n_embd_out
            return np.empty((0, width), np.float32)
        return np.stack([rows[text] for text in fitting])

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        truncate: bool = False,
        progress: Progress = None,
    ) -> list[RerankResult]:
        """Return *documents* by how well they answer *query*, the best first.

        Query and document are joined as the model says: by the template `rerank` in its GGUF, else
        `[CLS] query [SEP] document [SEP]` for WordPiece vocabularies, else BOS, EOS and SEP where
        the vocabulary puts them. The names of special tokens in a text stay text. The score is the
        first class of the model's head.

        Args:
            query: What is asked.
            documents: Any number.
            top_n: Return so many; None = all.
            truncate: Cut the ends of documents that are too long with the query.
            progress: As for `embed`.

        Raises:
            ValidationError: The model is no reranker, this embedder does another pooling, or the
                model does not say how the two are joined.
            ContextOverflowError: A pair is longer than the model takes.
        """
        if self.pooling != "rank":
            raise ValidationError(
                f"this embedder does pooling={self.pooling!r}; rerank needs a model with a "
                "classification head (cls.*) and Embedder(model, pooling='rank')"
            )
        documents = _several("documents", documents)
        n = len(documents) if top_n is None else integer("top_n", top_n, 0)
        pairs = [self._pair(query, i, document, truncate) for i, document in enumerate(documents)]
        rows = self._compute(pairs, progress)
        results = [
            RerankResult(i, float(rows[pair][0]), document)
            for i, (pair, document) in enumerate(zip(pairs, documents, strict=True))
        ]
        return sorted(results, key=lambda r: -r.score)[:n]

    def _make(self, n_tokens: int, n_seqs: int) -> Context:
        n_tokens += -n_tokens % n_seqs  # C cuts its buffers into as many parts
        return Context(
            self.model,
            n_ctx=n_tokens,
            n_batch=n_tokens,
            n_ubatch=n_tokens,  # what is pooled is computed at once
            n_seq_max=n_seqs,
            n_threads=self._n_threads,
            embeddings=True,
            pooling=self._wanted_pooling,
            kv_unified=True,
        )

    def _room(self, context: Context) -> int:
        return context.n_ubatch

    def _tokenize(self, text: str) -> list[int]:
        tokens = self._tokenizer.tokenize(text)
        if not tokens:
            vocab = self.model.vocab
            alone = vocab.bos if vocab.bos is not None else vocab.eos
            if alone is None:
                raise ValidationError("the empty text has no token: the model has no BOS or EOS")
            tokens = [alone]
        return tokens

    def _fit(self, name: str, tokens: tuple[int, ...], truncate: bool) -> tuple[int, ...]:
        """Return *tokens*, cut where they are too many and may be cut."""
        if not tokens:
            raise ValidationError(f"{name} has no token")
        excess = len(tokens) - self.n_tokens_max
        if excess <= 0:
            return tokens
        if not truncate:
            raise ContextOverflowError(
                f"{name} has {len(tokens)} tokens and the model takes {self.n_tokens_max}; split "
                "it, or pass truncate=True"
            )
        vocab = self.model.vocab
        end = tokens[-1:] if tokens[-1] in (vocab.eos, vocab.sep) else ()
        return (*tokens[: self.n_tokens_max - len(end)], *end)

    def _pair(self, query: str, i: int, document: str, truncate: bool) -> tuple[int, ...]:
        """Join query and document as the model wants it."""
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
        room = self.n_tokens_max - len(head) - len(tail)
        if room < len(tokens) and not (truncate and room > 0):
            raise ContextOverflowError(
                f"document {i} has {len(tokens)} tokens and the query with its separators "
                f"{len(head) + len(tail)}; the model takes {self.n_tokens_max}. Split the "
                "document, or pass truncate=True"
            )
        return (*head, *tokens[:room], *tail)

    def _names_special(self, text: str) -> bool:
        vocab = self.model.vocab
        plain, parsed = (vocab.tokenize(text, False, special) for special in (False, True))
        return plain != parsed

    def _compute(
        self, texts: Sequence[tuple[int, ...]], progress: Progress
    ) -> dict[tuple[int, ...], NDArray[np.float32]]:
        """Return what C computes for each different text: one vector, or one for each token."""
        found: dict[tuple[int, ...], NDArray[np.float32]] = {}
        different = list(dict.fromkeys(texts))
        if not different:
            return found
        # C cuts sequences of a recurrent model into pieces of one length, and pools each.
        n_seqs = 1 if self.model.keeps_states else min(len(different), _MAX_SEQUENCES)
        total, longest = sum(map(len, different)), max(map(len, different))
        n_tokens = max(longest, min(total, self._n_ctx))
        with self._lock, reporting(progress, "embedding") as report:
            context = self._grown(n_tokens, min(n_seqs, n_tokens))
            batch = Batch(context.n_ubatch, library=self.model.library)
            for group in _packed(different, context.n_ubatch, n_seqs):
                found |= self._run(context, batch, group)
                if not report(len(found) / len(different)):
                    raise CancelledError(
                        f"progress stopped it after {len(found)} of {len(different)} texts"
                    )
        return found

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
    """Return the cosine between each vector of *a* and each of *b*, 0 where one has no length.

    Shapes: (n, width) and (m, width) give (n, m) float32; a vector (width,) has no axis there.

    Raises:
        ValidationError: The widths differ, or an array has more than two axes.
    """
    x, y = (np.asarray(v, np.float32) for v in (a, b))
    if not (x.ndim in (1, 2) and y.ndim in (1, 2) and x.shape[-1] == y.shape[-1]):
        raise ValidationError(f"shapes {x.shape} and {y.shape} are not (n, width) and (m, width)")
    return np.asarray(_unit(x) @ _unit(y).T, np.float32)


def _unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.asarray(x / np.where(length > 0, length, 1), np.float32)


def _several(name: str, values: Sequence[T]) -> list[T]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise ValidationError(f"{name} is {type(values).__name__}; give a list")
    return list(values)


def _packed(
    texts: Sequence[tuple[int, ...]], n_tokens: int, n_seqs: int
) -> Iterator[list[tuple[int, ...]]]:
    """Give groups of texts, in order, that fit one batch."""
    group: list[tuple[int, ...]] = []
    used = 0
    for text in texts:
        if group and (len(group) == n_seqs or used + len(text) > n_tokens):
            yield group
            group, used = [], 0
        group.append(text)
        used += len(text)
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
    """Return what comes before the query, between query and document, and after both."""
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
            f"{model.path.name} does not say how query and document are joined: it has no "
            f"{_RERANK_TEMPLATE}, and its vocabulary adds neither EOS nor SEP"
        )
    return [[vocab.bos] if vocab.add_bos and vocab.bos is not None else [], between, end]

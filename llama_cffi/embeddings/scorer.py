"""How likely a model finds given text: log-probabilities, choices, perplexity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..binding import Batch, Context, Model
from ..errors import ContextOverflowError, ValidationError
from ..generation.logprobs import log_softmax
from ..generation.prompt import common_prefix_length
from ..validation import integer
from .resizable_context import GrowingContext

__all__ = ["Score", "Scorer"]

Text = str | Sequence[int]

_LOGITS_BYTES = 2**26  # of one batch in C
_MAX_SEQUENCES = 16


@dataclass(frozen=True)
class Score:
    """How likely a continuation is.

    Attributes:
        logprob: Natural logarithm of its probability: the sum of *per_token*.
        n_tokens: Tokens that were scored.
        per_token: Their log-probabilities, each given what is before it: (n_tokens,) float64.
    """

    logprob: float
    n_tokens: int
    per_token: NDArray[np.float64]


@dataclass
class _Piece:
    """Tokens to decode in one sequence, from a position on.

    Attributes:
        wanted: Index -> tokens whose log-probability right after it is wanted.
    """

    seq_id: int
    pos: int
    tokens: Sequence[int]
    wanted: Mapping[int, Sequence[int]]


class Scorer(GrowingContext):
    """Log-probabilities of given text under a causal model.

    Only the rows of logits that are asked for are computed, a batch of at most 64 MiB at a time.
    Any thread may call it; calls queue. The context is made for the longest call.

    Args:
        model: Closes this scorer's context when it closes.
        n_ctx: Most tokens that are looked at together; 0 = the model's own length.
        n_threads: 0 = physical cores.

    Attributes:
        n_ctx: Most tokens that are looked at together.

    Raises:
        ValidationError: The model does not predict the next token from those before it.
    """

    def __init__(self, model: Model, *, n_ctx: int = 0, n_threads: int = 0) -> None:
        self.model = model
        self.n_ctx = integer("n_ctx", n_ctx, 0) or model.n_ctx_train
        self._n_threads = n_threads
        self._n_batch = max(_MAX_SEQUENCES * 2, min(512, _LOGITS_BYTES // (4 * len(model.vocab))))
        super().__init__(_MAX_SEQUENCES * 2, 1)  # finds what does not go together
        kind = self._context.kind
        if not (kind.causal and kind.logits) or kind.has_encoder:
            self._context.close()
            raise ValidationError(
                f"{model.path.name} does not predict the next token from those before it alone; "
                "scores need a decoder"
            )

    def logprobs(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """Return the log-probability of each token but the first, given those before it.

        Shapes: (len(tokens) - 1,) float64; entry i is of `tokens[i + 1]`.

        Raises:
            ValidationError: There is no token, or one that the model does not have.
            ContextOverflowError: They are more than `n_ctx`.
        """
        tokens = self._checked(tokens)
        if not tokens:
            raise ValidationError("there is no token to score")
        self._need("the text has", len(tokens))
        with self._lock:
            return self._window(tokens, 1)

    def score_continuations(self, prompt: Text, continuations: Sequence[Text]) -> list[Score]:
        """Return how likely each continuation is after *prompt*, which is decoded once.

        Text is tokenized together with the prompt, as it would be in one text. Where that changes
        the tokens at the prompt's end for one continuation, that end is scored as part of every
        one, so the scores stay comparable. Token ids are taken as they are.

        Args:
            prompt: Text or token ids, at least one token.
            continuations: Texts, or lists of token ids; none is empty.

        Raises:
            ValidationError: A continuation has no token, or nothing is before its first one.
            ContextOverflowError: Prompt and continuation are more tokens than `n_ctx`.
        """
        if isinstance(continuations, (str, bytes)) or not isinstance(continuations, Iterable):
            raise ValidationError(
                f"continuations is {type(continuations).__name__}; give a list of texts"
            )
        whole = [self._join(prompt, text, i) for i, text in enumerate(continuations)]
        if not whole:
            return []
        before = self._tokenize(prompt)
        n = min(common_prefix_length(before, tokens) for tokens in whole)
        if not n:
            raise ValidationError(
                "there is no token before the first one to score; give a prompt, such as "
                "[model.vocab.bos]"
            )
        for i, tokens in enumerate(whole):
            self._need(f"prompt and continuation {i} have", len(tokens))
        with self._lock:
            rows = self._continue(before[:n], [tokens[n:] for tokens in whole])
        return [Score(float(row.sum()), len(row), row) for row in rows]

    def choice_probabilities(self, prompt: Text, choices: Sequence[Text]) -> list[float]:
        """Return how likely each choice is after *prompt* if it must be one of them; sum 1.

        The probability of the whole text counts; longer choices are not favoured.

        Raises:
            ValidationError: There is no choice; else as for `score_continuations`.
        """
        scores = self.score_continuations(prompt, choices)
        if not scores:
            raise ValidationError("there is no choice; give at least one")
        logprobs = np.array([score.logprob for score in scores])
        e = np.exp(logprobs - logprobs.max())
        return [float(p) for p in e / e.sum()]

    def perplexity(self, text: Text, *, stride: int | None = None) -> float:
        """Return exp(-mean log-probability) of the tokens of *text*.

        Longer texts than `n_ctx` are read in windows of `n_ctx` tokens; each begins with BOS where
        the model's texts do. Every token is scored once, with as much before it as its window has.

        Args:
            text: Text or token ids, at least two tokens (BOS counts).
            stride: Tokens from one window to the next: fewer take longer and leave more before
                each; None = half a window.

        Raises:
            ValidationError: The text is too short, or *stride* larger than a window.
        """
        tokens = self._tokenize(text)
        vocab = self.model.vocab
        bos = tokens[:1] if vocab.add_bos and tokens[:1] == [vocab.bos] else []
        body = tokens[len(bos) :]
        size = self.n_ctx - len(bos)
        first = 1 - len(bos)  # nothing is before the very first token
        if len(body) <= first:
            raise ValidationError(f"the text has {len(tokens)} tokens; perplexity needs two")
        if size < 2:
            raise ValidationError(f"n_ctx={self.n_ctx} is too short for perplexity")
        step = max(size // 2, 1) if stride is None else integer("stride", stride, 1, size - first)
        total, begin, done = 0.0, 0, first
        with self._lock:
            while done < len(body):
                window = [*bos, *body[begin : begin + size]]
                total += float(self._window(window, done - begin + len(bos)).sum())
                done, begin = min(begin + size, len(body)), begin + step
        return float(np.exp(-total / (len(body) - first)))

    def _make(self, n_tokens: int, n_seqs: int) -> Context:
        return Context(
            self.model,
            n_ctx=n_tokens,
            n_batch=self._n_batch,
            n_ubatch=self._n_batch,
            n_seq_max=n_seqs,
            n_threads=self._n_threads,
            kv_unified=True,
        )

    def _room(self, context: Context) -> int:
        return context.n_ctx

    def _cleared(self, n_ctx: int, n_seqs: int) -> Context:
        """Return an empty context of at least that size."""
        context = self._grown(n_ctx, n_seqs)
        context.memory.clear(data=False)
        return context

    def _checked(self, tokens: Sequence[int]) -> list[int]:
        if isinstance(tokens, bytes) or not isinstance(tokens, Iterable):
            raise ValidationError(f"{type(tokens).__name__} is neither a str nor a list of tokens")
        return self.model.vocab.check_all(tokens)

    def _tokenize(self, text: Text) -> list[int]:
        """Return the tokens of a text that goes on: without EOS at its end."""
        if not isinstance(text, str):
            return self._checked(text)
        vocab = self.model.vocab
        tokens = vocab.tokenize(text)
        return tokens[:-1] if vocab.add_eos and tokens[-1:] == [vocab.eos] else tokens

    def _join(self, prompt: Text, text: Text, i: int) -> list[int]:
        """Return the tokens of prompt and continuation."""
        if isinstance(prompt, str) and isinstance(text, str) and text:
            return self._tokenize(prompt + text)
        if isinstance(text, str):
            text = self.model.vocab.tokenize(text, add_special=False)
        if not (tokens := self._checked(text)):
            raise ValidationError(f"continuation {i} is empty; it has no token to score")
        return [*self._tokenize(prompt), *tokens]

    def _need(self, what: str, n_tokens: int) -> None:
        if n_tokens > self.n_ctx:
            raise ContextOverflowError(
                f"{what} {n_tokens} tokens; n_ctx is {self.n_ctx}. Shorten it, make the scorer "
                "with a larger n_ctx, or use perplexity, which reads in windows"
            )

    def _window(self, tokens: Sequence[int], first: int) -> NDArray[np.float64]:
        """Return the log-probabilities of `tokens[first:]`, first >= 1."""
        context = self._cleared(len(tokens), 1)
        wanted = {i - 1: [tokens[i]] for i in range(first, len(tokens))}
        (row,) = self._decode(context, [_Piece(0, 0, tokens[:-1], wanted)])
        return row

    def _continue(
        self, prompt: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> list[NDArray[np.float64]]:
        """Return the log-probabilities of each continuation's tokens after *prompt*."""
        # Only what comes before its last token has to be decoded.
        sizes = [len(tokens) - 1 for tokens in continuations]
        room = max(*sizes, self._n_batch)
        n_seqs = min(len(continuations), _MAX_SEQUENCES - 1) + 1
        context = self._cleared(len(prompt) + room, n_seqs)
        # Sequence 0 stays what it is; the others begin as its copies.
        after = {len(prompt) - 1: [tokens[0] for tokens in continuations]}
        (first,) = self._decode(context, [_Piece(0, 0, prompt, after)])
        rows: list[NDArray[np.float64]] = []
        for group in _packed(sizes, room, n_seqs - 1):
            pieces = []
            for seq_id, i in enumerate(group, 1):
                tokens = continuations[i]
                wanted = {k: [token] for k, token in enumerate(tokens[1:])}
                pieces.append(_Piece(seq_id, len(prompt), tokens[:-1], wanted))
                context.memory.seq_cp(0, seq_id)
            for i, rest in zip(group, self._decode(context, pieces), strict=True):
                rows.append(np.concatenate([first[i : i + 1], rest]))
            for piece in pieces:
                context.memory.seq_rm(piece.seq_id)
        return rows

    def _decode(self, context: Context, pieces: Sequence[_Piece]) -> list[NDArray[np.float64]]:
        """Decode *pieces*, as many at once as fit; return what each wants."""
        found: list[list[float]] = [[] for _ in pieces]
        batch = Batch(context.n_batch, library=self.model.library)
        wanted: list[tuple[int, int, Sequence[int]]] = []
        todo = [(n, i) for n, piece in enumerate(pieces) for i in range(len(piece.tokens))]
        for at, (n, i) in enumerate(todo, 1):
            piece = pieces[n]
            targets = piece.wanted.get(i)
            row = batch.add(piece.tokens[i], piece.pos + i, (piece.seq_id,), targets is not None)
            if targets is not None:
                wanted.append((n, row, targets))
            if len(batch) == batch.n_tokens_max or at == len(todo):
                context.decode(batch)
                for n, row, targets in wanted:
                    found[n] += log_softmax(context.logits(row, copy=False), targets)
                batch.clear()
                wanted.clear()
        return [np.array(row, np.float64) for row in found]


def _packed(sizes: Sequence[int], n_tokens: int, n_seqs: int) -> Iterator[list[int]]:
    """Give groups of indexes, in order, whose sizes fit together."""
    group: list[int] = []
    used = 0
    for i, size in enumerate(sizes):
        if group and (len(group) == n_seqs or used + size > n_tokens):
            yield group
            group, used = [], 0
        group.append(i)
        used += size
    yield group

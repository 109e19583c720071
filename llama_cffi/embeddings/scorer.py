"""The probability of given text: log-probabilities, choices, perplexity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..binding import Batch, Context, Model
from ..errors import ContextOverflowError, ValidationError
from ..generation.logprobs import Logprob, log_softmax, logprob
from ..generation.model_source import ModelOptions, ModelSource, open_model
from ..generation.prompt import common_prefix_length
from ..validation import check_int, checked_arguments, not_picklable
from .resizable_context import ResizableContext

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["Score", "Scorer"]

Text = str | Sequence[int]

_LOGITS_BYTES = 2**26  # logits of one batch in C
_MAX_SEQUENCES = 16


@dataclass(frozen=True)
class Score:
    """The log-probability of a continuation.

    Attributes:
        logprob: Natural logarithm of its probability: the sum of *per_token*.
        n_tokens: Number of scored tokens.
        per_token: Log-probability of each token given those before it: (n_tokens,) float64.
    """

    logprob: float
    n_tokens: int
    per_token: NDArray[np.float64]


@dataclass
class _Segment:
    """Tokens to decode in one sequence, starting at a position.

    Attributes:
        wanted: Index of a token -> the tokens to score as its successor.
    """

    seq_id: int
    pos: int
    tokens: Sequence[int]
    wanted: Mapping[int, Sequence[int]]


class Scorer:
    """Computes log-probabilities of given text with a causal model.

    Only the logits that are needed are computed, in batches of at most 64 MiB. Any thread may
    call it; calls run one at a time. The context grows to the longest call.

    Args:
        model: A GGUF file, `hf:owner/repo:file`, or a loaded `Model`, which stays open at the end.
        n_ctx: Most tokens in one evaluation; 0 = the model's training length.
        n_threads: Number of threads; 0 = physical cores.
        **options: Arguments of `Model` as `Llama` takes them, such as `n_gpu_layers`; a loaded
            model keeps its own.

    Attributes:
        model: The model.
        owns_model: Whether `close` frees the model, too; False where one was given.
        n_ctx: Most tokens in one evaluation.

    Raises:
        ModelLoadError: The model cannot be loaded.
        ValidationError: The model is not a causal decoder.
        LlamaError: There is not enough memory.
    """

    @checked_arguments(ModelOptions.__annotations__)
    def __init__(
        self,
        model: ModelSource,
        *,
        n_ctx: int = 0,
        n_threads: int = 0,
        **options: Unpack[ModelOptions],
    ) -> None:
        n_ctx = check_int("n_ctx", n_ctx, 0)
        self._closed = False
        self.model, self.owns_model = open_model(model, **options)
        try:
            self._open(n_ctx, n_threads)
        except BaseException:
            if self.owns_model:
                self.model.close()
            raise

    def _open(self, n_ctx: int, n_threads: int) -> None:
        model = self.model
        self.n_ctx = n_ctx or model.n_ctx_train
        self._n_batch = max(_MAX_SEQUENCES * 2, min(512, _LOGITS_BYTES // (4 * len(model.vocab))))
        # A small first context finds options that the model does not support.
        self._context = ResizableContext(
            partial(_create_context, self.model, self._n_batch, n_threads),
            lambda context: context.n_ctx,
            _MAX_SEQUENCES * 2,
            1,
        )
        kind = self._context.current.kind
        if not (kind.causal and kind.logits) or kind.has_encoder:
            self._context.close()
            raise ValidationError(
                f"{model.path.name} does not predict the next token from those before it alone; "
                "scores need a causal decoder"
            )

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
        return f"<Scorer {self.model.path.name} n_ctx={self.n_ctx}{closed}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def logprobs(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """Return the log-probability of each token but the first, given those before it.

        Shapes: (len(tokens) - 1,) float64; entry i is that of `tokens[i + 1]`.

        Raises:
            ValidationError: *tokens* is empty, or a token does not exist.
            ContextOverflowError: There are more than `n_ctx` tokens.
        """
        tokens = self._checked(tokens)
        if not tokens:
            raise ValidationError("there is no token to score")
        self._check_length("the text has", len(tokens))
        return self._window(tokens, 1)

    def alternatives(self, tokens: Sequence[int], n: int) -> list[Logprob]:
        """Return the log-probability of each token but the first, and of the *n* most probable.

        Args:
            tokens: At least one token id.
            n: Number of alternatives for each token, 0 or more.

        Raises:
            ValidationError: *tokens* is empty, a token does not exist, or *n* is negative.
            ContextOverflowError: There are more than `n_ctx` tokens.
        """
        check_int("n", n, 0)
        tokens = self._checked(tokens)
        if not tokens:
            raise ValidationError("there is no token to score")
        self._check_length("the text has", len(tokens))
        wanted = {i: [token] for i, token in enumerate(tokens[1:])}
        with self._context.use(len(tokens), 1) as context:
            rows = self._rows(context, [_Segment(0, 0, tokens[:-1], wanted)])
            return [logprob(logits, token, n) for _, logits, (token,) in rows]

    def logits(self, tokens: Sequence[int], first: int = 0) -> Iterator[NDArray[np.float32]]:
        """Yield the logits after each token from index *first* on.

        Shapes: (n_vocab,) float32; valid until the next one.

        Args:
            tokens: At least one token id.
            first: Index of the first token whose successor is predicted.

        Raises:
            ValidationError: *tokens* is empty, a token does not exist, or *first* is out of range.
            ContextOverflowError: There are more than `n_ctx` tokens.
        """
        tokens = self._checked(tokens)
        if not tokens:
            raise ValidationError("there is no token to evaluate")
        self._check_length("the text has", len(tokens))
        check_int("first", first, 0, len(tokens) - 1)
        wanted: dict[int, Sequence[int]] = {i: () for i in range(first, len(tokens))}
        with self._context.use(len(tokens), 1) as context:
            for _, logits, _ in self._rows(context, [_Segment(0, 0, tokens, wanted)]):
                yield logits

    def score_continuations(self, prompt: Text, continuations: Sequence[Text]) -> list[Score]:
        """Return the score of each continuation after *prompt*, which is decoded once.

        A str is tokenized together with the prompt. If that changes the last tokens of the prompt
        for one continuation, these are scored as part of every continuation, so that the scores
        stay comparable. Token ids are used unchanged.

        Args:
            prompt: A str or token ids, at least one token.
            continuations: Strings or lists of token ids, none of them empty.

        Raises:
            ValidationError: A continuation has no token, or no token precedes it.
            ContextOverflowError: Prompt and continuation have more than `n_ctx` tokens.
        """
        if isinstance(continuations, (str, bytes)) or not isinstance(continuations, Iterable):
            raise ValidationError(
                f"continuations must be a list of str, got {type(continuations).__name__}"
            )
        whole = [self._join(prompt, text, i) for i, text in enumerate(continuations)]
        if not whole:
            return []
        before = self._tokenize(prompt)
        n = min(common_prefix_length(before, tokens) for tokens in whole)
        if not n:
            raise ValidationError(
                "there is no token before the first one to score; pass a prompt, such as "
                "[model.vocab.bos]"
            )
        for i, tokens in enumerate(whole):
            self._check_length(f"prompt and continuation {i} have", len(tokens))
        logprobs = self._continue(before[:n], [tokens[n:] for tokens in whole])
        return [Score(float(found.sum()), len(found), found) for found in logprobs]

    def choice_probabilities(self, prompt: Text, choices: Sequence[Text]) -> list[float]:
        """Return the probability of each choice after *prompt*, given that one of them follows.

        They sum to 1. The probability of a whole choice counts, so longer ones are not favored.

        Raises:
            ValidationError: *choices* is empty; else as for `score_continuations`.
        """
        scores = self.score_continuations(prompt, choices)
        if not scores:
            raise ValidationError("choices is empty; pass at least one")
        logprobs = np.array([score.logprob for score in scores])
        e = np.exp(logprobs - logprobs.max())
        return [float(p) for p in e / e.sum()]

    def perplexity(self, text: Text, *, stride: int | None = None) -> float:
        """Return exp(-mean log-probability) of the tokens of *text*.

        Text longer than `n_ctx` is evaluated in windows of `n_ctx` tokens, which start with BOS if
        the model adds it. Every token is scored once, given the tokens before it in its window.

        Args:
            text: A str or token ids, at least two tokens including BOS.
            stride: Tokens from one window to the next. A smaller stride takes longer and gives
                each token more context; None = half a window.

        Raises:
            ValidationError: The text is too short, or *stride* is larger than a window.
        """
        tokens = self._tokenize(text)
        vocab = self.model.vocab
        bos = tokens[:1] if vocab.add_bos and tokens[:1] == [vocab.bos] else []
        body = tokens[len(bos) :]
        size = self.n_ctx - len(bos)
        first = 1 - len(bos)  # without BOS, nothing precedes the first token
        if len(body) <= first:
            raise ValidationError(f"the text has {len(tokens)} tokens; perplexity needs two")
        if size < 2:
            raise ValidationError(f"n_ctx={self.n_ctx} is too short for perplexity")
        step = max(size // 2, 1) if stride is None else check_int("stride", stride, 1, size - first)
        total, begin, done = 0.0, 0, first
        while done < len(body):
            window = [*bos, *body[begin : begin + size]]
            total += float(self._window(window, done - begin + len(bos)).sum())
            done, begin = min(begin + size, len(body)), begin + step
        return float(np.exp(-total / (len(body) - first)))

    def _checked(self, tokens: Sequence[int]) -> list[int]:
        if isinstance(tokens, bytes) or not isinstance(tokens, Iterable):
            raise ValidationError(
                f"text must be a str or a list of tokens, got {type(tokens).__name__}"
            )
        return self.model.vocab.check_all(tokens)

    def _tokenize(self, text: Text) -> list[int]:
        """Return the tokens of text that will be continued, so without EOS."""
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

    def _check_length(self, subject: str, n_tokens: int) -> None:
        if n_tokens > self.n_ctx:
            raise ContextOverflowError(
                f"{subject} {n_tokens} tokens; n_ctx is {self.n_ctx}. Shorten it, create the "
                "scorer with a larger n_ctx, or use perplexity, which evaluates windows",
                n_tokens=n_tokens,
                n_ctx=self.n_ctx,
            )

    def _window(self, tokens: Sequence[int], first: int) -> NDArray[np.float64]:
        """Return the log-probabilities of `tokens[first:]`, first >= 1."""
        wanted = {i - 1: [tokens[i]] for i in range(first, len(tokens))}
        with self._context.use(len(tokens), 1) as context:
            (logprobs,) = self._decode(context, [_Segment(0, 0, tokens[:-1], wanted)])
        return logprobs

    def _continue(
        self, prompt: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> list[NDArray[np.float64]]:
        """Return the log-probabilities of each continuation's tokens after *prompt*."""
        # The last token of a continuation is scored but not decoded.
        sizes = [len(tokens) - 1 for tokens in continuations]
        n_tokens = max(*sizes, self._n_batch)
        n_seqs = min(len(continuations), _MAX_SEQUENCES - 1) + 1
        with self._context.use(len(prompt) + n_tokens, n_seqs) as context:
            # Sequence 0 keeps the prompt; the others start as its copies.
            after = {len(prompt) - 1: [tokens[0] for tokens in continuations]}
            (first,) = self._decode(context, [_Segment(0, 0, prompt, after)])
            logprobs: list[NDArray[np.float64]] = []
            for group in _groups(sizes, n_tokens, n_seqs - 1):
                segments = []
                for seq_id, i in enumerate(group, 1):
                    tokens = continuations[i]
                    wanted = {k: [token] for k, token in enumerate(tokens[1:])}
                    segments.append(_Segment(seq_id, len(prompt), tokens[:-1], wanted))
                    context.memory.seq_cp(0, seq_id)
                for i, rest in zip(group, self._decode(context, segments), strict=True):
                    logprobs.append(np.concatenate([first[i : i + 1], rest]))
                for segment in segments:
                    context.memory.seq_rm(segment.seq_id)
        return logprobs

    def _decode(self, context: Context, segments: Sequence[_Segment]) -> list[NDArray[np.float64]]:
        """Decode *segments*; return the log-probabilities that each wants."""
        found: list[list[float]] = [[] for _ in segments]
        for n, logits, targets in self._rows(context, segments):
            found[n] += log_softmax(logits, targets)
        return [np.array(logprobs, np.float64) for logprobs in found]

    def _rows(
        self, context: Context, segments: Sequence[_Segment]
    ) -> Iterator[tuple[int, NDArray[np.float32], Sequence[int]]]:
        """Decode *segments* in full batches; yield segment, logits and targets of each wanted row.

        The logits are valid until the next one.
        """
        batch = Batch(context.n_batch, library=self.model.library)
        wanted: list[tuple[int, int, Sequence[int]]] = []
        todo = [(n, i) for n, segment in enumerate(segments) for i in range(len(segment.tokens))]
        for count, (n, i) in enumerate(todo, 1):
            segment = segments[n]
            targets = segment.wanted.get(i)
            output = targets is not None
            row = batch.add(segment.tokens[i], segment.pos + i, (segment.seq_id,), output)
            if targets is not None:
                wanted.append((n, row, targets))
            if len(batch) == batch.n_tokens_max or count == len(todo):
                context.decode(batch)
                for n, row, targets in wanted:
                    yield n, context.logits(row, copy=False), targets
                batch.clear()
                wanted.clear()


def _groups(sizes: Sequence[int], n_tokens: int, n_seqs: int) -> Iterator[list[int]]:
    """Yield groups of indexes, in order, whose sizes fit together."""
    group: list[int] = []
    used = 0
    for i, size in enumerate(sizes):
        if group and (len(group) == n_seqs or used + size > n_tokens):
            yield group
            group, used = [], 0
        group.append(i)
        used += size
    yield group


def _create_context(
    model: Model, n_batch: int, n_threads: int, n_tokens: int, n_seqs: int
) -> Context:
    return Context(
        model,
        n_ctx=n_tokens,
        n_batch=n_batch,
        n_ubatch=n_batch,
        n_seq_max=n_seqs,
        n_threads=n_threads,
        kv_unified=True,
    )

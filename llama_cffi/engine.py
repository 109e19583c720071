"""Engine: text in, text out."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from . import decoding
from .binding import Batch, Context, Model
from .binding.checks import integer
from .errors import ContextOverflowError, ValidationError
from .sampling import SamplingParams, build_chain
from .text import Utf8Stream

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .sampling import SamplingOptions

__all__ = ["Engine"]


class Engine:
    """One model, one context, one conversation at a time.

    Calls from several threads queue; each gets its whole answer. A stream that was begun holds the
    engine until it is exhausted, closed or dropped. `close` does not wait for it: the generation
    that runs ends with a ValidationError at its next token, and what it uses is freed then.

    Args:
        model_path: The GGUF file.
        n_ctx: Tokens of prompt and answer together; 0 = the model's own length.
        n_threads: 0 = physical cores.
        n_gpu_layers: Layers on the GPU; -1 = all.
        n_batch: Most prompt tokens evaluated in one call.
        n_ubatch: Most tokens computed at once.

    Raises:
        ModelLoadError: The model cannot be loaded.
        ValidationError: A number is out of range.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        n_ctx: int = 4096,
        n_threads: int = 0,
        n_gpu_layers: int = -1,
        *,
        n_batch: int = 2048,
        n_ubatch: int = 512,
    ) -> None:
        self.model = Model(model_path, n_gpu_layers=n_gpu_layers)
        try:
            self.context = Context(
                self.model, n_ctx=n_ctx, n_threads=n_threads, n_batch=n_batch, n_ubatch=n_ubatch
            )
        except BaseException:
            self.model.close()
            raise
        self._batch = Batch(min(n_batch, self.context.n_ctx), library=self.model.library)
        self._lock = threading.Lock()
        self._closed = False
        self._suspended_by: int | None = None  # the thread that left a stream waiting

    @property
    def n_ctx(self) -> int:
        """Tokens of prompt and answer together."""
        return self.context.n_ctx

    def tokenize(
        self, text: str, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Turn text into token ids; see `Vocab.tokenize`."""
        return self.model.vocab.tokenize(text, add_special, parse_special)

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> str:
        """Turn token ids into text; see `Vocab.detokenize`."""
        return self.model.vocab.detokenize(tokens, special)

    def generate_tokens(
        self, tokens: Sequence[int], n_predict: int = 256, **sampling: Unpack[SamplingOptions]
    ) -> list[int]:
        """Continue *tokens* and return the new ones, without the end-of-generation token.

        Args:
            tokens: At least one token id.
            n_predict: Most tokens to generate; fewer when the context is full.
            **sampling: Fields of `SamplingParams`; `temperature=0` is greedy.

        Raises:
            ContextOverflowError: The tokens leave no room in the context.
            ValidationError: A token or parameter is out of range.
            GenerationError: Decoding failed.
        """
        params = SamplingParams(**sampling)
        with self._turn():
            return list(self._tokens(tokens, n_predict, params))

    def generate(
        self,
        prompt: str,
        system_prompt: str = "",
        n_predict: int = 256,
        temperature: float = 0.7,
        top_p: float = 0.9,
        repeat_penalty: float | None = None,
        top_k: int = 40,
        min_p: float = 0.05,
        penalty_freq: float = 0.0,
        penalty_present: float = 0.0,
        seed: int = -1,
    ) -> str:
        """Answer *prompt* and return the whole text.

        The model's chat template is applied where it has one; see `format_prompt`. The sampling
        arguments are those of `SamplingParams`, errors those of `generate_tokens`.
        """
        return "".join(
            self.stream(
                prompt,
                system_prompt,
                n_predict,
                temperature=temperature,
                top_p=top_p,
                repeat_penalty=repeat_penalty,
                top_k=top_k,
                min_p=min_p,
                penalty_freq=penalty_freq,
                penalty_present=penalty_present,
                seed=seed,
            )
        )

    def stream(
        self,
        prompt: str,
        system_prompt: str = "",
        n_predict: int = 256,
        *,
        raw: bool = False,
        **sampling: Unpack[SamplingOptions],
    ) -> Iterator[str]:
        """Answer *prompt* piece by piece, in whole UTF-8 characters.

        Leaving the iteration early ends the generation. Errors are those of `generate_tokens`,
        raised by the first `next`.

        Args:
            prompt: The user's message.
            system_prompt: The system message, if any.
            n_predict: Most tokens to generate.
            raw: Use the prompt as it is, without the chat template.
            **sampling: Fields of `SamplingParams`.
        """
        params = SamplingParams(**sampling)
        return self._stream(prompt, system_prompt, n_predict, params, raw)

    def format_prompt(self, prompt: str, system_prompt: str = "") -> list[int]:
        """Return the tokens of a conversation of one user message.

        A model without a chat template gets the text as it is, the system prompt first.
        """
        if self.model.chat_template is None:
            return self.tokenize("\n\n".join(t for t in (system_prompt, prompt) if t))
        system = [("system", system_prompt)] if system_prompt else []
        text = self.model.apply_chat_template([*system, ("user", prompt)])
        return self.tokenize(text, parse_special=True)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Free context and model, at once or when the running generation ends.

        Calling it again does nothing.
        """
        self._closed = True
        self._free_if_closed()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stream(
        self, prompt: str, system_prompt: str, n_predict: int, params: SamplingParams, raw: bool
    ) -> Iterator[str]:
        with self._turn():
            tokens = self.tokenize(prompt) if raw else self.format_prompt(prompt, system_prompt)
            text, vocab = Utf8Stream(), self.model.vocab
            with closing(self._tokens(tokens, n_predict, params)) as generated:
                for token in generated:
                    if piece := text.push(vocab.token_to_piece(token)):
                        yield from self._hand_out(piece)
            if rest := text.flush():
                yield from self._hand_out(rest)

    def _hand_out(self, piece: str) -> Iterator[str]:
        self._suspended_by = threading.get_ident()
        yield piece
        self._suspended_by = None

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until the engine is free, and hold it."""
        if not self._lock.acquire(blocking=False):
            if self._suspended_by == threading.get_ident():
                raise ValidationError(
                    "a stream of this engine waits in this thread; exhaust or close it first, or "
                    "this call would wait for ever"
                )
            self._lock.acquire()
        try:
            self._check_open()
            yield
        finally:
            self._suspended_by = None
            self._lock.release()
            if self._closed:
                self._free_if_closed()

    def _check_open(self) -> None:
        if self._closed:
            raise ValidationError("this Engine is closed; open a new one")

    def _free_if_closed(self) -> None:
        if self._closed and self._lock.acquire(blocking=False):
            try:
                self.model.close()
            finally:
                self._lock.release()

    def _tokens(
        self, tokens: Sequence[int], n_predict: int, params: SamplingParams
    ) -> Generator[int, None, None]:
        """Check the request and yield its tokens; the caller holds the lock."""
        vocab = self.model.vocab
        tokens = [vocab.check(token) for token in tokens]
        if not tokens:
            raise ValidationError("the prompt is empty: there is nothing to continue")
        n_predict = integer("n_predict", n_predict, 1)
        if len(tokens) >= self.n_ctx:
            raise ContextOverflowError(
                f"the prompt has {len(tokens)} tokens and the context holds {self.n_ctx}: shorten "
                f"the prompt, or make the engine with n_ctx > {len(tokens)}"
            )
        with build_chain(self.model, params) as chain:
            if params.penalises:
                for token in tokens[-params.penalty_last_n :]:
                    chain.accept(token)
            self.context.memory.clear()
            for token in decoding.generate(self.context, self._batch, chain, tokens, n_predict):
                self._check_open()
                yield token
                self._check_open()

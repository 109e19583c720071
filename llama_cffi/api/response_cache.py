"""ResponseCache: answers that are asked again come from memory."""

from __future__ import annotations

import copy
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..errors import ValidationError
from ..generation.aliases import canonical
from ..generation.options import TextOptions
from ..generation.request_scope import current_scope
from ..generation.sampling_params import SamplingParams
from ..validation import check_float, check_int, not_picklable
from .chat_completions import ChatCompletionOptions
from .llama import CompletionOptions, Llama

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .chat_completions import Message
    from .types import CreateChatCompletionResponse, CreateCompletionResponse

__all__ = ["ResponseCache", "ResponseCacheInfo"]

T = TypeVar("T")


class ResponseCacheInfo(NamedTuple):
    """What a `ResponseCache` did so far.

    Attributes:
        hits: Answers from memory.
        misses: Answers that were generated and could have been in memory.
        bypassed: Answers that cannot be kept.
        n_entries: Answers in memory.
    """

    hits: int
    misses: int
    bypassed: int
    n_entries: int


class ResponseCache:
    """Keeps whole answers of a `Llama`, for requests that must give the same answer again.

    Those are requests with temperature 0 or a seed, and without Python functions; all others are
    passed through. The least recently used answers are dropped. An answer from memory is a copy
    of the first one, with the same id and time.

    Args:
        llm: Generates; its sampling parameters and adapters are part of each request.
        max_entries: Most answers to keep.
        ttl_s: Seconds after which an answer is generated anew; None: never.

    Raises:
        ValidationError: *llm* is not a `Llama`, or a number is out of range.
    """

    def __init__(self, llm: Llama, max_entries: int = 128, ttl_s: float | None = None) -> None:
        if not isinstance(llm, Llama):
            raise ValidationError(f"ResponseCache needs a Llama, got {llm!r}")
        self.llm = llm
        self.max_entries = check_int("max_entries", max_entries, 1)
        self.ttl_s = None if ttl_s is None else check_float("ttl_s", ttl_s, 0, 1e12)
        self._answers: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()
        self._lock = threading.Lock()
        self._hits = self._misses = self._bypassed = 0

    __reduce__ = not_picklable("make one with ResponseCache(llm)", "it has an open model")

    def __repr__(self) -> str:
        return (
            f"<ResponseCache of {self.llm!r}: {len(self._answers)} of {self.max_entries} answers>"
        )

    def generate(
        self, prompt: str, max_tokens: int | None = 256, **options: Unpack[TextOptions]
    ) -> str:
        """Call `Llama.generate`, if its answer is not in memory.

        Args:
            prompt: See `Llama.generate`.
            max_tokens: See `Llama.generate`.
            **options: See `TextOptions`.

        Raises:
            ValidationError: An argument is out of range.
        """
        return self._answer(
            "generate",
            (prompt, max_tokens),
            options,
            lambda: "".join(self.llm.generate_stream(prompt, max_tokens, **options)),
        )

    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        **options: Unpack[CompletionOptions],
    ) -> CreateCompletionResponse:
        """Call `Llama.create_completion`, if its answer is not in memory.

        Args:
            prompt: See `Llama.create_completion`.
            suffix: See `Llama.create_completion`.
            max_tokens: See `Llama.create_completion`.
            **options: See `CompletionOptions`.

        Raises:
            ValidationError: An argument is out of range.
        """
        return self._answer(
            "completion",
            (prompt, suffix, max_tokens),
            options,
            lambda: self.llm.create_completion(prompt, suffix, max_tokens, **options),
        )

    def create_chat_completion(
        self, messages: Sequence[Message], **options: Unpack[ChatCompletionOptions]
    ) -> CreateChatCompletionResponse:
        """Call `Llama.create_chat_completion`, if its answer is not in memory.

        Args:
            messages: See `Llama.create_chat_completion`.
            **options: See `ChatCompletionOptions`.

        Raises:
            ValidationError: An argument is out of range.
        """
        return self._answer(
            "chat",
            (messages,),
            options,
            lambda: self.llm.create_chat_completion(messages, **options),
        )

    @property
    def info(self) -> ResponseCacheInfo:
        """Counts so far."""
        return ResponseCacheInfo(self._hits, self._misses, self._bypassed, len(self._answers))

    def clear(self) -> None:
        """Drop all answers; the counts stay."""
        with self._lock:
            self._answers.clear()

    def _answer(
        self,
        kind: str,
        arguments: tuple[object, ...],
        options: Mapping[str, Any],
        call: Callable[[], T],
    ) -> T:
        if options.get("stream"):
            raise ValidationError("a ResponseCache has no streams; call its llm")
        key = self._key(kind, arguments, options)
        with self._lock:
            if key is None:
                self._bypassed += 1
            else:
                made_s, known = self._answers.get(key, (0.0, None))
                if known is not None and not self._is_old(made_s):
                    self._answers.move_to_end(key)
                    self._hits += 1
                    found: T = copy.deepcopy(known)
                    return found
                self._misses += 1
        answer = call()
        if key is not None:
            with self._lock:
                self._answers[key] = time.monotonic(), copy.deepcopy(answer)
                self._answers.move_to_end(key)
                while len(self._answers) > self.max_entries:
                    self._answers.popitem(last=False)
        return answer

    def _is_old(self, made_s: float) -> bool:
        return self.ttl_s is not None and time.monotonic() - made_s > self.ttl_s

    def _key(
        self, kind: str, arguments: tuple[object, ...], options: Mapping[str, Any]
    ) -> Hashable | None:
        """Return what determines the answer; None: not only the arguments do."""
        given = canonical(options)
        sampling = given.get("sampling", self.llm.sampling)
        known = sampling if isinstance(sampling, SamplingParams) else SamplingParams(temperature=1)
        seeded = given.get("seed", known.seed) not in (-1, None)
        if not seeded and given.get("temperature", known.temperature) != 0:
            return None
        scope = current_scope()
        adapters = self.llm.adapters if scope is None or scope.adapters is None else scope.adapters
        try:
            return _frozen((kind, arguments, given, self.llm.sampling, adapters))
        except TypeError:  # it is not hashable, or a function
            return None


def _frozen(value: object) -> Hashable:
    """Return *value* as something hashable; equal values of different types differ.

    Raises:
        TypeError: It contains a function, or an object without a hash.
    """
    if isinstance(value, Mapping):
        return dict, frozenset((_frozen(k), _frozen(v)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return list, tuple(map(_frozen, value))
    if callable(value):
        raise TypeError(f"{value!r} may do anything")
    if isinstance(value, SamplingParams) and value.logits_processor:
        raise TypeError("logits processors may do anything")
    hash(value)
    return type(value), value

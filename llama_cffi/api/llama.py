"""Llama: completions, chat, embeddings and state of one model, as llama-cpp-python has them."""

from __future__ import annotations

import dataclasses
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..binding import Model, get_library
from ..engine.engine import Engine
from ..errors import ValidationError
from ..generation.context_policy import DROP_TURNS
from ..generation.options import sampling_params
from ..generation.sampling_params import SamplingParams
from ..hub import resolve_model
from ..validation import as_list, as_path, check_int
from . import chat_completions, completions
from .aio import stream_async, whole_async
from .config import LlamaConfig
from .session import Session

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..embeddings.embedder import Embedder, RerankResult
    from ..generation.sequence import Step
    from .session import AnyEngine
    from .types import CreateEmbeddingResponse

__all__ = [
    "Llama",
    "print_system_info",
    "shutdown",
]

T = TypeVar("T")
_open: weakref.WeakSet[Llama] = weakref.WeakSet()
_open_lock = threading.Lock()


class Llama(Session):
    """One model that completes, chats, embeds.

    Calls from several threads queue. What two prompts have in common at their beginning is
    evaluated once. Nothing is printed; `llama_cffi.native` logs what C says.

    Args:
        model_path: The GGUF file, or `hf:owner/repo:file`.
        config: What else there is to say; single arguments win over it.
        sampling: How `generate` chooses tokens where a call does not say.
        **options: The fields of `LlamaConfig`.

    Raises:
        ModelLoadError: The model cannot be loaded.
        FetchError: The model, or a build of llama.cpp, cannot be fetched.
        ValidationError: A number is out of range.
        TypeError: There is no such option.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str] | None = None,
        config: LlamaConfig | None = None,
        sampling: SamplingParams | None = None,
        **options: Any,
    ) -> None:
        for name, value, kind in (
            ("config", config, LlamaConfig),
            ("sampling", sampling, SamplingParams),
        ):
            if value is not None and not isinstance(value, kind):
                raise ValidationError(f"{name}={value!r} is no {kind.__name__}")
        self.config = config = dataclasses.replace(config or LlamaConfig(), **options)
        self.sampling = sampling
        path = model_path if model_path is not None else config.model_path
        if path is None:
            raise ValidationError("no model: give model_path, a GGUF file or hf:owner/repo:file")
        if not isinstance(path, str):
            path = as_path("model_path", path)
        self.model_path = str(path)
        self._embedder: Embedder | None = None
        self._lock = threading.Lock()
        model = Model(
            resolve_model(path),
            n_gpu_layers=config.n_gpu_layers,
            use_mmap=config.use_mmap,
            use_mlock=config.use_mlock,
            main_gpu=config.main_gpu,
            tensor_split=config.tensor_split,
            split_mode=config.split_mode,
            kv_overrides=config.kv_overrides,
            load_mtp=getattr(config.draft, "reads_hidden", False),
        )
        try:
            engine = _engine(model, config)
            engine.owns_model = True
            super().__init__(engine)
            if config.lora_path is not None:
                self.load_lora(config.lora_path, config.lora_scale)
        except BaseException:
            model.close()
            raise
        with _open_lock:
            _open.add(self)

    @classmethod
    def from_pretrained(cls, repo_id: str, filename: str | None = None, **options: Any) -> Self:
        """Load a model from the Hugging Face hub, through its cache.

        Args:
            repo_id: `owner/repo`, with `@revision` if wanted.
            filename: The file, or a quantisation such as `Q4_K_M`.
            **options: As for the class.

        Raises:
            FetchError: It cannot be fetched.
        """
        return cls(f"hf:{repo_id}" + (f":{filename}" if filename else ""), **options)

    def close(self) -> None:
        """End what runs and free everything. Calling it again does nothing."""
        if self._embedder is not None:
            self._embedder.close()
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def n_ctx(self) -> int:
        """Tokens of prompt and answer together."""
        return self.engine.n_ctx

    @cached_property
    def chat(self) -> chat_completions.Chat:
        """What the model's chat template and family say; compiled when it is first used."""
        policy = self.config.context_policy
        drops = policy if policy == DROP_TURNS else None
        return chat_completions.Chat(self.engine, self.config.chat_format, drops)

    # Text

    def generate(
        self,
        prompt: str,
        max_tokens: int = 128,
        sampling: SamplingParams | None = None,
        stream: bool = False,
        stop: str | Sequence[str] | None = None,
        echo: bool = False,
        reset_kv_cache: bool = True,
        logprobs: int | None = None,
        **options: Any,
    ) -> Any:
        """Continue *prompt*, as it is, without a chat template.

        Args:
            prompt: The text.
            max_tokens: Most tokens to generate, at least 1.
            sampling: How tokens are chosen; None = the constructor's.
            stream: Return an iterator of pieces; each comes when its token is there.
            stop: Texts that end the answer, which does not contain them.
            echo: Begin with the prompt.
            reset_kv_cache: Evaluate the whole prompt, also what the cache holds of it. With False
                a session goes on: of a prompt that begins as the last one, answer included, only
                what is new is evaluated.
            logprobs: Return a choice as `create_completion` has it, with the log-probabilities of
                the tokens and of so many in place of each, instead of the text.
            **options: Single sampling arguments, which win over *sampling*, and the engine's, such
                as `timeout_s`.

        Raises:
            ValidationError: An argument is out of range.
            ContextOverflowError: The prompt leaves no room.
        """
        check_int("max_tokens", max_tokens, 1)
        params = self._sampling(sampling, options)
        options = {"stop": stop, "reset_kv": reset_kv_cache, **options}
        if logprobs is not None:
            if stream:
                raise ValidationError(
                    "logprobs have no stream here; create_completion(stream=True) has one"
                )
            answer: Any = completions.complete(
                self.engine, self.model_path, prompt, None, max_tokens=max_tokens, params=params,
                stream=False, logprobs=logprobs, echo=echo, n=1, best_of=None, **options,
            )  # fmt: skip
            return answer["choices"][0]
        tokens = completions.prompt_tokens(self.engine, prompt, None)
        run = completions.events(self.engine, tokens, max_tokens, params, **options)
        pieces = _pieces(prompt if echo else "", run)
        return pieces if stream else "".join(pieces)

    def generate_stream(self, prompt: str, max_tokens: int = 128, **options: Any) -> Iterator[str]:
        """Do `generate` piece by piece; leaving the iteration ends the generation."""
        pieces: Iterator[str] = self.generate(prompt, max_tokens, stream=True, **options)
        return pieces

    async def generate_async(
        self, prompt: str, max_tokens: int = 128, *, stream: bool = False, **options: Any
    ) -> Any:
        """Do `generate` beside the event loop; with *stream* give an async iterator.

        Cancelling the task ends the generation.
        """
        call = partial(Llama.generate, self, prompt, max_tokens, **options)
        return await _either(call, stream=stream)

    def _sampling(self, whole: SamplingParams | None, options: dict[str, Any]) -> SamplingParams:
        """Take the sampling arguments out of *options* and put them over *whole*."""
        names = options.keys() & SamplingParams.__dataclass_fields__.keys()
        single = {name: options.pop(name) for name in names}
        whole = self.sampling if whole is None else whole
        if whole is None:
            return sampling_params({"seed": self.config.seed, **single})
        if not isinstance(whole, SamplingParams):
            raise ValidationError(f"sampling={whole!r} is no SamplingParams")
        seed = {"seed": self.config.seed} if whole.seed == -1 else {}
        return dataclasses.replace(whole, **{**seed, **single})

    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        stopping_criteria: Any = None,
        logits_processor: Any = None,
        grammar: Any = None,
        logit_bias: Mapping[Any, float] | None = None,
        n: int = 1,
        best_of: int | None = None,
        penalty_last_n: int = 64,
        **options: Any,
    ) -> Any:
        """Continue *prompt* and return OpenAI's shape, or an iterator of chunks with *stream*.

        Args:
            prompt: Text or token ids.
            suffix: What follows; the model fills the gap.
            max_tokens: Most tokens to generate; None or -1 = until the context is full.
            temperature: See `SamplingParams` for this and the other sampling arguments.
            top_p: See `SamplingParams`.
            min_p: See `SamplingParams`.
            typical_p: See `SamplingParams`.
            logprobs: Give the log-probability of each token, and of so many in its place; they
                are the model's own, before penalties and temperature.
            echo: Begin with the prompt.
            stop: Texts that end the answer.
            frequency_penalty: `penalty_freq`.
            presence_penalty: `penalty_present`.
            repeat_penalty: See `SamplingParams`.
            top_k: See `SamplingParams`; 0 or less = all.
            stream: Give chunks.
            seed: See `SamplingParams`; None = the constructor's.
            mirostat_mode: `mirostat`.
            mirostat_tau: See `SamplingParams`.
            mirostat_eta: See `SamplingParams`.
            model: The name that the response shows.
            stopping_criteria: Functions `(input_ids, logits)`; the answer ends before the token
                at which one returns True.
            logits_processor: `logits_processors`.
            grammar: A `LlamaGrammar`, or GBNF.
            logit_bias: See `SamplingParams`; keys may be texts of numbers.
            n: How many answers.
            best_of: So many are generated; the *n* with the best mean log-probability returned.
            penalty_last_n: See `SamplingParams`.
            **options: The engine's, such as `timeout_s` and `context_policy`.

        Raises:
            ValidationError: An argument is out of range.
            ContextOverflowError: The prompt leaves no room.
        """
        params = completions.sampling(
            temperature=temperature,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            top_k=top_k,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            repeat_penalty=repeat_penalty,
            penalty_last_n=penalty_last_n,
            mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
            seed=self.config.seed if seed is None else seed,
            logit_bias=logit_bias,
            logits_processor=logits_processor,
            grammar=grammar,
        )
        return completions.complete(
            self.engine,
            model or self.model_path,
            prompt,
            suffix,
            max_tokens=max_tokens,
            params=params,
            stream=stream,
            logprobs=logprobs,
            echo=echo,
            n=n,
            best_of=best_of,
            stop=stop,
            stopping_criteria=stopping_criteria,
            **options,
        )

    __call__ = create_completion

    async def create_completion_async(self, *args: Any, **options: Any) -> Any:
        """Do `create_completion` beside the event loop; with `stream` give an async iterator."""
        return await _either(self.create_completion, *args, **options)

    def create_chat_completion(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
        """Answer a conversation; see `chat_completions.Chat.create` for the arguments."""
        options = {"seed": self.config.seed, "model": self.model_path, **options}
        return self.chat.create(messages, **options)

    async def create_chat_completion_async(
        self, messages: Sequence[Mapping[str, Any]], **options: Any
    ) -> Any:
        """Do `create_chat_completion` beside the event loop; with `stream` an async iterator."""
        return await _either(self.create_chat_completion, messages, **options)

    def parse(self, prompt: str | Sequence[Mapping[str, Any]], type_: type[T], **options: Any) -> T:
        """Ask for a value of a Python type: a pydantic model, dataclass, TypedDict, int, ...

        Args:
            prompt: The question, or a conversation.
            type_: What the answer shall be.
            **options: As for `create_chat_completion`.

        Raises:
            ValidationError: JSON has no such values, or the answer was cut off: by *max_tokens*,
                or where the context was full.
        """
        from .. import typed

        if options.get("stream") or options.get("response_format"):
            raise ValidationError("parse gives one whole value: no stream, no response_format")
        schema = typed.schema_of(type_)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        answer = self.create_chat_completion(
            messages,
            response_format={"type": "json_schema", "json_schema": {"schema": schema}},
            **{"max_tokens": None, **options},
        )
        choice, n_tokens = answer["choices"][0], answer["usage"]["completion_tokens"]
        if choice["finish_reason"] == "length":
            raise ValidationError(
                f"the answer was cut off after {n_tokens} tokens, before the JSON ended; raise "
                "max_tokens or n_ctx, or give the type's texts and lists a longest length"
            )
        return typed.value_of(type_, choice["message"]["content"])

    # Tokens

    def tokenize(self, text: str | bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Turn text into token ids; see `Vocab.tokenize`.

        Args:
            text: UTF-8.
            add_bos: Add BOS and EOS where the model wants them.
            special: Read the names of special tokens as such.

        Raises:
            ValidationError: The text is not valid.
        """
        return self.engine.model.vocab.tokenize(text, add_bos, special)

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> str:
        """Turn token ids into text; see `Vocab.detokenize`."""
        check = self.model.vocab.check
        return self.engine.detokenize([check(t) for t in as_list("tokens", tokens)], bool(special))

    def n_tokens(self, text: str, add_special: bool = True) -> int:
        """Return the number of tokens of *text*, with the BOS where the model wants one."""
        return len(self.engine.tokenize(text, add_special))

    # Embeddings

    def embed(self, text: str | Sequence[str], normalize: bool = True, **options: Any) -> Any:
        """Return the embedding of a text, or of each of several, as lists of floats.

        Args:
            text: One text: n_embd floats; several: a list of such lists.
            normalize: Give every vector the length 1.
            **options: As for `Embedder.embed`, with its errors.

        Raises:
            ValidationError: The model was not loaded with `embeddings=True`.
        """
        texts = [text] if isinstance(text, str) else as_list("text", text)
        rows = self._embeddings().embed(texts, normalize=normalize, **options)
        found = [row.tolist() for row in rows]
        return found[0] if isinstance(text, str) else found

    def create_embedding(
        self, input: str | Sequence[str], model: str | None = None
    ) -> CreateEmbeddingResponse:
        """Return embeddings in OpenAI's shape; see `embed`.

        Raises:
            ValidationError: The model was not loaded with `embeddings=True`.
        """
        texts = [input] if isinstance(input, str) else as_list("input", input)
        rows = self.embed(texts)
        n = sum(map(self.n_tokens, texts))
        return {
            "object": "list",
            "model": model or self.model_path,
            "data": [
                {"index": i, "object": "embedding", "embedding": row} for i, row in enumerate(rows)
            ],
            "usage": {"prompt_tokens": n, "total_tokens": n},
        }

    async def embed_async(self, *args: Any, **options: Any) -> Any:
        """Do `embed` beside the event loop."""
        return await whole_async(lambda: self.embed(*args, **options))

    async def create_embedding_async(self, *args: Any, **options: Any) -> CreateEmbeddingResponse:
        """Do `create_embedding` beside the event loop."""
        return await whole_async(lambda: self.create_embedding(*args, **options))

    def rerank(self, query: str, documents: Sequence[str], **options: Any) -> list[RerankResult]:
        """Sort *documents* by how well they answer *query*; see `Embedder.rerank`.

        Args:
            query: What is asked.
            documents: Any number.
            **options: As for `Embedder.rerank`, with its errors.

        Raises:
            ValidationError: The model was not loaded with `embeddings=True`.
        """
        return self._embeddings().rerank(query, documents, **options)

    def _embeddings(self) -> Embedder:
        if not self.config.embeddings:
            raise ValidationError("load the model with embeddings=True to embed or rerank")
        from ..embeddings.embedder import Embedder

        with self._lock:
            if self._embedder is None:
                threads = self.config.n_threads or 0
                embedder = Embedder(self.model, pooling=self.config.pooling, n_threads=threads)
                if self.config.pooling is None and embedder.pooling == "none":
                    embedder.close()
                    embedder = Embedder(self.model, pooling="mean", n_threads=threads)
                self._embedder = embedder
        return self._embedder


def _pieces(first: str, run: Iterator[Step]) -> Iterator[str]:
    if first:
        yield first
    for event in run:
        if event.text:
            yield event.text


def _engine(model: Model, config: LlamaConfig) -> AnyEngine:
    policy = "error" if config.context_policy == DROP_TURNS else config.context_policy
    options = {"context_policy": policy, **config.context_options()}
    n_parallel = check_int("parallel", config.parallel, 1, 256)
    if n_parallel == 1 and config.draft is None:
        return Engine(model, **options)
    from ..scheduler import InferenceEngine

    del options["n_seq_max"]
    return InferenceEngine(model, n_parallel, draft=config.draft, **options)


async def _either(
    call: Callable[..., Any], *args: Any, stream: bool = False, **options: Any
) -> Any:
    """Return what *call* returns, its iterator as an asynchronous one."""
    found = await whole_async(lambda: call(*args, stream=stream, **options))
    return stream_async(lambda: found) if stream else found


def print_system_info() -> str:
    """Return what the loaded build and its backends use; despite its name it prints nothing.

    It loads the build of `get_library()`, with its errors, where none is loaded yet.
    C: llama_print_system_info
    """
    return get_library().system_info


def shutdown() -> None:
    """Close every `Llama` that is open. Calling it again does nothing."""
    with _open_lock:
        every = list(_open)
    for llm in every:
        llm.close()

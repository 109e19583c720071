"""Llama with llama-cpp-python's arguments, defaults and methods."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from ..api import chat_completions, completions
from ..api.chat_completions import ChatPreparer
from ..api.echo import prepend, prompt_logprobs
from ..api.embedding_inputs import as_inputs
from ..api.llama import Llama as NativeLlama
from ..api.running import run
from ..binding import Model
from ..errors import ValidationError
from ..generation.chat_renderer import ChatRenderer
from ..generation.context_policy import DROP_TURNS
from ..generation.logprobs import logprob
from ..generation.options import resolve_sampling
from ..generation.prompt import common_prefix_length
from ..hub import resolve_model
from ..validation import checked_arguments
from .delegate import Delegate
from .llama_cache import BaseLlamaCache, LlamaState
from .llama_chat_format import (
    LlamaChatCompletionHandlerRegistry,
    Llava15ChatHandler,
    TemplateChatHandler,
    template_of,
)
from .llama_grammar import LlamaGrammar
from .llama_tokenizer import BaseLlamaTokenizer, LlamaTokenizer
from .options import DEFAULT_SEED, POOLING, check_tfs, config_of, max_tokens_of, seed_of
from .overflow import overflow_of
from .processors import (
    LogitsProcessor,
    LogitsProcessorList,
    MinTokensLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    several,
)
from .stepping import TokenStepper

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray
    from openai.types.chat import ChatCompletion, ChatCompletionChunk
    from typing_extensions import Self, Unpack

    from .. import grammars
    from ..api.chat_completions import Message, Tool
    from ..api.llama import CompletionOptions
    from ..api.running import AnyEngine
    from ..api.types import (
        CreateChatCompletionResponse,
        CreateChatCompletionStreamResponse,
        CreateCompletionResponse,
        CreateCompletionStreamResponse,
        CreateEmbeddingResponse,
    )
    from ..binding.model.files import Override
    from ..generation.options import GenerationOptions
    from ..generation.sampling_params import SamplingOptions, SamplingParams
    from ..generation.text import Stop
    from ..progress import Progress
    from .functions import ChatAnswer, ToolChoice
    from .llama_chat_format import LlamaChatCompletionHandler
    from .llama_speculative import LlamaDraftModel
    from .options import MoreChatCompletionOptions, MoreCompletionOptions, MoreLlamaOptions

__all__ = [
    "Llama",
    "LlamaGrammar",
    "LlamaState",
    "LogitsProcessor",
    "LogitsProcessorList",
    "MinTokensLogitsProcessor",
    "StoppingCriteria",
    "StoppingCriteriaList",
]

T = TypeVar("T")


class Llama:
    """A model with llama-cpp-python's interface, over a `llama_cffi.Llama`.

    Methods that llama-cpp-python does not have, such as `parse` or `create_completion_async`, are
    those of `native`, with its defaults.

    Args:
        model_path: A GGUF file, or `hf:owner/repo:file`.
        n_gpu_layers: Layers on the GPU; -1: all.
        split_mode: How several GPUs share the model, one of LLAMA_SPLIT_MODE_*.
        main_gpu: See `llama_cffi.Model`.
        tensor_split: See `llama_cffi.Model`.
        vocab_only: Load the vocabulary and the metadata without the weights: to tokenize.
        use_mmap: Map the file instead of reading it.
        use_mlock: Keep the weights in RAM.
        kv_overrides: See `llama_cffi.Model`.
        seed: Makes the answers reproducible: calls without a seed draw the next of a sequence; -1
            and LLAMA_DEFAULT_SEED: a random one.
        n_ctx: Context size, tokens; 0: the model's own.
        n_batch: Maximum number of prompt tokens per decode call.
        n_ubatch: Maximum number of tokens computed together; None: 512, or what `tune` has kept.
        n_threads: Threads for generation; None: physical cores.
        n_threads_batch: Threads for prompts; None: *n_threads*.
        rope_scaling_type: One of LLAMA_ROPE_SCALING_TYPE_*.
        pooling_type: How token embeddings are pooled, one of LLAMA_POOLING_TYPE_*.
        attention_type: One of LLAMA_ATTENTION_TYPE_*.
        rope_freq_base: 0: the model's own.
        rope_freq_scale: 0: the model's own.
        yarn_ext_factor: See `ContextParams`.
        yarn_attn_factor: See `ContextParams`.
        yarn_beta_fast: See `ContextParams`.
        yarn_beta_slow: See `ContextParams`.
        yarn_orig_ctx: See `ContextParams`.
        logits_all: Keep the logits of all evaluated tokens in `scores`; log-probabilities of
            completions do not need it.
        embedding: Enable `embed`; completions stay available.
        offload_kqv: Keep the KV cache on the GPU.
        flash_attn: None: the build decides.
        op_offload: See `ContextParams`.
        swa_full: See `ContextParams`.
        no_perf: Do not measure times for `perf`.
        last_n_tokens_size: Number of last tokens that the penalties apply to.
        lora_base: Not supported.
        lora_scale: Scale of the adapter.
        lora_path: A LoRA adapter.
        numa: Not supported.
        chat_format: The name of a format, or the source of a Jinja template; None: the model's
            own.
        chat_handler: Answers conversations in place of a format.
        draft_model: Accepted but not used; the output is the same.
        tokenizer: For prompts given as str, `tokenize` and `detokenize`; None: the model's own.
        type_k: Type of the keys in the KV cache, one of GGML_TYPE_*.
        type_v: Type of its values.
        spm_infill: Put the suffix before the prefix in fill-in-the-middle prompts.
        verbose: Accepted; nothing is printed, and C's messages go to `llama_cffi.native`.
        **more: See `MoreLlamaOptions`.

    Attributes:
        model: The model.
        config: The configuration.
        chat_format: As above; can be set.
        chat_handler: As above; can be set.
        cache: See `set_cache`.
        metadata: The metadata of the GGUF file.

    Raises:
        ModelLoadError: The model cannot be loaded.
        ValidationError: An argument is out of range or not supported.
        TypeError: An argument does not exist.
    """

    @checked_arguments()
    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        n_gpu_layers: int = 0,
        split_mode: int | str = 1,
        main_gpu: int = 0,
        tensor_split: Sequence[float] | None = None,
        vocab_only: bool = False,
        use_mmap: bool = True,
        use_mlock: bool = False,
        kv_overrides: Mapping[str, Override] | None = None,
        seed: int = DEFAULT_SEED,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int | None = None,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        rope_scaling_type: int | str | None = -1,
        pooling_type: int | str = -1,
        attention_type: int | str = -1,
        rope_freq_base: float = 0.0,
        rope_freq_scale: float = 0.0,
        yarn_ext_factor: float = -1.0,
        yarn_attn_factor: float = 1.0,
        yarn_beta_fast: float = 32.0,
        yarn_beta_slow: float = 1.0,
        yarn_orig_ctx: int = 0,
        logits_all: bool = False,
        embedding: bool = False,
        offload_kqv: bool = True,
        flash_attn: bool | None = None,
        op_offload: bool | None = None,
        swa_full: bool | None = None,
        no_perf: bool = False,
        last_n_tokens_size: int = 64,
        lora_base: str | None = None,
        lora_scale: float = 1.0,
        lora_path: str | None = None,
        numa: bool | int = False,
        chat_format: str | None = None,
        chat_handler: LlamaChatCompletionHandler | None = None,
        draft_model: LlamaDraftModel | None = None,
        tokenizer: BaseLlamaTokenizer | None = None,
        type_k: int | str | None = None,
        type_v: int | str | None = None,
        spm_infill: bool = False,
        verbose: bool = True,
        **more: Unpack[MoreLlamaOptions],
    ) -> None:
        arguments = {k: v for k, v in locals().items() if k not in ("self", "more")}
        self._arguments: dict[str, Any] = {**arguments, **more}
        del arguments["model_path"]
        if isinstance(chat_handler, Llava15ChatHandler):
            more = {**more, **chat_handler.llama_options}  # type: ignore[typeddict-item]
        config = config_of(arguments, more)
        self._native: NativeLlama | None = None
        if vocab_only:
            path = resolve_model(model_path)
            self.model = Model(path, vocab_only=True, kv_overrides=kv_overrides)
            self.config, self.model_path = config, str(path)
        else:
            self._native = native = NativeLlama(model_path, config)
            self.model, self.config = native.model, native.config
            self.model_path = native.model_path
        self._preparers: dict[str, ChatPreparer] = {}
        self.chat_format, self.chat_handler = chat_format, chat_handler
        self.draft_model, self.spm_infill, self.verbose = draft_model, spm_infill, verbose
        self.lora_path, self.lora_scale = lora_path, lora_scale
        self.logits_all, self.last_n_tokens_size = logits_all, last_n_tokens_size
        self.tokenizer_: BaseLlamaTokenizer = tokenizer or LlamaTokenizer(self)
        self.cache: BaseLlamaCache | None = None
        self.model_params = SimpleNamespace(**arguments)
        self.context_params = SimpleNamespace(**arguments, embeddings=embedding)
        if not vocab_only:
            self.context_params.n_ctx = self.engine.n_ctx
            for name in ("n_batch", "n_ubatch", "n_seq_max", "n_threads", "n_threads_batch"):
                setattr(self.context_params, name, getattr(self.engine.context, name))
            registered = LlamaChatCompletionHandlerRegistry().get(chat_format)
            if chat_format is not None and chat_handler is None and registered is None:
                self.preparer_of(chat_format)  # refuses an unknown one now
        self.n_batch: int = self.context_params.n_batch
        self.n_threads: int = self.context_params.n_threads
        self.n_threads_batch: int = self.context_params.n_threads_batch

    @property
    def native(self) -> NativeLlama:
        """The `llama_cffi.Llama` below.

        Raises:
            ValidationError: The model was loaded with `vocab_only`.
        """
        if self._native is None:
            raise ValidationError(
                f"{self.model.path.name} was loaded with vocab_only=True, without its weights: it "
                "can tokenize and detokenize; load it without vocab_only for anything else"
            )
        return self._native

    @property
    def engine(self) -> AnyEngine:
        """The engine of `native`, with its error."""
        return self.native.engine

    @cached_property
    def _stepper(self) -> TokenStepper:
        return TokenStepper(self.engine, self.logits_all)

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None = None,
        additional_files: Sequence[str] | None = None,
        local_dir: str | os.PathLike[str] | None = None,
        local_dir_use_symlinks: bool | Literal["auto"] = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Self:
        """Load a model from the Hugging Face hub, through its cache.

        Args:
            repo_id: `owner/repo`, with `@revision` if wanted.
            filename: The file, a pattern such as `*q8_0.gguf`, or a quantization.
            additional_files: Further files to fetch; parts of a split model need not be listed.
            local_dir: A folder for the files, in place of the cache.
            local_dir_use_symlinks: Ignored, as by huggingface_hub.
            cache_dir: The cache of the hub.
            **options: Arguments of the class.

        Raises:
            FetchError: A file cannot be fetched.
            ValidationError: No file in the repository matches, or several do.
        """

        def fetch(name: str | None) -> os.PathLike[str]:
            spec = f"hf:{repo_id}" + (f":{name}" if name else "")
            return resolve_model(spec, cache_dir=cache_dir, local_dir=local_dir)

        path = fetch(filename)
        for name in additional_files or ():
            fetch(name)
        return cls(path, **options)

    def __repr__(self) -> str:
        state = "closed" if self.model.closed else f"n_ctx={self.context_params.n_ctx}"
        return f"llama_cpp.Llama({self.model_path!r}, {state})"

    def __getstate__(self) -> dict[str, Any]:
        return self._arguments

    def __setstate__(self, state: dict[str, Any]) -> None:
        Llama.__init__(self, **state)

    def close(self) -> None:
        """Stop what runs and free everything. A second call does nothing."""
        (self._native or self.model).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The model

    @cached_property
    def metadata(self) -> dict[str, str]:
        """The GGUF's scalar metadata as strings."""
        return self.model.metadata

    def n_ctx(self) -> int:
        """Return the context size: the maximum number of tokens of prompt and answer together."""
        return int(self.context_params.n_ctx)

    def n_vocab(self) -> int:
        """Return the number of tokens in the vocabulary."""
        return len(self.model.vocab)

    def n_embd(self) -> int:
        """Return the dimension of the embeddings."""
        return self.model.n_embd

    def token_bos(self) -> int:
        """Return the beginning-of-sequence token; -1: none."""
        return _or_minus_1(self.model.vocab.bos)

    def token_eos(self) -> int:
        """Return the end-of-sequence token; -1: none."""
        return _or_minus_1(self.model.vocab.eos)

    def token_nl(self) -> int:
        """Return the newline token; -1: none."""
        return _or_minus_1(self.model.vocab.nl)

    def pooling_type(self) -> int:
        """Return the pooling of embeddings, one of LLAMA_POOLING_TYPE_*."""
        config = self.config
        pooling = self.native.embedder.pooling if config.embeddings else config.pooling
        return {name: number for number, name in POOLING.items()}[pooling]

    def set_seed(self, seed: int) -> None:
        """Start the sequence of seeds, from which calls without one draw theirs, anew."""
        self.native.seeds.restart(seed_of(seed))
        self.config.seed = self.native.seeds.seed

    def set_cache(self, cache: BaseLlamaCache | None) -> None:
        """Store the state after each answer in *cache*; start from the one that fits best."""
        self.cache = cache

    # Tokens

    def tokenizer(self) -> LlamaTokenizer:
        """Return the model's tokenizer."""
        return LlamaTokenizer(self)

    def tokenize(self, text: str | bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Tokenize *text*, UTF-8; with *special*, control tokens spelled out are parsed."""
        data = text.encode() if isinstance(text, str) else text
        return self.tokenizer_.tokenize(data, add_bos, special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """Return the bytes of *tokens*, which follow *prev_tokens*."""
        return self.tokenizer_.detokenize(tokens, prev_tokens, special)

    # Completions

    @overload
    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = ...,
        max_tokens: int | None = ...,
        temperature: float = ...,
        top_p: float = ...,
        min_p: float = ...,
        typical_p: float = ...,
        logprobs: int | None = ...,
        echo: bool = ...,
        stop: Stop | Sequence[Stop] | None = ...,
        frequency_penalty: float = ...,
        presence_penalty: float = ...,
        repeat_penalty: float = ...,
        top_k: int = ...,
        stream: Literal[False] = ...,
        seed: int | None = ...,
        tfs_z: float = ...,
        mirostat_mode: int = ...,
        mirostat_tau: float = ...,
        mirostat_eta: float = ...,
        model: str | None = ...,
        stopping_criteria: StoppingCriteria | Sequence[StoppingCriteria] | None = ...,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = ...,
        grammar: str | grammars.LlamaGrammar | None = ...,
        logit_bias: Mapping[int, float] | None = ...,
        **options: Unpack[MoreCompletionOptions],
    ) -> CreateCompletionResponse: ...

    @overload
    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = ...,
        max_tokens: int | None = ...,
        *,
        stream: Literal[True],
        tfs_z: float = ...,
        **options: Unpack[CompletionOptions],
    ) -> Iterator[CreateCompletionStreamResponse]: ...

    @overload
    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = ...,
        max_tokens: int | None = ...,
        *,
        stream: bool,
        tfs_z: float = ...,
        **options: Unpack[CompletionOptions],
    ) -> CreateCompletionResponse | Iterator[CreateCompletionStreamResponse]: ...

    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        # None, as in the overloads' options: the default of `SamplingParams`.
        temperature: float | None = 0.8,
        top_p: float | None = 0.95,
        min_p: float | None = 0.05,
        typical_p: float | None = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: Stop | Sequence[Stop] | None = None,
        frequency_penalty: float | None = 0.0,
        presence_penalty: float | None = 0.0,
        repeat_penalty: float | None = 1.0,
        top_k: int | None = 40,
        stream: bool = False,
        seed: int | None = None,
        tfs_z: float | None = 1.0,
        mirostat_mode: int | None = 0,
        mirostat_tau: float | None = 5.0,
        mirostat_eta: float | None = 0.1,
        model: str | None = None,
        stopping_criteria: StoppingCriteria | Sequence[StoppingCriteria] | None = None,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        grammar: str | grammars.LlamaGrammar | None = None,
        logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] | None = None,
        **options: Unpack[MoreCompletionOptions],
    ) -> CreateCompletionResponse | Iterator[CreateCompletionStreamResponse]:
        """Continue *prompt* and return OpenAI's response, or with *stream* an iterator of chunks.

        The arguments are those of `llama_cffi.Llama.create_completion`, but *max_tokens* of 0 or
        less means no limit, and *tfs_z* must be 1.

        Raises:
            ValidationError: An argument is out of range.
            ContextOverflowError: The prompt leaves no room for an answer.
        """
        check_tfs(tfs_z)
        given = prompt
        if isinstance(prompt, str) and not isinstance(self.tokenizer_, LlamaTokenizer):
            given = self.tokenize(prompt, special=suffix is None)
        if suffix is not None and self.spm_infill:
            given, suffix = completions.prompt_tokens(self.model, given, suffix, spm=True), None
        if self.cache is not None:
            self._recall(completions.prompt_tokens(self.model, given, suffix))
        every: CompletionOptions = {
            "penalty_last_n": self.last_n_tokens_size,
            **options,
            "temperature": temperature,
            "top_p": top_p,
            "min_p": min_p,
            "typical_p": typical_p,
            "logprobs": logprobs,
            "echo": echo,
            "stop": stop,
            "frequency_penalty": frequency_penalty,
            "presence_penalty": presence_penalty,
            "repeat_penalty": repeat_penalty,
            "top_k": top_k,
            "seed": None if seed is None else seed_of(seed),
            "mirostat_mode": mirostat_mode,
            "mirostat_tau": mirostat_tau,
            "mirostat_eta": mirostat_eta,
            "model": model,
            "stopping_criteria": several(stopping_criteria),
            "logits_processor": several(logits_processor),
            "grammar": grammar,
            "logit_bias": logit_bias,
        }
        max_tokens = max_tokens_of(max_tokens)

        def n_prompt() -> int:
            return len(completions.prompt_tokens(self.model, given, suffix))

        with overflow_of(n_prompt, self.n_ctx()):
            if stream:
                chunks = self.native.create_completion(
                    given, suffix, max_tokens, stream=True, **every
                )
                return self._remember_after(chunks, n_prompt)
            if echo and logprobs is not None:
                tokens = completions.prompt_tokens(self.model, given, suffix)
                logits = self._stepper.eval_anew(tokens)
                every["echo"] = False
                answer = self.native.create_completion(tokens, None, max_tokens, **every)
                text = prompt if isinstance(prompt, str) else self.engine.detokenize(prompt)
                scores = [
                    logprob(row, token, logprobs)
                    for row, token in zip(logits, tokens[1:], strict=False)
                ]
                prepend(answer, text, prompt_logprobs(self.model.vocab, tokens, scores))
            else:
                answer = self.native.create_completion(given, suffix, max_tokens, **every)
        return self._remember(answer)

    __call__ = create_completion

    @overload
    def create_chat_completion(
        self,
        messages: Sequence[Message],
        functions: Sequence[Mapping[str, object]] | None = ...,
        function_call: ToolChoice | None = ...,
        tools: Sequence[Tool] | None = ...,
        tool_choice: ToolChoice | None = ...,
        temperature: float = ...,
        top_p: float = ...,
        top_k: int = ...,
        min_p: float = ...,
        typical_p: float = ...,
        stream: Literal[False] = ...,
        stop: Stop | Sequence[Stop] | None = ...,
        seed: int | None = ...,
        response_format: Mapping[str, object] | None = ...,
        max_tokens: int | None = ...,
        presence_penalty: float = ...,
        frequency_penalty: float = ...,
        repeat_penalty: float = ...,
        tfs_z: float = ...,
        mirostat_mode: int = ...,
        mirostat_tau: float = ...,
        mirostat_eta: float = ...,
        model: str | None = ...,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = ...,
        grammar: str | grammars.LlamaGrammar | None = ...,
        logit_bias: Mapping[int, float] | None = ...,
        logprobs: bool | None = ...,
        top_logprobs: int | None = ...,
        **options: Unpack[MoreChatCompletionOptions],
    ) -> CreateChatCompletionResponse: ...

    @overload
    def create_chat_completion(
        self,
        messages: Sequence[Message],
        functions: Sequence[Mapping[str, object]] | None = ...,
        function_call: ToolChoice | None = ...,
        *,
        stream: Literal[True],
        tfs_z: float = ...,
        **options: Unpack[chat_completions.ChatCompletionOptions],
    ) -> Iterator[CreateChatCompletionStreamResponse]: ...

    @overload
    def create_chat_completion(
        self,
        messages: Sequence[Message],
        functions: Sequence[Mapping[str, object]] | None = ...,
        function_call: ToolChoice | None = ...,
        *,
        stream: bool,
        tfs_z: float = ...,
        **options: Unpack[chat_completions.ChatCompletionOptions],
    ) -> ChatAnswer: ...

    def create_chat_completion(
        self,
        messages: Sequence[Message],
        functions: Sequence[Mapping[str, object]] | None = None,
        function_call: ToolChoice | None = None,
        tools: Sequence[Tool] | None = None,
        tool_choice: ToolChoice | None = None,
        # None, as in the overloads' options: the default of `SamplingParams`.
        temperature: float | None = 0.2,
        top_p: float | None = 0.95,
        top_k: int | None = 40,
        min_p: float | None = 0.05,
        typical_p: float | None = 1.0,
        stream: bool = False,
        stop: Stop | Sequence[Stop] | None = None,
        seed: int | None = None,
        response_format: Mapping[str, object] | None = None,
        max_tokens: int | None = None,
        presence_penalty: float | None = 0.0,
        frequency_penalty: float | None = 0.0,
        repeat_penalty: float | None = 1.0,
        tfs_z: float | None = 1.0,
        mirostat_mode: int | None = 0,
        mirostat_tau: float | None = 5.0,
        mirostat_eta: float | None = 0.1,
        model: str | None = None,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        grammar: str | grammars.LlamaGrammar | None = None,
        logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] | None = None,
        logprobs: int | None = None,
        top_logprobs: int | None = None,
        **options: Unpack[MoreChatCompletionOptions],
    ) -> ChatAnswer:
        """Answer a conversation in OpenAI's shape, with *stream* chunk by chunk.

        The arguments are those of `llama_cffi.Llama.create_chat_completion`; *functions* and
        *function_call* are OpenAI's deprecated form of tools, *max_tokens* of 0 or less means no
        limit, and *tfs_z* must be 1.

        Raises:
            TemplateError: The chat template refuses the messages.
            ValidationError: An argument is out of range.
            ContextOverflowError: The conversation leaves no room for an answer.
        """
        arguments: dict[str, Any] = {
            k: v for k, v in locals().items() if k not in ("self", "options")
        }
        arguments |= options
        return self._handler()(llama=self, **arguments)

    def _handler(self) -> LlamaChatCompletionHandler:
        registered = LlamaChatCompletionHandlerRegistry().get(self.chat_format)
        return self.chat_handler or registered or TemplateChatHandler(self.chat_format)

    def create_chat_completion_openai_v1(
        self, *args: Any, **options: Any
    ) -> ChatCompletion | Iterator[ChatCompletionChunk]:
        """Do `create_chat_completion` and return the types of the package `openai`.

        Raises:
            ImportError: The package is not installed.
        """
        from openai.types.chat import ChatCompletion, ChatCompletionChunk

        answer: ChatAnswer = self.create_chat_completion(*args, **options)
        if isinstance(answer, Mapping):
            return ChatCompletion.model_validate(answer)
        return map(ChatCompletionChunk.model_validate, answer)

    def answer(
        self, preparer: ChatPreparer, messages: Sequence[Message], arguments: Mapping[str, object]
    ) -> ChatAnswer:
        """Answer a conversation that *preparer* renders; chat handlers call it.

        Args:
            preparer: Checks, renders and tokenizes.
            messages: OpenAI's shape, the oldest first.
            arguments: Those of `create_chat_completion` that are left, by name.

        Raises:
            TemplateError: The chat template refuses the messages.
            ValidationError: An argument is out of range.
            ContextOverflowError: The conversation leaves no room for an answer.
        """
        options: dict[str, Any] = {
            "temperature": 0.2,
            "penalty_last_n": self.last_n_tokens_size,
            **arguments,
        }
        check_tfs(options.pop("tfs_z", None))
        stream, seed = options.pop("stream", False), options.get("seed")
        options |= {
            "seed": None if seed is None else seed_of(seed),
            "max_tokens": max_tokens_of(options.get("max_tokens")),
            "logits_processor": several(options.get("logits_processor")),
        }
        prepared = preparer.prepare(messages, options, self.model_path, stream=bool(stream))
        self._recall(prepared.request.tokens)

        def n_prompt() -> int:
            return len(prepared.request.tokens)

        with overflow_of(n_prompt, self.n_ctx()):
            runs = run(self.engine, prepared.request)
            if stream:
                return self._remember_after(chat_completions.stream(prepared, runs), n_prompt)
            return self._remember(chat_completions.whole(prepared, runs))

    def preparer_of(self, chat_format: str | None) -> ChatPreparer:
        """Return a preparer of chat completions in a format; chat handlers call it.

        Raises:
            ValidationError: The format does not exist.
        """
        source = template_of(chat_format, self.metadata)
        if source is None:
            return self.native.chat
        if source not in self._preparers:
            self._preparers[source] = self.preparer(
                ChatRenderer(self.model, source, self.engine.media)
            )
        return self._preparers[source]

    def preparer(self, renderer: ChatRenderer) -> ChatPreparer:
        """Return a preparer of chat completions that uses *renderer*; chat handlers call it."""
        policy = DROP_TURNS if self.config.context_policy == DROP_TURNS else None
        return ChatPreparer(
            self.model, renderer, self.engine.n_ctx, policy, seeds=self.native.seeds
        )

    def _recall(self, prompt: Sequence[int]) -> None:
        """Load the cached state that shares more of *prompt* than what is evaluated."""
        if self.cache is None:
            return
        try:
            state = self.cache[prompt]
        except KeyError:
            return
        cached = common_prefix_length(state.input_ids.tolist(), prompt)
        if cached > common_prefix_length(self._stepper.tokens, prompt):
            self.native.set_state(state.llama_state)

    def _remember(self, answer: T) -> T:
        """Store the state after *answer* in the cache."""
        if self.cache is not None:
            state = self.save_state()
            self.cache[state.input_ids.tolist()] = state
        return answer

    def _remember_after(self, chunks: Iterator[T], n_prompt: Callable[[], int]) -> Iterator[T]:
        with overflow_of(n_prompt, self.n_ctx()):
            yield from chunks
        self._remember(None)

    # Embeddings

    @overload
    def embed(  # type: ignore[overload-overlap]  # a str is a Sequence[str], too
        self,
        input: str | Sequence[int],
        normalize: bool = ...,
        truncate: bool = ...,
        return_count: Literal[False] = ...,
        *,
        progress: Progress = ...,
    ) -> list[float]: ...

    @overload
    def embed(
        self,
        input: Sequence[str | Sequence[int]],
        normalize: bool = ...,
        truncate: bool = ...,
        return_count: Literal[False] = ...,
        *,
        progress: Progress = ...,
    ) -> list[list[float]]: ...

    @overload
    def embed(
        self,
        input: str | Sequence[int] | Sequence[str | Sequence[int]],
        normalize: bool = ...,
        truncate: bool = ...,
        *,
        return_count: Literal[True],
        progress: Progress = ...,
    ) -> tuple[list[float] | list[list[float]], int]: ...

    def embed(
        self,
        input: str | Sequence[int] | Sequence[str | Sequence[int]],
        normalize: bool = False,
        truncate: bool = True,
        return_count: bool = False,
        *,
        progress: Progress = None,
    ) -> list[float] | list[list[float]] | tuple[list[float] | list[list[float]], int]:
        """Return the embedding of a text, or of each of several, as lists of floats.

        With LLAMA_POOLING_TYPE_NONE each embedding is a list with one vector per token.

        Args:
            input: One text, or its token ids; or a list of texts or lists of token ids.
            normalize: Scale every vector to length 1.
            truncate: Cut inputs that are longer than the model supports.
            return_count: Also return the number of tokens.
            progress: See `llama_cffi.Embedder.embed`.

        Raises:
            ContextOverflowError: An input is too long, without *truncate*.
            ValidationError: The model was not loaded with `embedding=True`.
        """
        found = self.native.embed(input, normalize, truncate=truncate, progress=progress)
        inputs, _ = as_inputs("input", input)
        return (found, self._n_embedded(inputs)) if return_count else found

    def create_embedding(
        self,
        input: str | Sequence[int] | Sequence[str | Sequence[int]],
        model: str | None = None,
    ) -> CreateEmbeddingResponse:
        """Return embeddings in OpenAI's shape; see `embed` for the errors."""
        inputs, _ = as_inputs("input", input)
        rows, n = self.embed(inputs), self._n_embedded(inputs)
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "embedding": row, "index": i} for i, row in enumerate(rows)
            ],
            "model": model or self.model_path,
            "usage": {"prompt_tokens": n, "total_tokens": n},
        }

    def _n_embedded(self, inputs: Sequence[str | Sequence[int]]) -> int:
        """Return the number of tokens of *inputs*, each cut at the model's limit."""
        count, limit = self.native.n_tokens, self.native.embedder.n_tokens_max
        return sum(min(limit, count(x) if isinstance(x, str) else len(x)) for x in inputs)

    # Token by token

    @property
    def n_tokens(self) -> int:
        """Number of evaluated tokens; set it to a smaller number to drop the last ones."""
        return len(self._stepper.tokens)

    @n_tokens.setter
    def n_tokens(self, n: int) -> None:
        self._stepper.truncate(n)

    @property
    def input_ids(self) -> NDArray[np.int32]:
        """The evaluated tokens: (n_ctx,) int32, zeros after the first `n_tokens`."""
        import numpy as np

        ids, tokens = np.zeros(self.engine.n_ctx, np.int32), self._stepper.tokens
        ids[: len(tokens)] = tokens
        return ids

    @property
    def eval_tokens(self) -> deque[int]:
        """The evaluated tokens."""
        return deque(self._stepper.tokens, maxlen=self.engine.n_ctx)

    @property
    def scores(self) -> NDArray[np.float32]:
        """Row i: the logits after token i. (n_ctx, n_vocab) float32.

        With `logits_all` of every token that `eval` and `generate` evaluated, else of the last one.
        """
        return self._stepper.scores

    @property
    def eval_logits(self) -> deque[list[float]]:
        """The rows of `scores` that are filled: all with `logits_all`, else the last."""
        n = self.n_tokens
        first = 0 if self.logits_all else max(0, n - 1)
        return deque(self.scores[first:n].tolist(), maxlen=self.engine.n_ctx)

    def reset(self) -> None:
        """Forget the evaluated tokens; adapters stay active."""
        self.native.reset()

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate *tokens* after the evaluated ones.

        Raises:
            KvCacheFullError: They do not fit.
            ValidationError: A token does not exist.
        """
        self._stepper.eval(tokens)

    def sample(
        self,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_eta: float = 0.1,
        mirostat_tau: float = 5.0,
        penalize_nl: bool = True,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        grammar: str | grammars.LlamaGrammar | None = None,
        idx: int | None = None,
    ) -> int:
        """Choose the token after the evaluated ones, without evaluating it.

        The arguments are those of `create_completion`, but *penalize_nl* is ignored. With *idx* it
        is the token after the evaluated one of that index; all but the last need `logits_all`. Each
        call starts the grammar anew.

        Raises:
            ValidationError: No tokens are evaluated, or the logits after *idx* are not kept.
        """
        check_tfs(tfs_z)
        params = self._sampling(
            top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p, temperature=temp,
            repeat_penalty=repeat_penalty, frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty, mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau, mirostat_eta=mirostat_eta,
            logits_processor=several(logits_processor), grammar=grammar,
        )  # fmt: skip
        return self._stepper.sample(params, idx)

    @overload
    def generate(
        self,
        tokens: Sequence[int],
        top_k: int = ...,
        top_p: float = ...,
        min_p: float = ...,
        typical_p: float = ...,
        temp: float = ...,
        repeat_penalty: float = ...,
        reset: bool = ...,
        frequency_penalty: float = ...,
        presence_penalty: float = ...,
        tfs_z: float = ...,
        mirostat_mode: int = ...,
        mirostat_tau: float = ...,
        mirostat_eta: float = ...,
        penalize_nl: bool = ...,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = ...,
        stopping_criteria: StoppingCriteria | Sequence[StoppingCriteria] | None = ...,
        grammar: str | grammars.LlamaGrammar | None = ...,
    ) -> Generator[int, Sequence[int] | None, None]: ...

    @overload
    def generate(
        self,
        tokens: str,
        max_tokens: int | None = ...,
        *,
        stream: Literal[False] = ...,
        **options: Unpack[GenerationOptions],
    ) -> str: ...

    @overload
    def generate(
        self,
        tokens: str,
        max_tokens: int | None = ...,
        *,
        stream: Literal[True],
        **options: Unpack[GenerationOptions],
    ) -> Iterator[str]: ...

    def generate(
        self, tokens: str | Sequence[int], *args: Any, **options: Any
    ) -> str | Iterator[str] | Generator[int, Sequence[int] | None, None]:
        """Continue *tokens*: yield token after token without end, end-of-generation tokens too.

        Evaluated tokens that begin *tokens* are not evaluated again. Tokens that are sent to the
        generator follow the token it yielded. With a str it is `llama_cffi.Llama.generate`.

        Args:
            tokens: Token ids; with `reset=False` they follow the evaluated ones.
            *args: `top_k`, `top_p`, `min_p`, `typical_p`, `temp`, `repeat_penalty`, `reset`,
                `frequency_penalty`, `presence_penalty`, `tfs_z`, `mirostat_mode`, `mirostat_tau`,
                `mirostat_eta`, `penalize_nl`, `logits_processor`, `stopping_criteria`, `grammar`:
                as for `sample` and `create_completion`.
            **options: The same by name.

        Raises:
            ValidationError: There are no tokens, or an argument is out of range.
            KvCacheFullError: The context is full.
        """
        if isinstance(tokens, str):
            found: str | Iterator[str] = self.native.generate(tokens, *args, **options)
            return found
        return self._generate(tokens, *args, **options)

    def _generate(
        self,
        tokens: Sequence[int],
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        reset: bool = True,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        penalize_nl: bool = True,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        stopping_criteria: StoppingCriteria | Sequence[StoppingCriteria] | None = None,
        grammar: str | grammars.LlamaGrammar | None = None,
    ) -> Generator[int, Sequence[int] | None, None]:
        check_tfs(tfs_z)
        params = self._sampling(
            top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p, temperature=temp,
            repeat_penalty=repeat_penalty, frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty, mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau, mirostat_eta=mirostat_eta,
            logits_processor=several(logits_processor), grammar=grammar,
        )  # fmt: skip
        return self._stepper.generate(tokens, params, reset, several(stopping_criteria))

    def _sampling(self, **options: Unpack[SamplingOptions]) -> SamplingParams:
        own: SamplingOptions = {
            "penalty_last_n": self.last_n_tokens_size,
            "seed": self.native.seeds.draw(),
        }
        return resolve_sampling({**own, **options})

    @staticmethod
    def logits_to_logprobs(logits: ArrayLike, axis: int = -1) -> NDArray[np.float32]:
        """Return log-softmax along an axis: float32, the shape of *logits*, (n, ...)."""
        import numpy as np

        x = np.asarray(logits, np.float32)
        x = x - x.max(axis=axis, keepdims=True)
        return np.asarray(x - np.log(np.exp(x).sum(axis=axis, keepdims=True)), np.float32)

    longest_token_prefix = staticmethod(common_prefix_length)

    # State

    @overload
    def save_state(self, path: None = None) -> LlamaState: ...

    @overload
    def save_state(self, path: str | os.PathLike[str]) -> None: ...

    def save_state(self, path: str | os.PathLike[str] | None = None) -> LlamaState | None:
        """Return the state, or write it to a file as `llama_cffi.Llama.save_state` does.

        Raises:
            ValidationError: Many requests share the context.
            OSError: The file cannot be written.
        """
        if path is not None:
            self.native.save_state(path)
            return None
        import numpy as np

        # The cells of pictures and sounds have no tokens.
        tokens = np.array([max(token, -1) for token in self._stepper.tokens], np.int32)
        state = self.native.get_state()
        n = len(tokens)
        rows = self.scores[:n].copy() if self.logits_all else np.empty((0, 0), np.float32)
        return LlamaState(tokens, rows, n, state, len(state), self.native.seeds.seed)

    @overload
    def load_state(self, state: LlamaState) -> None: ...

    @overload
    def load_state(self, state: bytes | str | os.PathLike[str]) -> int: ...

    def load_state(self, state: LlamaState | bytes | str | os.PathLike[str]) -> int | None:
        """Restore what `save_state` returned or wrote; return the number of tokens of a file.

        The last token of a `LlamaState` is evaluated again, so that `sample` has its logits.

        Raises:
            ValidationError: The state is damaged, or of another model or context.
            OSError: The file cannot be read.
        """
        if not isinstance(state, LlamaState):
            return self.native.load_state(state)
        self.native.set_state(state.llama_state)
        self._stepper.restore_scores(state.scores)
        self.set_seed(state.seed)
        self._stepper.eval_last()
        return None

    # Methods that llama-cpp-python does not have

    closed = Delegate(lambda native: native.closed)
    sampling = Delegate(lambda native: native.sampling)
    renderer = Delegate(lambda native: native.renderer)
    modalities = Delegate(lambda native: native.modalities)
    chat = Delegate(lambda native: native.chat)
    embedder = Delegate(lambda native: native.embedder)
    embedding_stats = Delegate(lambda native: native.embedding_stats)
    serve = Delegate(lambda native: native.serve)
    decide = Delegate(lambda native: native.decide)
    decide_async = Delegate(lambda native: native.decide_async)
    decide_batch = Delegate(lambda native: native.decide_batch)
    decide_batch_async = Delegate(lambda native: native.decide_batch_async)
    parse = Delegate(lambda native: native.parse)
    map = Delegate(lambda native: native.map)
    map_async = Delegate(lambda native: native.map_async)
    transcribe = Delegate(lambda native: native.transcribe)
    transcribe_async = Delegate(lambda native: native.transcribe_async)
    rerank = Delegate(lambda native: native.rerank)
    generate_stream = Delegate(lambda native: native.generate_stream)
    generate_async = Delegate(lambda native: native.generate_async)
    create_completion_async = Delegate(lambda native: native.create_completion_async)
    create_chat_completion_async = Delegate(lambda native: native.create_chat_completion_async)
    embed_async = Delegate(lambda native: native.embed_async)
    create_embedding_async = Delegate(lambda native: native.create_embedding_async)
    n_layer = Delegate(lambda native: native.n_layer)
    n_params = Delegate(lambda native: native.n_params)
    model_size = Delegate(lambda native: native.model_size)
    token_eot = Delegate(lambda native: native.token_eot)
    token_to_piece = Delegate(lambda native: native.token_to_piece)
    get_chat_template = Delegate(lambda native: native.get_chat_template)
    get_state = Delegate(lambda native: native.get_state)
    set_state = Delegate(lambda native: native.set_state)
    kv_cache_clear = Delegate(lambda native: native.kv_cache_clear)
    kv_cache_seq_rm = Delegate(lambda native: native.kv_cache_seq_rm)
    kv_cache_seq_cp = Delegate(lambda native: native.kv_cache_seq_cp)
    kv_cache_seq_keep = Delegate(lambda native: native.kv_cache_seq_keep)
    kv_cache_seq_add = Delegate(lambda native: native.kv_cache_seq_add)
    kv_cache_seq_pos_max = Delegate(lambda native: native.kv_cache_seq_pos_max)
    adapters = Delegate(lambda native: native.adapters)
    set_adapters = Delegate(lambda native: native.set_adapters)
    load_lora = Delegate(lambda native: native.load_lora)
    remove_lora = Delegate(lambda native: native.remove_lora)
    clear_lora = Delegate(lambda native: native.clear_lora)
    perf = Delegate(lambda native: native.perf)
    perf_reset = Delegate(lambda native: native.perf_reset)


def _or_minus_1(token: int | None) -> int:
    return -1 if token is None else token

"""Llama with llama-cpp-python's arguments, defaults and methods."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..generation.prompt import common_prefix_length
from ..hub import resolve_model
from .completing import Completing
from .llama_cache import BaseLlamaCache, LlamaState
from .llama_grammar import LlamaGrammar
from .llama_tokenizer import BaseLlamaTokenizer, LlamaTokenizer
from .options import DEFAULT_SEED, POOLING, config_of, seed_of
from .processors import (
    LogitsProcessor,
    LogitsProcessorList,
    MinTokensLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

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


class Llama(Completing):
    """A model, as llama-cpp-python has it; all that `llama_cffi.Llama` can beside.

    Args:
        model_path: The GGUF file, or `hf:owner/repo:file`.
        n_gpu_layers: Layers on the GPU; -1 = all.
        split_mode: How several GPUs share the model, one of LLAMA_SPLIT_MODE_*.
        main_gpu: See `llama_cffi.Model`.
        tensor_split: See `llama_cffi.Model`.
        vocab_only: Refused; see `LlamaTokenizer.from_ggml_file`.
        use_mmap: Map the file instead of reading it.
        use_mlock: Keep the weights in RAM.
        kv_overrides: See `llama_cffi.Model`.
        seed: For calls that give none; -1 or LLAMA_DEFAULT_SEED draws one.
        n_ctx: Tokens of prompt and answer together; 0 = the model's own length.
        n_batch: Most prompt tokens evaluated in one call.
        n_ubatch: Most tokens computed at once.
        n_threads: None = physical cores.
        n_threads_batch: Threads for prompts; None = n_threads.
        rope_scaling_type: One of LLAMA_ROPE_SCALING_TYPE_*.
        pooling_type: How embeddings of tokens become one, one of LLAMA_POOLING_TYPE_*.
        attention_type: One of LLAMA_ATTENTION_TYPE_*.
        rope_freq_base: 0 = the model's.
        rope_freq_scale: 0 = the model's.
        yarn_ext_factor: See `ContextParams`.
        yarn_attn_factor: See `ContextParams`.
        yarn_beta_fast: See `ContextParams`.
        yarn_beta_slow: See `ContextParams`.
        yarn_orig_ctx: See `ContextParams`.
        logits_all: Keep the logits of all tokens that `eval` gets in `scores`; log-probabilities
            of completions need it not.
        embedding: Whether `embed` can be used; completions work, too.
        offload_kqv: Whether the cache and what reads it go to the GPU, too.
        flash_attn: None = the build's choice.
        op_offload: See `ContextParams`.
        swa_full: See `ContextParams`.
        no_perf: Do not measure what `perf` shows.
        last_n_tokens_size: How many tokens back the penalties look.
        lora_base: Refused.
        lora_scale: Strength of the adapter.
        lora_path: An adapter.
        numa: Refused.
        chat_format: The name of a format, or the source of a Jinja template; None = the model's
            own.
        chat_handler: Answers conversations in place of a format.
        draft_model: Accepted and not asked: the text is the same.
        tokenizer: Used for prompts that are texts, `tokenize` and `detokenize`.
        type_k: Type of the cache's keys, one of GGML_TYPE_*.
        type_v: Type of its values.
        spm_infill: Put the suffix before the prefix where a gap is to be filled.
        verbose: Nothing is printed, whatever it says; `llama_cffi.native` logs.
        **more: Fields of `llama_cffi.LlamaConfig`; what llama-cpp-python once had is ignored.

    Raises:
        ModelLoadError: The model cannot be loaded.
        ValidationError: An argument is out of range, or asks for what cannot be done.
        TypeError: There is no such argument.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        n_gpu_layers: int = 0,
        split_mode: int = 1,
        main_gpu: int = 0,
        tensor_split: Sequence[float] | None = None,
        vocab_only: bool = False,
        use_mmap: bool = True,
        use_mlock: bool = False,
        kv_overrides: Mapping[str, bool | int | float | str] | None = None,
        seed: int = DEFAULT_SEED,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int = 512,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        rope_scaling_type: int | None = -1,
        pooling_type: int = -1,
        attention_type: int = -1,
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
        chat_handler: Any = None,
        draft_model: Any = None,
        tokenizer: BaseLlamaTokenizer | None = None,
        type_k: int | None = None,
        type_v: int | None = None,
        spm_infill: bool = False,
        verbose: bool = True,
        **more: Any,
    ) -> None:
        arguments = {k: v for k, v in locals().items() if k not in ("self", "more", "__class__")}
        self._arguments = {**arguments, **more}
        path = arguments.pop("model_path")
        super().__init__(path, config_of(arguments, more))
        context = self.engine.context
        self.logits_all, self.last_n_tokens_size = logits_all, last_n_tokens_size
        self.chat_format, self.chat_handler = chat_format, chat_handler
        self.draft_model, self.spm_infill, self.verbose = draft_model, spm_infill, verbose
        self.lora_path, self.lora_scale = lora_path, lora_scale
        self.tokenizer_ = tokenizer or LlamaTokenizer(self)
        self.cache: BaseLlamaCache | None = None
        self.metadata = self.model.metadata
        self.n_batch, self.n_threads = context.n_batch, context.n_threads
        self.n_threads_batch = context.n_threads_batch
        self.model_params = SimpleNamespace(**arguments)
        self.context_params = SimpleNamespace(
            **{
                **arguments,
                "n_ctx": self.engine.n_ctx,
                "n_batch": context.n_batch,
                "n_ubatch": context.n_ubatch,
                "n_seq_max": context.n_seq_max,
                "n_threads": context.n_threads,
                "n_threads_batch": context.n_threads_batch,
                "embeddings": embedding,
            }
        )
        self._chats = {}

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None = None,
        additional_files: Sequence[str] | None = None,
        local_dir: str | os.PathLike[str] | None = None,
        local_dir_use_symlinks: Any = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Self:
        """Load a model from the Hugging Face hub, through its cache.

        Args:
            repo_id: `owner/repo`, with `@revision` if wanted.
            filename: The file, a pattern such as `*q8_0.gguf`, or a quantisation.
            additional_files: Others to fetch; the parts of a split model come by themselves.
            local_dir: A folder that gets the files in place of the cache.
            local_dir_use_symlinks: Without effect, as in the hub's own client.
            cache_dir: The hub's cache.
            **options: As for the class.

        Raises:
            FetchError: It cannot be fetched.
            ValidationError: The repository has no such file, or several.
        """

        def fetched(name: str | None) -> os.PathLike[str]:
            spec = f"hf:{repo_id}" + (f":{name}" if name else "")
            return resolve_model(spec, cache_dir=cache_dir, local_dir=local_dir)

        path = fetched(filename)
        for name in additional_files or ():
            fetched(name)
        return cls(path, **options)

    def __getstate__(self) -> dict[str, Any]:
        return self._arguments

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    # What the model is

    def n_ctx(self) -> int:  # type: ignore[override]
        """Return how many tokens prompt and answer have together."""
        return self.engine.n_ctx

    def n_vocab(self) -> int:
        """Return the number of tokens of the vocabulary."""
        return len(self.model.vocab)

    def n_embd(self) -> int:
        """Return the width of the embeddings."""
        return self.model.n_embd

    def token_bos(self) -> int:
        """Return the token that begins a text, -1 = none."""
        return _or_minus_1(self.model.vocab.bos)

    def token_eos(self) -> int:
        """Return the token that ends a text, -1 = none."""
        return _or_minus_1(self.model.vocab.eos)

    def token_nl(self) -> int:
        """Return the token of a line break, -1 = none."""
        return _or_minus_1(self.model.vocab.nl)

    def pooling_type(self) -> int:
        """Return the pooling of embeddings, one of LLAMA_POOLING_TYPE_*."""
        pooling = self._embeddings().pooling if self.config.embeddings else self.config.pooling
        return {name: number for number, name in POOLING.items()}[pooling]

    def set_seed(self, seed: int) -> None:
        """Set the seed for calls that give none."""
        self.config.seed = seed_of(seed)

    def set_cache(self, cache: BaseLlamaCache | None) -> None:
        """Keep the states of answers in *cache*, and begin with the one that fits best."""
        self.cache = cache

    # Tokens

    def tokenizer(self) -> LlamaTokenizer:
        """Return the model's tokenizer."""
        return LlamaTokenizer(self)

    def tokenize(self, text: str | bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Turn text into token ids; *special* reads the names of special tokens as such."""
        data = text.encode() if isinstance(text, str) else text
        return self.tokenizer_.tokenize(data, add_bos, special)

    def detokenize(  # type: ignore[override]
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """Turn token ids into the bytes of a text; *prev_tokens* stand before them."""
        return self.tokenizer_.detokenize(tokens, prev_tokens, special)

    # Embeddings

    def embed(  # type: ignore[override]
        self,
        input: str | Sequence[str],
        normalize: bool = False,
        truncate: bool = True,
        return_count: bool = False,
        **options: Any,
    ) -> Any:
        """Return the embedding of a text, or of each of several, as lists of floats.

        With pooling `none`, as most decoders have it, each is a list with one for each token.

        Args:
            input: One text, or several.
            normalize: Give every vector the length 1.
            truncate: Cut what is longer than the model takes.
            return_count: Return the number of tokens, too.
            **options: See `Embedder.embed`.

        Raises:
            ValidationError: The model was not loaded with `embedding=True`.
        """
        found = super().embed(input, normalize, truncate=truncate, **options)
        if not return_count:
            return found
        texts = [input] if isinstance(input, str) else input
        most = self._embeddings().n_tokens_max
        return found, sum(min(most, len(self.engine.tokenize(text))) for text in texts)

    def create_embedding(self, input: str | Sequence[str], model: str | None = None) -> Any:
        """Return embeddings in OpenAI's shape; see `embed`."""
        texts = [input] if isinstance(input, str) else list(input)
        rows, n = self.embed(texts, return_count=True)
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "embedding": row, "index": i} for i, row in enumerate(rows)
            ],
            "model": model or self.model_path,
            "usage": {"prompt_tokens": n, "total_tokens": n},
        }

    @staticmethod
    def logits_to_logprobs(logits: Any, axis: int = -1) -> NDArray[np.float32]:
        """Return log-softmax along an axis."""
        import numpy as np

        x = np.asarray(logits, np.float32)
        x = x - x.max(axis=axis, keepdims=True)
        return np.asarray(x - np.log(np.exp(x).sum(axis=axis, keepdims=True)), np.float32)

    longest_token_prefix = staticmethod(common_prefix_length)


def _or_minus_1(token: int | None) -> int:
    return -1 if token is None else token

"""What is told about a model, also while it is not in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..api.config import LlamaConfig
from ..api.llama import Llama
from ..errors import LlamaError
from ..generation.media import file_modalities
from ..generation.sampling_params import SamplingParams
from ..gguf.header_check import GgufSummary
from ..memory_plan import estimate, options_of

__all__ = ["ModelCard"]


@dataclass(frozen=True)
class ModelCard:
    """Facts of a model.

    Attributes:
        path: The file.
        n_ctx: Context size of each answer in tokens.
        n_slots: Answers that are generated together.
        n_ctx_train: Context size that the model was trained for.
        n_params: Number of parameters.
        size_bytes: Size of its tensors.
        n_vocab: Number of tokens.
        n_embd: Width of the hidden state.
        modalities: What it takes: text, and with a projector `image` and `audio`.
        output: What it answers with: text, embeddings or decisions.
        memory_bytes: Memory that it takes in all, by an estimate; see `MemoryPlan`.
        chat_template: The template.
        bos: Text of the token before a prompt; empty before the first load.
        eos: Text of the token after an answer; empty before the first load.
        build: The build of llama.cpp; empty before the first load.
        sampling: Sampling parameters of requests that give none.
        seed: Their seed; -1: a random one.
    """

    path: str
    n_ctx: int
    n_slots: int
    n_ctx_train: int
    n_params: int
    size_bytes: int
    n_vocab: int
    n_embd: int
    modalities: tuple[str, ...]
    output: str
    memory_bytes: int
    chat_template: str = ""
    bos: str = ""
    eos: str = ""
    build: str = ""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    seed: int = -1

    @classmethod
    def of_file(cls, path: str, config: LlamaConfig) -> ModelCard:
        """Return the facts of a file, from its header.

        Raises:
            ModelLoadError: It is missing or damaged.
        """
        planned, gguf = estimate(path, options_of(config))
        tokens = gguf.arrays.get("tokenizer.ggml.tokens")
        return cls(
            path=path,
            n_ctx=min(planned.n_ctx, config.n_kv_tokens or planned.n_ctx),
            n_slots=config.n_parallel,
            n_ctx_train=planned.n_ctx_train,
            n_params=sum(math.prod(tensor.shape) for tensor in gguf.tensors),
            size_bytes=sum(tensor.size_bytes or 0 for tensor in gguf.tensors),
            n_vocab=tokens.count if tokens else gguf.number("vocab_size"),
            n_embd=gguf.number("embedding_length"),
            modalities=_modalities(lambda: file_modalities(Path(path), config.mmproj)),
            output=_output(gguf),
            memory_bytes=planned.total_bytes,
            chat_template=str(gguf.values.get("tokenizer.chat_template", "")),
            seed=config.seed,
        )

    @classmethod
    def of(cls, llm: Llama) -> ModelCard:
        """Return the facts of a loaded model."""
        model, n_ctx = llm.model, int(llm.n_ctx)
        vocab, build = model.vocab, model.library.build
        bos, eos = ("" if token is None else vocab.text(token) for token in (vocab.bos, vocab.eos))
        return cls(
            path=llm.model_path,
            n_ctx=n_ctx,
            n_slots=llm.config.n_parallel,
            n_ctx_train=model.n_ctx_train,
            n_params=model.n_params,
            size_bytes=model.size_bytes,
            n_vocab=len(vocab),
            n_embd=model.n_embd,
            modalities=_modalities(lambda: llm.modalities),
            output=_output(model.gguf),
            memory_bytes=estimate(model, options_of(llm.config))[0].total_bytes,
            chat_template=llm.get_chat_template(),
            bos=bos,
            eos=eos,
            build=str(build.tag or build.version),
            sampling=llm.sampling or SamplingParams(),
            seed=llm.config.seed,
        )


def _modalities(read: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
    """Return the modalities; a damaged projector is told to those who send a picture."""
    try:
        return read()
    except LlamaError:
        return ("text",)


def _output(gguf: GgufSummary) -> str:
    if gguf.decision_type:
        return "decisions"
    is_encoder = gguf.values.get(f"{gguf.architecture}.attention.causal") is False
    is_pooled = f"{gguf.architecture}.pooling_type" in gguf.values
    return "embeddings" if is_encoder or is_pooled else "text"

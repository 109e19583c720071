"""The kind of a model: which C functions can run it. The wrong ones end the process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model import Model

__all__ = ["ModelKind"]


@dataclass(frozen=True)
class ModelKind:
    """How a model is run.

    Attributes:
        has_encoder: Run by `Context.encode` (T5); without a decoder by nothing else.
        has_decoder: Run by `Context.decode`.
        causal: False for models without a memory, which see a whole sequence at once (BERT).
        logits: Whether it computes logits.
        pooling: The model's own pooling (`enum llama_pooling_type`), -1 = unspecified.
        ranks: Whether it has the classification head for `rank` pooling.
        n_positions: Rows of its position embedding table; None if positions are not learned.
        head_k: Width of a key head; 0 = unknown.
        head_v: Width of a value head; 0 = unknown.
    """

    has_encoder: bool
    has_decoder: bool
    causal: bool
    logits: bool
    pooling: int
    ranks: bool
    n_positions: int | None
    head_k: int
    head_v: int

    @classmethod
    def of(cls, model: Model) -> ModelKind:
        """Read the kind of *model* from C and from its GGUF header."""
        library, ptr, gguf = model.library, model.ptr, model.gguf
        lib, prefix = library.lib, gguf.architecture
        encoder = bool(lib.llama_model_has_encoder(ptr))
        decoder = bool(lib.llama_model_has_decoder(ptr))
        causal = gguf.values.get(f"{prefix}.attention.causal") is not False
        diffusion = library.has("llama_model_is_diffusion") and lib.llama_model_is_diffusion(ptr)
        shapes = {t.name: t.shape for t in gguf.tensors}
        positions = shapes.get("position_embd.weight")

        heads = gguf.number("attention.head_count")
        head = gguf.number("embedding_length") // heads if heads else 0
        if library.has("llama_model_n_cls_out"):
            ranks = "cls.weight" in shapes or "cls.output.weight" in shapes
        else:  # before b5640: model.cls_b != nullptr, model.cls_out_b != nullptr
            ranks = {"cls.weight", "cls.bias"} <= shapes.keys() and (
                "cls.output.weight" not in shapes or "cls.output.bias" in shapes
            )
        return cls(
            has_encoder=encoder,
            has_decoder=decoder,
            causal=causal and decoder,
            logits=decoder and (causal or bool(diffusion)),
            pooling=gguf.number("pooling_type") if f"{prefix}.pooling_type" in gguf.values else -1,
            ranks=ranks,
            n_positions=positions[1] if positions and len(positions) > 1 else None,
            head_k=gguf.number("attention.key_length") or head,
            head_v=gguf.number("attention.value_length") or head,
        )

"""The model argument of every class: a path, a name on the Hugging Face hub, or a loaded model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias, TypedDict

from ..binding import Model
from ..hub import resolve_model
from ..validation import as_path

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..binding.model.files import Override
    from ..progress import Progress

__all__ = ["ModelOptions", "ModelSource", "open_model"]

ModelSource: TypeAlias = "str | os.PathLike[str] | Model"


class ModelOptions(TypedDict, total=False):
    """Arguments of `Model`: how a model is loaded."""

    n_gpu_layers: int
    split_mode: str | None
    main_gpu: int
    tensor_split: Sequence[float] | None
    devices: Sequence[str] | None
    n_cpu_moe: int
    override_tensors: Mapping[str, str] | None
    use_mmap: bool
    use_mlock: bool
    check_tensors: bool
    kv_overrides: Mapping[str, Override] | None
    load_mtp: bool
    check: str | None
    progress: Progress


def open_model(source: ModelSource, **options: Unpack[ModelOptions]) -> tuple[Model, bool]:
    """Return the model, and whether it was loaded here and the caller must close it.

    Args:
        source: A GGUF file, `hf:owner/repo[@revision][:file or quantization]`, or a loaded `Model`.
        **options: Arguments of `Model`; a loaded model keeps its own.

    Raises:
        ModelLoadError: The model cannot be loaded.
        FetchError: The model cannot be fetched.
        ValidationError: An argument is out of range.
    """
    if isinstance(source, Model):
        return source, False
    path = source if isinstance(source, str) else as_path("model_path", source)
    return Model(resolve_model(path), **options), True

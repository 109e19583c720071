"""A model: weights and vocabulary read from a GGUF file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import ModelLoadError, TemplateError, ValidationError
from ...gguf.reader import GgufSummary
from ...progress import Progress, reporting
from ...validation import INT32_MAX, integer, real
from .. import compat
from ..callbacks import Relay
from ..loading.library import Library, get_library
from .files import AnyPath, Override, open_files
from .info import ModelFacts
from .preflight import check_model, check_mtp
from .vocab import Vocab, encode

__all__ = ["Model"]

_ALL_LAYERS = 999  # a negative count means "all" only since b6122


class Model(ModelFacts):
    """A loaded GGUF model. Contexts are made from it and close with it.

    Args:
        path: The GGUF file; of a split model the first part (the others are found by llama.cpp's
            naming, `NAME-00001-of-00003.gguf`) or a list of all parts.
        vocab_only: Load the vocabulary and metadata, no weights.
        n_gpu_layers: Layers to keep on the GPU; -1 = all.
        split_mode: How to use several GPUs: `none`, `layer`, `row`; None = the build's default.
        main_gpu: Index of the GPU for `split_mode="none"`.
        tensor_split: Share of the model for each GPU, in any unit; None = by their free memory.
        devices: Names from `library.devices` to use beside the CPU; `[]` = the CPU alone,
            None = all GPUs.
        use_mmap: Map the file instead of reading it.
        use_mlock: Keep the weights in RAM.
        check_tensors: Validate the tensor data while loading (slow).
        kv_overrides: Metadata that counts instead of the file's, such as
            `{"tokenizer.ggml.add_bos_token": False}`; `metadata` still tells the file's.
        load_mtp: Load its head for the token after the next, too, for `MtpHead`.
        progress: True shows a bar on stderr. A function is called with 0.0 to 1.0 while loading;
            when it returns False the load stops, and an exception that it raises stops the load
            and reaches the caller, as Ctrl-C does.
        library: The build to load with; None = `get_library()`, with its errors.

    Attributes:
        path: The first file.
        paths: All files.
        gguf: What the header says.
        vocab: The vocabulary.

    Raises:
        ModelLoadError: A file is missing, damaged, or of an architecture that the build does not
            know.
        ValidationError: An argument that C must not see.
    C: llama_model_load_from_file, llama_model_load_from_splits
    """

    def __init__(
        self,
        path: AnyPath | Sequence[AnyPath],
        *,
        vocab_only: bool = False,
        n_gpu_layers: int = -1,
        split_mode: str | None = None,
        main_gpu: int = 0,
        tensor_split: Sequence[float] | None = None,
        devices: Sequence[str] | None = None,
        use_mmap: bool = True,
        use_mlock: bool = False,
        check_tensors: bool = False,
        kv_overrides: Mapping[str, Override] | None = None,
        load_mtp: bool = False,
        progress: Progress = None,
        library: Library | None = None,
    ) -> None:
        self._files = open_files(path, kv_overrides)
        self.paths = self._files.paths
        self.path = self.paths[0]
        self.gguf: GgufSummary = self._files.summary
        self.library = library or get_library()
        check_model(self.path, self.gguf, self.library)
        if self._files.listed and not self.library.has("llama_model_load_from_splits"):
            raise ValidationError(
                f"this build takes no list of parts ({compat.newer(self.library)}); name them as "
                "llama.cpp does and give the first"
            )
        self.vocab_only = bool(vocab_only)
        if load_mtp:
            check_mtp(self.path, self.gguf, self.library)
        self.has_mtp = bool(load_mtp) and not self.vocab_only
        n_gpu_layers = integer("n_gpu_layers", n_gpu_layers, -INT32_MAX)
        main_gpu = integer("main_gpu", main_gpu, 0)
        ffi, relay = self.library.ffi, Relay()
        # C keeps none of these, but reads them until it has loaded.
        params = compat.model_params(
            self.library,
            use_mmap=bool(use_mmap),
            use_mlock=bool(use_mlock),
            vocab_only=self.vocab_only,
            n_gpu_layers=_ALL_LAYERS if n_gpu_layers < 0 else n_gpu_layers,
            split_mode=None if split_mode is None else _split_mode(self.library, split_mode),
            main_gpu=main_gpu,
            check_tensors=bool(check_tensors),
            tensor_split=(shares := _shares(self.library, tensor_split)),
            devices=(chosen := _devices(self.library, devices)),
            load_mtp=True if load_mtp else None,
            kv_overrides=(
                overrides := compat.kv_overrides(self.library, kv_overrides)
                if kv_overrides
                else None
            ),
        )
        ptr, free = ffi.NULL, compat.call(self.library, "llama_model_free")
        names = [os.fsencode(part) for part in self.paths]
        try:
            with (
                relay,
                reporting(progress, self.path.name) as report,
                self.library.logs.capture() as lines,
            ):
                # Also without *progress*: it is where Python sees Ctrl-C.
                params.progress_callback = callback = relay.guard(
                    ffi,
                    "llama_progress_callback",
                    lambda done, _: not self.library.logs.interrupted and report(done),
                    False,
                )
                ptr = compat.load_model(self.library, names, params, self._files.listed)
            self.library.logs.raise_interrupt()
        except BaseException:
            if ptr:
                free(ptr)
            raise
        del callback, shares, chosen, overrides
        if not ptr:
            raise ModelLoadError(self._why(lines))
        super().__init__(ptr, free)
        # Whether layers may lie on another device than the CPU.
        self.offloads = n_gpu_layers != 0 and any(
            d.type not in ("cpu", "accel")
            for d in self.library.devices
            if devices is None or d.name in devices
        )
        self.vocab = Vocab(self)

    def apply_chat_template(
        self,
        messages: Sequence[tuple[str, str]],
        *,
        add_generation_prompt: bool = True,
        template: str | None = None,
    ) -> str:
        """Render messages with llama.cpp's built-in version of the model's template.

        Args:
            messages: (role, content) pairs.
            add_generation_prompt: End with the start of an assistant message.
            template: The name of a built-in one, such as `chatml`; None = the model's own.

        Raises:
            TemplateError: The model has no template, or one llama.cpp does not know.
            ValidationError: A role or a content is no text that C can take.
        C: llama_chat_apply_template
        """
        name, template = template, template or self.chat_template
        if template is None:
            raise TemplateError(f"{self.path.name} has no chat template; pass a finished prompt")
        for role, content in messages:
            for part in (role, content):
                if b"\0" in encode(part):  # which refuses lone surrogates
                    raise ValidationError("a message has a NUL, which C strings cannot hold")
        text = compat.chat_apply_template(
            self.library, self.ptr, template, messages, add_generation_prompt
        )
        if text is None and name is not None:
            raise TemplateError(
                f"llama.cpp has no built-in chat template {name!r} for these messages"
            )
        if text is None:
            raise TemplateError(
                f"llama.cpp has no built-in version of the template of {self.path.name}; "
                "pass a finished prompt"
            )
        return text

    def _why(self, lines: Sequence[str]) -> str:
        """Turn what C logged into a sentence with advice."""
        said = "; ".join(dict.fromkeys(line.split(": ", 1)[-1] for line in lines[-4:]))
        build = self.library.build.tag or self.library.path.name
        message = f"cannot load {self.path}: {said or 'llama.cpp gave no reason'}"
        if "unknown model architecture" in said or "unknown pre-tokenizer" in said:
            return (
                f"{message}. The loaded build ({build}) does not know '{self.gguf.architecture}'; "
                "a newer one may: LLAMA_CFFI_BUILD=latest, or llama-cffi libs fetch latest"
            )
        return f"{message} (build {build}, GGUF v{self.gguf.version}, '{self.gguf.architecture}')"

    def __repr__(self) -> str:
        return f"<Model {self.path.name}{' closed' if self.closed else ''}>"


def _split_mode(library: Library, name: str) -> int:
    modes: dict[str, int] = library.ffi.typeof("enum llama_split_mode").relements
    key = f"LLAMA_SPLIT_MODE_{name.upper()}"
    if key not in modes:
        known = ", ".join(m.removeprefix("LLAMA_SPLIT_MODE_").lower() for m in modes)
        raise ValidationError(f"split_mode={name!r} is not one of {known}")
    return modes[key]


def _shares(library: Library, tensor_split: Sequence[float] | None) -> Any:
    """Return `tensor_split` as C reads it: as many numbers as there can be devices."""
    if tensor_split is None:
        return None
    most = int(library.lib.llama_max_devices())
    shares = [real("tensor_split", share, 0, 1e30) for share in tensor_split]
    if len(shares) > most:
        raise ValidationError(f"tensor_split has {len(shares)} shares; this build takes {most}")
    if not any(shares):
        raise ValidationError("tensor_split gives no device a share; give one at least a 1")
    return library.ffi.new("float[]", [*shares, *[0.0] * (most - len(shares))])


def _devices(library: Library, names: Sequence[str] | None) -> Any:
    """Return the devices as C reads them."""
    if names is None:
        return None
    if not compat.takes_devices(library):
        raise ValidationError(
            f"this build cannot be told its devices ({compat.newer(library)}); n_gpu_layers=0 "
            "keeps the CPU alone"
        )
    index = {d.name: i for i, d in enumerate(library.devices) if d.type != "cpu"}
    for name in names:
        if isinstance(names, str) or name not in index or list(names).count(name) > 1:
            known = ", ".join(index) or "none; the CPU is always used"
            raise ValidationError(f"devices={names!r}: {name!r} is not one of: {known}")
    return compat.device_list(library, [index[name] for name in names])

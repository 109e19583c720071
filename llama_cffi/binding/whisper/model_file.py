"""Read and check a model file of whisper.cpp before C sees it.

The format is older than GGUF: hyperparameters, mel filters, a vocabulary and tensors follow each
other without a table. C trusts all of it: a wrong size overruns a buffer, throws through C frames
or fails an assertion. So everything that C reads is checked here, up to the last byte.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import ModelLoadError
from ...validation import missing_file

__all__ = ["WhisperFile", "check_model_file"]

_MAGIC = 0x67676D6C
_FIELDS = (
    "n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer", "n_text_ctx",
    "n_text_state", "n_text_head", "n_text_layer", "n_mels", "ftype",
)  # fmt: skip
_N_FFT = 201  # bins of 400 samples
_VOCABULARIES = {51864: 99, 51865: 99, 51866: 100}  # tokens -> languages that C derives from them
_FIRST_MULTILINGUAL = 51865
_MAX_AUDIO_CTX, _MAX_TEXT_CTX, _MIN_TEXT_CTX = 1500, 448, 32
_MAX_LAYERS = 32  # of the largest model; C's graphs have a fixed number of nodes
_MAX_STATE, _MAX_MELS = 4096, 256
_MAX_TOKEN_BYTES = 1024
_FTYPE_VERSIONS = 1000  # a quantized file has the version of the quantization times this added
# ftype -> name, ggml type, elements per block, bytes per block
_FTYPES = {
    0: ("F32", 0, 1, 4),
    1: ("F16", 1, 1, 2),
    2: ("Q4_0", 2, 32, 18),
    3: ("Q4_1", 3, 32, 20),
    7: ("Q8_0", 8, 32, 34),
    8: ("Q5_0", 6, 32, 22),
    9: ("Q5_1", 7, 32, 24),
    10: ("Q2_K", 10, 256, 84),
    11: ("Q3_K", 11, 256, 110),
    12: ("Q4_K", 12, 256, 144),
    13: ("Q5_K", 13, 256, 176),
    14: ("Q6_K", 14, 256, 210),
}
_TYPES = {kind: (name, block, size) for name, kind, block, size in _FTYPES.values()}


@dataclass(frozen=True)
class WhisperFile:
    """The hyperparameters of a checked model file.

    Attributes:
        path: The file.
        size_bytes: Its size.
        n_vocab: Tokens.
        n_audio_ctx: Positions of the encoder; 1,500 for 30 seconds.
        n_audio_state: Width of the encoder.
        n_audio_head: Attention heads of the encoder.
        n_audio_layer: Layers of the encoder.
        n_text_ctx: Positions of the decoder.
        n_text_state: Width of the decoder.
        n_text_head: Attention heads of the decoder.
        n_text_layer: Layers of the decoder.
        n_mels: Bands of the spectrogram.
        type_name: Type of the large tensors, such as `F16` or `Q5_0`.
    """

    path: Path
    size_bytes: int
    n_vocab: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int
    n_mels: int
    type_name: str

    @property
    def is_multilingual(self) -> bool:
        """Whether the model knows more languages than English."""
        return self.n_vocab >= _FIRST_MULTILINGUAL

    @property
    def n_languages(self) -> int:
        """Number of languages, in the order of whisper.cpp's list."""
        return _VOCABULARIES[self.n_vocab] if self.is_multilingual else 1

    def state_bytes(self, n_samples: int, n_decoders: int) -> int:
        """Return an upper bound of the memory for one transcription, in bytes."""
        text, audio = _padded(self.n_text_ctx), _padded(self.n_audio_ctx)
        rows = self.n_text_layer * (text * (n_decoders + 2) + audio) + audio
        keys_and_values = 4 * max(self.n_text_state, self.n_audio_state) * rows
        logits = 3 * 4 * self.n_vocab * self.n_text_ctx
        encoder = 4 * audio * (audio * self.n_audio_head + 16 * self.n_audio_state)
        # Padded by 30 s. C keeps the samples twice, and a band of the spectrogram per 160 samples.
        sound = (n_samples + 480_400) * (2 * 4 + 4 * self.n_mels // 160 + 1)
        return keys_and_values + logits + encoder + sound + 2**24


def _padded(n: int) -> int:
    return -(-n // 256) * 256


def check_model_file(path: Path) -> WhisperFile:
    """Check a whole model file, without reading the weights.

    Raises:
        ModelLoadError: It does not exist, is no model of whisper.cpp, or C could not survive it.
    """
    try:
        if not path.is_file():
            raise ModelLoadError(missing_file(path))
        with open(path, "rb") as file:
            if not path.stat().st_size:
                raise ModelLoadError(f"{path} is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).read()
    except (OSError, ValueError) as e:
        if isinstance(e, ModelLoadError):
            raise
        raise ModelLoadError(f"{path} cannot be read: {e}") from e


class _Reader:
    """Reads one file from front to back."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def read(self) -> WhisperFile:
        header = dict(zip(_FIELDS, self._header(), strict=True))
        ftype = header.pop("ftype") % _FTYPE_VERSIONS
        if ftype not in _FTYPES:
            raise self._damaged(f"ftype {ftype} is not one of {', '.join(map(str, _FTYPES))}")
        model = WhisperFile(self.path, len(self.data), type_name=_FTYPES[ftype][0], **header)
        for reason in _wrong_sizes(model, _FTYPES[ftype][2]):
            raise self._damaged(reason)
        self._filters(model)
        self._vocabulary(model)
        self._tensors(dict(_expected(model, _FTYPES[ftype][1])))
        return model

    def _header(self) -> tuple[int, ...]:
        (magic,) = self._unpack("<I", "the magic number")
        if magic != _MAGIC:
            hint = " (a GGUF file, which whisper.cpp does not read)" if magic == 0x46554747 else ""
            raise ModelLoadError(
                f"{self.path} is not a model of whisper.cpp{hint}: it starts with {magic:#010x}, "
                f"not {_MAGIC:#x}. Such models are named ggml-base.bin, ggml-large-v3-turbo.bin, …"
            )
        return self._unpack(f"<{len(_FIELDS)}i", "the hyperparameters")

    def _filters(self, model: WhisperFile) -> None:
        n_mels, n_fft = self._unpack("<2i", "the size of the mel filters")
        if (n_mels, n_fft) != (model.n_mels, _N_FFT):
            raise self._damaged(
                f"its mel filters are {n_mels}x{n_fft}, not {model.n_mels}x{_N_FFT}"
            )
        self._skip(4 * n_mels * n_fft, "the mel filters")

    def _vocabulary(self, model: WhisperFile) -> None:
        (n_tokens,) = self._unpack("<i", "the size of the vocabulary")
        if not 0 < n_tokens <= model.n_vocab:
            raise self._damaged(f"its vocabulary has {n_tokens} of {model.n_vocab} tokens")
        has_space = False
        for i in range(n_tokens):
            (length,) = self._unpack("<I", f"token {i}")
            if length > _MAX_TOKEN_BYTES:
                raise self._damaged(f"token {i} has {length} bytes, more than {_MAX_TOKEN_BYTES}")
            start = self.at
            self._skip(length, f"token {i}")
            has_space = has_space or self.data[start : self.at] == b" "
        if not has_space:  # C looks it up without a check
            raise self._damaged("its vocabulary has no token for a space")

    def _tensors(self, expected: dict[str, tuple[int, tuple[int, ...]]]) -> None:
        missing = dict(expected)
        while self.at < len(self.data):
            n_dims, length, kind = self._unpack("<3i", "the header of a tensor")
            if not 1 <= n_dims <= 3 or not 1 <= length <= _MAX_TOKEN_BYTES:
                raise self._damaged(
                    f"a tensor has {n_dims} dimensions and a name of {length} bytes"
                )
            shape = self._unpack(f"<{n_dims}i", "the shape of a tensor")
            start = self.at
            self._skip(length, "the name of a tensor")
            name = self.data[start : self.at].decode("utf-8", "replace")
            if name not in missing:
                problem = "twice" if name in expected else "which this kind of model does not have"
                raise self._damaged(f"it has the tensor {name[:80]!r}, {problem}")
            wanted_kind, wanted = missing.pop(name)
            if (*shape, 1, 1)[:3] != (*wanted, 1, 1)[:3]:
                raise self._damaged(f"{name} has the shape {list(shape)}, not {list(wanted)}")
            if kind != wanted_kind:
                found = _TYPES.get(kind, (f"type {kind}",))[0]
                raise self._damaged(f"{name} has {found}, not {_TYPES[wanted_kind][0]}")
            _, block, block_bytes = _TYPES[kind]
            self._skip(math.prod(shape) // block * block_bytes, f"the data of {name}")
        if missing:
            some = ", ".join(list(missing)[:3])
            raise self._damaged(f"{len(missing)} of {len(expected)} tensors are missing: {some}")

    def _unpack(self, form: str, what: str) -> tuple[int, ...]:
        start = self.at
        self._skip(struct.calcsize(form), what)
        return struct.unpack_from(form, self.data, start)

    def _skip(self, n_bytes: int, what: str) -> None:
        if self.at + n_bytes > len(self.data):
            raise self._damaged(
                f"it ends after {len(self.data):,} bytes, in {what}: the download may be incomplete"
            )
        self.at += n_bytes

    def _damaged(self, reason: str) -> ModelLoadError:
        return ModelLoadError(f"{self.path} is damaged or is no model of whisper.cpp: {reason}")


def _wrong_sizes(model: WhisperFile, block: int) -> Iterator[str]:
    """Yield what is wrong with the hyperparameters."""
    ranges = {
        "n_audio_ctx": (1, _MAX_AUDIO_CTX),
        "n_text_ctx": (_MIN_TEXT_CTX, _MAX_TEXT_CTX),
        "n_audio_state": (1, _MAX_STATE),
        "n_audio_layer": (1, _MAX_LAYERS),
        "n_text_layer": (1, _MAX_LAYERS),
        "n_mels": (1, _MAX_MELS),
    }
    for name, (low, high) in ranges.items():
        value = getattr(model, name)
        if not low <= value <= high:
            yield f"{name} is {value}, outside {low}..{high}"
    if model.n_vocab not in _VOCABULARIES:
        yield f"n_vocab is {model.n_vocab}, not one of {', '.join(map(str, _VOCABULARIES))}"
    if model.n_text_state != model.n_audio_state:
        yield f"n_text_state is {model.n_text_state} and n_audio_state {model.n_audio_state}"
    for name in ("n_audio_head", "n_text_head"):
        heads = getattr(model, name)
        if heads < 1 or model.n_audio_state % heads:
            yield f"{name} is {heads}, which does not divide the width of {model.n_audio_state}"
    if model.n_audio_state % block:
        yield f"{model.type_name} needs a width that is a multiple of {block}"


def _expected(model: WhisperFile, kind: int) -> Iterator[tuple[str, tuple[int, tuple[int, ...]]]]:
    """Yield the name of each tensor with its ggml type and its shape."""
    n, f32 = model.n_audio_state, 0
    conv = min(kind, 1)  # of quantized models F16

    def affine(prefix: str) -> Iterator[tuple[str, tuple[int, tuple[int, ...]]]]:
        yield f"{prefix}.weight", (f32, (n,))
        yield f"{prefix}.bias", (f32, (n,))

    def attention(prefix: str) -> Iterator[tuple[str, tuple[int, tuple[int, ...]]]]:
        yield from affine(f"{prefix}_ln")
        for part in ("query", "key", "value", "out"):
            yield f"{prefix}.{part}.weight", (kind, (n, n))
            if part != "key":
                yield f"{prefix}.{part}.bias", (f32, (n,))

    def block(
        prefix: str, parts: tuple[str, ...]
    ) -> Iterator[tuple[str, tuple[int, tuple[int, ...]]]]:
        for part in parts:
            yield from attention(f"{prefix}.{part}")
        yield from affine(f"{prefix}.mlp_ln")
        for layer, (width, out) in {"0": (n, 4 * n), "2": (4 * n, n)}.items():
            yield f"{prefix}.mlp.{layer}.weight", (kind, (width, out))
            yield f"{prefix}.mlp.{layer}.bias", (f32, (out,))

    yield "encoder.positional_embedding", (f32, (n, model.n_audio_ctx))
    for name, width in (("conv1", model.n_mels), ("conv2", n)):
        yield f"encoder.{name}.weight", (conv, (3, width, n))
        yield f"encoder.{name}.bias", (f32, (1, n))
    yield from affine("encoder.ln_post")
    for i in range(model.n_audio_layer):
        yield from block(f"encoder.blocks.{i}", ("attn",))
    yield "decoder.positional_embedding", (f32, (n, model.n_text_ctx))
    yield "decoder.token_embedding.weight", (kind, (n, model.n_vocab))
    yield from affine("decoder.ln")
    for i in range(model.n_text_layer):
        yield from block(f"decoder.blocks.{i}", ("attn", "cross_attn"))

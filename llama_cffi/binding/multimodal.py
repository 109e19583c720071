"""Projectors: pictures and sounds as input embeddings of a model, by libmtmd.

C gets pixels and samples only. Its own decoders of files have no limits, and start other programs
for data that they do not recognise.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GenerationError, ModelLoadError, ValidationError
from ..gguf.projector_check import check_projector
from ..gguf.reader import check_gguf, fingerprint
from ..validation import check_bool, check_int, check_type
from . import compat
from .callbacks import ExceptionRelay
from .memory_limits import check_bytes
from .model.model import Model
from .model.trial import try_projector
from .native_object import NativeObject, in_call
from .processors import thread_count

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .ffi_types import CData

__all__ = ["MediaChunk", "Projector"]

_TEXT, _IMAGE = 0, 1  # enum mtmd_input_chunk_type
_MAX_TOKENS = 2**20
_MIN_SAMPLES = 400  # one window of 25 ms at 16 kHz; C aborts on less
_MAX_SIDE = 2**16


class MediaChunk(NativeObject):
    """A picture, a tile of it, or a piece of sound, preprocessed and ready to be encoded.

    Attributes:
        projector: Made it.
        n_tokens: Number of embeddings, and so of KV-cache cells.
        n_positions: Number of positions; fewer than the cells of a picture under M-RoPE.
        is_image: Whether it is a picture.
        is_causal: Whether each of its embeddings attends only to those before it.
    C: mtmd_input_chunk
    """

    def __init__(self, projector: Projector, ptr: Any, free: Any) -> None:
        super().__init__(ptr, free, parent=projector)
        lib = projector.library.lib
        self.projector = projector
        self.n_tokens = int(lib.mtmd_input_chunk_get_n_tokens(ptr))
        self.n_positions = int(lib.mtmd_input_chunk_get_n_pos(ptr))
        self.is_image = int(lib.mtmd_input_chunk_get_type(ptr)) == _IMAGE
        self.is_causal = not lib.mtmd_decode_use_non_causal(projector.ptr, ptr)

    def positions(self, start: int) -> NDArray[np.int32]:
        """Return the positions of the embeddings.

        Shapes: (n_tokens,) int32; (4, n_tokens) for models with M-RoPE.

        Args:
            start: The position after the text before.
        C: mtmd_image_tokens_get_decoder_pos
        """
        import numpy as np

        lib, n = self.projector.library.lib, self.n_tokens
        if not self.projector.uses_mrope:
            return np.arange(start, start + n, dtype=np.int32)
        if not self.is_image:
            return np.tile(np.arange(start, start + n, dtype=np.int32), (4, 1))
        image = lib.mtmd_input_chunk_get_tokens_image(self.ptr)
        get = lib.mtmd_image_tokens_get_decoder_pos
        found = [get(image, start, i) for i in range(n)]
        return np.array(
            [[p.t for p in found], [p.y for p in found], [p.x for p in found], [0] * n], np.int32
        )

    def __repr__(self) -> str:
        kind = "image" if self.is_image else "audio"
        return f"<MediaChunk {kind} of {self.n_tokens} tokens>"


class Projector(NativeObject):
    """A multimodal projector (mmproj): the encoder of pictures or sounds of a model.

    Any thread may use it; encoding is done by one at a time.

    Args:
        model: The model it belongs to; closes it when it closes.
        path: The GGUF file, usually called `mmproj-*.gguf`.
        n_threads: Threads for encoding; 0 = the number of physical cores.
        use_gpu: Encode on a GPU if the build has one.
        image_min_tokens: Least tokens of a picture, for models with pictures of any size; None =
            the model's.
        image_max_tokens: Most tokens of a picture, likewise.
        check: See `Model`: small projectors of small models are first tried in a child process.

    Attributes:
        path: The file.
        model: The model.
        library: The build.
        supports_images: Whether it takes pictures.
        supports_audio: Whether it takes sounds.
        sample_rate: The sample rate in Hz of the sounds it takes; 0 if it takes none.
        uses_mrope: Whether the model's positions have several axes (M-RoPE).
        identity: SHA-256 of the build, the file and the options: equal for equal embeddings.

    Raises:
        ModelLoadError: The file is missing, damaged, no projector, or for another model.
        ValidationError: The build has no libmtmd that can be used, or an argument is out of range.
        OutOfMemoryError: A limit leaves too little memory to this process.
        ClosedError: The model is closed.
        LlamaError: No child process could be started to try it.
    C: mtmd_init_from_file
    """

    def __init__(
        self,
        model: Model,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        *,
        n_threads: int = 0,
        use_gpu: bool = True,
        image_min_tokens: int | None = None,
        image_max_tokens: int | None = None,
        check: str | None = None,
    ) -> None:
        check_type("model", model, Model)
        library = self.library = model.library
        if library.no_multimodal:
            raise ValidationError(f"pictures and sounds do not work: {library.no_multimodal}")
        if model.vocab_only:
            raise ValidationError("the model was loaded with vocab_only and cannot decode")
        n_threads = thread_count("n_threads", n_threads)
        least, most = (
            -1 if n is None else check_int(name, n, 1, _MAX_TOKENS)
            for name, n in (
                ("image_min_tokens", image_min_tokens),
                ("image_max_tokens", image_max_tokens),
            )
        )
        if -1 < most < least:
            raise ValidationError(f"image_min_tokens={least} is more than image_max_tokens={most}")
        self.path, self.model = Path(os.fsdecode(path)).expanduser(), model
        gguf = check_gguf(self.path, kind="projector")
        check_projector(self.path, gguf)
        known = fingerprint([self.path], [gguf])
        size = gguf.size_bytes + model.gguf.size_bytes
        try_projector(self.path, known, size, model.path, library, check)
        # C takes about as much again for the compute buffer of the largest picture.
        check_bytes(gguf.size_bytes, f"loading {self.path.name}")
        ffi, relay, ptr = library.ffi, ExceptionRelay(), None
        params = compat.mtmd_params(
            library,
            use_gpu=check_bool("use_gpu", use_gpu),
            print_timings=False,
            n_threads=n_threads,
            warmup=False,
            image_min_tokens=least,
            image_max_tokens=most,
        )
        held = model.hold()
        try:
            with in_call(), relay, library.logs.capture() as lines:
                params.progress_callback = callback = relay.guard(
                    ffi,
                    "mtmd_progress_callback",
                    lambda *_: not library.logs.interrupted,
                    False,
                )
                ptr = library.lib.mtmd_init_from_file(os.fsencode(self.path), model.ptr, params)
            library.logs.raise_interrupt()
        except BaseException:
            if ptr:
                library.lib.mtmd_free(ptr)
            raise
        finally:
            del held
        del callback
        if not ptr:
            reason = "; ".join(line.split(": ", 1)[-1] for line in lines[-3:])
            raise ModelLoadError(
                f"{self.path} is not a projector of {model.path.name} that build {library.name} "
                f"can load: {reason or 'no reason given'}"
            )
        super().__init__(ptr, library.lib.mtmd_free, parent=model)
        lib = library.lib
        self.supports_images = bool(lib.mtmd_support_vision(ptr))
        self.supports_audio = bool(lib.mtmd_support_audio(ptr))
        self.sample_rate = max(0, int(lib.mtmd_get_audio_sample_rate(ptr)))
        self.uses_mrope = bool(lib.mtmd_decode_use_mrope(ptr))
        self.identity = f"{library.name} {known} {least} {most}".encode()
        self._marker = ffi.string(lib.mtmd_default_marker())
        self._encoding = threading.Lock()

    def image_chunks(self, pixels: NDArray[np.uint8]) -> list[list[int] | MediaChunk]:
        """Preprocess a picture.

        Shapes: *pixels* (height, width, 3) uint8, RGB.

        Returns:
            What stands for it in a prompt: token ids of the texts around it and between its tiles,
            and chunks to encode.

        Raises:
            ValidationError: The array has another shape or type, the projector takes no pictures,
                or the vocabulary lacks a token for pictures.
        C: mtmd_bitmap_init, mtmd_tokenize
        """
        if not self.supports_images:
            raise ValidationError(f"{self.path.name} takes sounds and no pictures")
        if pixels.dtype != "uint8" or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValidationError(
                f"a picture must be (height, width, 3) uint8, got {pixels.shape} {pixels.dtype}"
            )
        height, width = pixels.shape[:2]
        if not (0 < height < _MAX_SIDE and 0 < width < _MAX_SIDE):
            raise ValidationError(f"a picture must have 1 to {_MAX_SIDE - 1} pixels a side")
        data = self.library.ffi.from_buffer("unsigned char[]", pixels.tobytes())
        return self._chunks(self.library.lib.mtmd_bitmap_init(width, height, data))

    def audio_chunks(self, samples: NDArray[np.float32]) -> list[list[int] | MediaChunk]:
        """Preprocess a sound.

        Shapes: *samples* (n,) float32, mono, at `sample_rate`.

        Returns:
            As for `image_chunks`.

        Raises:
            ValidationError: The array has another shape or type, is shorter than a window of
                400 samples or not finite, the projector takes no sounds, or the vocabulary lacks a
                token for sounds.
        C: mtmd_bitmap_init_from_audio, mtmd_tokenize
        """
        import numpy as np

        if not self.supports_audio:
            raise ValidationError(f"{self.path.name} takes pictures and no sounds")
        if samples.dtype != "float32" or samples.ndim != 1:
            raise ValidationError(f"a sound must be (n,) float32, got {samples.shape}")
        if len(samples) < _MIN_SAMPLES:
            raise ValidationError(
                f"the sound has {len(samples)} samples; it needs at least {_MIN_SAMPLES}"
            )
        if not np.isfinite(samples).all():
            raise ValidationError("the sound has samples that are not finite numbers")
        data = self.library.ffi.from_buffer("float[]", samples.tobytes())
        return self._chunks(self.library.lib.mtmd_bitmap_init_from_audio(len(samples), data))

    def encode(self, chunk: MediaChunk) -> NDArray[np.float32]:
        """Return the embeddings of a chunk.

        Shapes: (n_tokens, n_embd_inp) float32.

        Raises:
            GenerationError: C failed; the message has its reason.
            ValidationError: Another projector made the chunk.
        C: mtmd_encode_chunk, mtmd_get_output_embd
        """
        import numpy as np

        if chunk.projector is not self:
            raise ValidationError("the chunk was made by another projector")
        library = self.library
        shape = chunk.n_tokens, self.model.n_embd_inp
        with self._encoding:
            mark, held, held_chunk = library.logs.count, self.hold(), chunk.hold()
            try:
                code = library.lib.mtmd_encode_chunk(self.ptr, chunk.ptr)
                rows = library.lib.mtmd_get_output_embd(self.ptr) if code == 0 else None
                if not rows:
                    reason = "; ".join(library.logs.since(mark)) or "llama.cpp gave no reason"
                    raise GenerationError(f"mtmd_encode_chunk failed with {code}: {reason}")
                buffer = library.ffi.buffer(rows, shape[0] * shape[1] * 4)
                found = np.frombuffer(buffer, np.float32).reshape(shape).copy()
            finally:
                del held, held_chunk
        library.logs.raise_interrupt()
        return found

    def _chunks(self, bitmap: CData) -> list[list[int] | MediaChunk]:
        """Return the chunks of a bitmap, which is freed."""
        library = self.library
        ffi, lib = library.ffi, library.lib
        chunks = ffi.gc(lib.mtmd_input_chunks_init(), lib.mtmd_input_chunks_free)
        marker = ffi.new("char[]", self._marker)
        bitmaps = ffi.new("struct mtmd_bitmap *[]", [bitmap])
        text, mark, held = compat.input_text(library, marker), library.logs.count, self.hold()
        try:
            code = lib.mtmd_tokenize(self.ptr, chunks, text, bitmaps, 1)
        finally:
            del held
            lib.mtmd_bitmap_free(bitmap)
        if code:
            reason = "; ".join(library.logs.since(mark)) or "llama.cpp gave no reason"
            raise ValidationError(f"{self.path.name} cannot take this picture or sound: {reason}")
        found: list[list[int] | MediaChunk] = []
        for i in range(lib.mtmd_input_chunks_size(chunks)):
            chunk = lib.mtmd_input_chunks_get(chunks, i)
            if int(lib.mtmd_input_chunk_get_type(chunk)) == _TEXT:
                found.append(self._tokens(chunk))
            else:
                copy = lib.mtmd_input_chunk_copy(chunk)
                found.append(MediaChunk(self, copy, lib.mtmd_input_chunk_free))
        return found

    def _tokens(self, chunk: CData) -> list[int]:
        ffi, lib = self.library.ffi, self.library.lib
        n = ffi.new("size_t *")
        tokens: Sequence[int] = ffi.unpack(lib.mtmd_input_chunk_get_tokens_text(chunk, n), n[0])
        n_vocab = self.model.vocab.n_tokens
        if any(not 0 <= token < n_vocab for token in tokens):
            raise ValidationError(
                f"the vocabulary of {self.model.path.name} lacks a token that {self.path.name} "
                "writes around pictures; use the projector that belongs to the model"
            )
        return list(tokens)

    def __repr__(self) -> str:
        kinds = [
            name
            for name, has in (("images", self.supports_images), ("audio", self.supports_audio))
            if has
        ]
        return f"<Projector {self.path.name} {' '.join(kinds)}{' closed' if self.closed else ''}>"

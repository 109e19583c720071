"""Pictures and sounds in prompts: preprocessed when rendered, encoded before they are decoded."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ..binding import MediaChunk, Model, Projector
from ..errors import ClosedError, ValidationError
from ..gguf.reader import check_gguf
from ..hub import fetch_projector, find_projector, resolve_model
from ..media import Audio, Image
from ..validation import as_path
from .encoder_cache import EncoderCache
from .prompt import Prompt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..binding import Context

__all__ = [
    "ENCODER_CACHE_BYTES",
    "EncodedMedia",
    "MediaProcessor",
    "ProjectorSource",
    "file_modalities",
]

ProjectorSource: TypeAlias = "str | os.PathLike[str]"

ENCODER_CACHE_BYTES = 2**28
_MAX_CHUNKED = 8  # pictures that stay preprocessed: several MB each
_N_UBATCH = 512  # llama.cpp's default
_LARGE_SIDE = 2048  # of a picture that takes the most tokens a projector gives to one


class EncodedMedia:
    """A chunk of a picture or sound in a prompt; see `generation.prompt.Media`.

    Attributes:
        key: Hash of the content, the chunk and the projector.
        n_cells: Number of KV-cache cells.
        n_positions: Number of positions.
        last_offset: The largest of its positions in the KV cache, less the first.
    """

    __slots__ = ("_cache", "_chunk", "key", "last_offset", "n_cells", "n_positions")

    def __init__(self, chunk: MediaChunk, key: bytes, cache: EncoderCache) -> None:
        self._chunk, self._cache, self.key = chunk, cache, key
        self.n_cells, self.n_positions = chunk.n_tokens, chunk.n_positions
        positions = chunk.positions(0)
        self.last_offset = int((positions if positions.ndim == 1 else positions[0]).max())

    @property
    def is_encoded(self) -> bool:
        """Whether `decode` need not encode it first."""
        return self._cache.find(self.key) is not None

    def encode(self) -> NDArray[np.float32]:
        """Return the embeddings, computed unless they are known.

        Shapes: (n_cells, n_embd_inp) float32.

        Raises:
            GenerationError: C failed.
            ClosedError: The model is closed.
        """
        chunk = self._chunk
        return self._cache.get(self.key, lambda: chunk.projector.encode(chunk))

    def decode(self, context: Context, seq_id: int, position: int) -> None:
        """Decode it at *position* of a sequence, encoding it first if necessary.

        Raises:
            GenerationError: C failed, or the KV cache is full.
            ValidationError: It needs a context with a larger n_ubatch.
        """
        rows, chunk = self.encode(), self._chunk
        context.decode_embeddings(rows, chunk.positions(position), seq_id, causal=chunk.is_causal)

    def __repr__(self) -> str:
        return f"<EncodedMedia {self._chunk!r}>"


class MediaProcessor:
    """Turns pictures and sounds into cells of a prompt, through one projector. Thread-safe.

    Args:
        model: The model.
        source: The projector: a GGUF file or `hf:owner/repo:file`; None: the one beside the model,
            looked for when the first picture or sound comes.
        image_min_tokens: See `Projector`.
        image_max_tokens: See `Projector`.
        n_threads: See `Projector`.

    Attributes:
        model: The model.
        cache: The embeddings.
    """

    def __init__(
        self,
        model: Model,
        source: ProjectorSource | None = None,
        *,
        image_min_tokens: int | None = None,
        image_max_tokens: int | None = None,
        n_threads: int = 0,
    ) -> None:
        self.model, self._source = model, source
        self._options = image_min_tokens, image_max_tokens, n_threads
        self.cache = EncoderCache(ENCODER_CACHE_BYTES)
        self._projector: Projector | None = None
        self._chunked: OrderedDict[bytes, list[list[int] | EncodedMedia]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def projector(self) -> Projector:
        """The projector, loaded on first use.

        Raises:
            ModelLoadError: It is damaged, or for another model.
            FetchError: It cannot be fetched.
            ValidationError: There is none, or the build has no libmtmd.
            ClosedError: The model is closed.
        """
        with self._lock:
            if self._projector is None:
                least, most, n_threads = self._options
                self._projector = Projector(
                    self.model,
                    self._path(),
                    n_threads=n_threads,
                    image_min_tokens=least,
                    image_max_tokens=most,
                )
            if self._projector.closed:
                raise ClosedError("the model of this projector is closed; open a new one")
            return self._projector

    @property
    def modalities(self) -> tuple[str, ...]:
        """What the model takes: `text`, and `image` and `audio` if it has a projector for them."""
        if self.model.library.no_multimodal:
            return ("text",)
        if self._projector is None:
            return file_modalities(self.model.path, self._source)
        return _modalities(self._projector.supports_images, self._projector.supports_audio)

    def batch_sizes(self, n_batch: int, n_ubatch: int | None) -> tuple[int, int | None]:
        """Return `n_batch` and `n_ubatch` of a context, increased if a picture needs more.

        Where the projector is given, the tokens of some models' pictures are decoded together.

        Raises:
            LlamaError: See `projector`.
        """
        least = 1 if self._source is None else self._n_together()
        if least > (_N_UBATCH if n_ubatch is None else n_ubatch):
            n_ubatch = least
        return max(n_batch, least), n_ubatch

    def _n_together(self) -> int:
        """Return the most tokens of a picture that attend to each other; 1: none do."""
        import numpy as np

        if not self.projector.supports_images:
            return 1
        large = np.zeros((_LARGE_SIDE, _LARGE_SIDE, 3), np.uint8)
        chunks = self.projector.image_chunks(large)
        return max(
            (c.n_tokens for c in chunks if isinstance(c, MediaChunk) and not c.is_causal),
            default=1,
        )

    def add(self, prompt: Prompt, media: Image | Audio) -> None:
        """Append a picture or a sound, and the texts around it, to a prompt.

        Raises:
            ValidationError: The model does not take it, or there is no projector; see `projector`
                for the other errors.
        """
        for part in self._parts(media):
            if isinstance(part, EncodedMedia):
                prompt.add_media(part)
            else:
                prompt += part

    def _parts(self, media: Image | Audio) -> list[list[int] | EncodedMedia]:
        projector = self.projector
        with self._lock:
            if (known := self._chunked.get(media.digest)) is not None:
                self._chunked.move_to_end(media.digest)
                return known
        if isinstance(media, Image):
            chunks = projector.image_chunks(media.pixels)
        else:
            rate = projector.sample_rate
            samples = media.resampled(rate).samples if rate else media.samples
            chunks = projector.audio_chunks(samples)
        parts = [
            EncodedMedia(chunk, self._key(media, i), self.cache)
            if isinstance(chunk, MediaChunk)
            else chunk
            for i, chunk in enumerate(chunks)
        ]
        with self._lock:
            self._chunked[media.digest] = parts
            if len(self._chunked) > _MAX_CHUNKED:
                self._chunked.popitem(last=False)
        return parts

    def _key(self, media: Image | Audio, i: int) -> bytes:
        return hashlib.sha256(b"%s %d " % (self.projector.identity, i) + media.digest).digest()

    def _path(self) -> Path:
        if self._source is not None:
            return resolve_model(as_path("mmproj", self._source))
        path = fetch_projector(self.model.path)
        if path is None:
            raise ValidationError(
                f"{self.model.path.name} gets text only: there is no projector beside it; pass "
                "one (mmproj='mmproj.gguf', --mmproj mmproj.gguf), or leave pictures and sounds out"
            )
        return path


def file_modalities(model: Path, source: ProjectorSource | None = None) -> tuple[str, ...]:
    """Return the modalities of a model that is not loaded, from the header of its projector.

    Args:
        model: The GGUF file of the model.
        source: Its projector; None: the one beside it. One that must be fetched does not count.

    Raises:
        ModelLoadError: The projector is missing or damaged.
    """
    path = None
    if source is None:
        with suppress(ValidationError):  # there are several; using one says so
            path = find_projector(model)
    elif not str(source).startswith("hf:"):
        path = as_path("mmproj", source)
    if path is None:
        return ("text",)
    values = check_gguf(path, kind="projector").values
    return _modalities(*(bool(values.get(f"clip.has_{k}_encoder")) for k in ("vision", "audio")))


def _modalities(images: bool, sounds: bool) -> tuple[str, ...]:
    return ("text", *["image"] * images, *["audio"] * sounds)

"""Pictures and sounds of `chat` and `generate`: files that go with a message."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ValidationError

if TYPE_CHECKING:
    from ..generation.media import MediaProcessor
    from ..media import Audio, Image

__all__ = ["Attachment", "add_media", "attached", "check_media", "content_of"]

_NAMES = {"image": "picture", "audio": "sound"}
_URL = re.compile(r"https?://", re.IGNORECASE)


def add_media(parser: Any, what: str) -> None:
    """Add --image and --audio."""
    group = parser.add_argument_group("pictures and sounds")
    group.add_argument(
        "--image", dest="images", action="append", default=[], metavar="FILE",
        help=f"a picture, or its https address, that goes before {what}; several times for several",
    )  # fmt: skip
    group.add_argument(
        "--audio", dest="sounds", action="append", default=[], metavar="FILE",
        help=f"a sound, a WAV file, that goes before {what}; several times for several",
    )  # fmt: skip


@dataclass(frozen=True)
class Attachment:
    """A picture or sound that goes with a message.

    Attributes:
        kind: `image` or `audio`.
        source: The file or its address.
        media: The picture or sound.
    """

    kind: str
    source: str
    media: Image | Audio

    @classmethod
    def load(cls, kind: str, source: str) -> Attachment:
        """Load a file, or fetch it.

        Raises:
            ValidationError: It is no such file.
            FetchError: It cannot be fetched.
            LlamaError: Pillow is not installed.
        """
        from ..media import load_audio, load_image

        path: Path | str = source
        if not _URL.match(source):
            path = Path(source).expanduser().absolute()
        media: Image | Audio
        if kind == "image":
            media = load_image(path, where=source)
        else:
            media = load_audio(path, where=source)
        return cls(kind, str(path), media)

    @classmethod
    def restore(cls, saved: Mapping[str, Any]) -> Attachment:
        """Load what `saved` has kept.

        Raises:
            ValidationError: The file is gone, or has changed.
            FetchError: It cannot be fetched.
            LlamaError: Pillow is not installed.
        """
        kind, source = str(saved["type"]), str(saved["source"])
        name = f"the {_NAMES[kind]} {source} of this conversation"
        if not _URL.match(source) and not Path(source).exists():
            raise ValidationError(f"{name} is gone; put it back, or start a new conversation")
        found = cls.load(kind, source)
        if found.media.digest.hex() != saved["sha256"]:
            raise ValidationError(f"{name} has changed; put the old one back, or start a new one")
        return found

    def saved(self) -> dict[str, str]:
        """Return what a saved conversation keeps of it."""
        return {"type": self.kind, "source": self.source, "sha256": self.media.digest.hex()}

    def __str__(self) -> str:
        name = self.source.split("?")[0].rstrip("/").replace("\\", "/").rsplit("/", 1)[-1]
        media: Any = self.media
        size = (
            f"{media.width}x{media.height}" if self.kind == "image" else f"{media.duration_s:.1f} s"
        )
        return f"[{_NAMES[self.kind]} {name} {size}]"


def attached(args: argparse.Namespace) -> list[Attachment]:
    """Load what --image and --audio name.

    Raises:
        LlamaError: See `Attachment.load`.
    """
    return [
        Attachment.load(kind, source)
        for kind, sources in (("image", args.images), ("audio", args.sounds))
        for source in sources
    ]


def content_of(text: str, attachments: list[Attachment]) -> str | list[dict[str, Any]]:
    """Return the content of a message: the attachments, then the text."""
    if not attachments:
        return text
    parts: list[dict[str, Any]] = [{"type": a.kind, a.kind: a.media} for a in attachments]
    return [*parts, {"type": "text", "text": text}]


def check_media(processor: MediaProcessor, mmproj: str | None, kind: str) -> None:
    """Refuse a picture or a sound that a model cannot take; the projector is loaded.

    Args:
        processor: The engine's.
        mmproj: What --mmproj says.
        kind: `image` or `audio`.

    Raises:
        ValidationError: The build, the model or the projector does not take it.
        ModelLoadError: The projector is damaged, or for another model.
        FetchError: It cannot be fetched.
    """
    from ..hub import fetch_projector

    model = processor.model
    if reason := model.library.no_multimodal:
        raise ValidationError(f"pictures and sounds do not work: {reason}")
    if mmproj is None and fetch_projector(model.path) is None:
        raise ValidationError(
            f"{model.path.name} gets text only: there is no projector beside it; give one with "
            "--mmproj FILE"
        )
    projector = processor.projector
    if not (projector.supports_images if kind == "image" else projector.supports_audio):
        raise ValidationError(f"{model.path.name} with {projector.path.name} takes no "
                              f"{_NAMES[kind]}s")  # fmt: skip

"""MediaPolicy: what may be loaded from where, and how large it may be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import ValidationError
from ..validation import check_float, check_int

__all__ = ["MediaPolicy"]

_MAX = 2**40


@dataclass(frozen=True)
class MediaPolicy:
    """What pictures and sounds may be loaded from where, and how large they may be.

    Attributes:
        urls: Which https addresses are fetched: True: those of every public host; the names of the
            hosts; False: none. Addresses of private networks never are.
        files: Which files are read: True: every path and file: URL; a folder: those in it; False:
            none.
        max_image_bytes: Most bytes of an encoded picture.
        max_pixels: Most pixels of a picture, width times height.
        max_audio_bytes: Most bytes of an encoded sound.
        max_audio_s: Longest sound, seconds.
        max_items: Most pictures and sounds in one conversation.
        timeout_s: Longest time for fetching one, seconds.
        max_redirects: Most redirects that are followed; each is checked again.

    Raises:
        ValidationError: A value has the wrong type, or is out of range.
    """

    urls: bool | tuple[str, ...] = True
    files: bool | Path = True
    max_image_bytes: int = 20_000_000
    max_pixels: int = 40_000_000
    max_audio_bytes: int = 50_000_000
    max_audio_s: float = 1800.0
    max_items: int = 32
    timeout_s: float = 10.0
    max_redirects: int = 3

    def __post_init__(self) -> None:
        is_list = isinstance(self.urls, tuple) and all(isinstance(h, str) for h in self.urls)
        if not (isinstance(self.urls, bool) or is_list):
            raise ValidationError(
                f"urls must be True, False or a tuple of host names, got {self.urls!r}"
            )
        if not isinstance(self.files, (bool, Path)):
            raise ValidationError(f"files must be True, False or a Path, got {self.files!r}")
        for name in ("max_image_bytes", "max_pixels", "max_audio_bytes", "max_items"):
            check_int(name, getattr(self, name), 1, _MAX)
        check_int("max_redirects", self.max_redirects, 0, 20)
        for name in ("max_audio_s", "timeout_s"):
            check_float(name, getattr(self, name), 0, 1e9, above=True)

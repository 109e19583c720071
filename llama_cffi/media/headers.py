"""The size of a picture, read from its header: before a decoder sees it."""

from __future__ import annotations

import struct

__all__ = ["FORMATS", "format_of", "size_of"]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# JPEG: start of frame, of any coding; not the tables between them.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Of a JPEG; files have some dozens, and a decoder goes through them one by one.
_MAX_SEGMENTS = 10_000


def format_of(data: bytes) -> str | None:
    """Return the format of a picture by its first bytes, one of `FORMATS`; None: another."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    return "BMP" if data.startswith(b"BM") else None


def size_of(data: bytes) -> tuple[int, int] | None:
    """Return width and height in pixels; None: the header does not tell, or is damaged.

    Formats: https://www.w3.org/TR/png/, https://www.w3.org/Graphics/JPEG/itu-t81.pdf,
    https://developers.google.com/speed/webp/docs/riff_container
    """
    readers = {"PNG": _png, "JPEG": _jpeg, "WEBP": _webp, "GIF": _gif, "BMP": _bmp}
    if (kind := format_of(data)) is None:
        return None
    try:
        return readers[kind](data)
    except (struct.error, IndexError, ValueError):
        return None


def _png(data: bytes) -> tuple[int, int] | None:
    width, height = struct.unpack_from(">II", data, 16)
    return (width, height) if data[12:16] == b"IHDR" else None


def _gif(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def _bmp(data: bytes) -> tuple[int, int]:
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:  # of OS/2
        width, height = struct.unpack_from("<HH", data, 18)
        return width, height
    width, height = struct.unpack_from("<ii", data, 18)
    return abs(width), abs(height)


def _webp(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return _u24(data, 24) + 1, _u24(data, 27) + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg(data: bytes) -> tuple[int, int] | None:
    """Return the largest frame that is declared before the first scan."""
    at, size = 2, (0, 0)
    for _ in range(_MAX_SEGMENTS):
        at = data.index(b"\xff", at)  # over what a damaged segment left
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # without a length
            at += 2
        elif marker in (0xD9, 0xDA):  # the end, or the data of a scan
            return size if size[0] else None
        else:
            if marker in _FRAMES:
                height, width = struct.unpack_from(">HH", data, at + 5)
                size = max(size, (width, height), key=lambda s: s[0] * s[1])
            (length,) = struct.unpack_from(">H", data, at + 2)
            at += 2 + max(length, 2)
    return None


def _u24(data: bytes, at: int) -> int:
    return data[at] | data[at + 1] << 8 | data[at + 2] << 16

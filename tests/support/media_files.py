"""Small valid pictures and sounds of every kind that is read, and damage to them."""

from __future__ import annotations

import functools
import io
import random
import struct
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["mutated", "valid_media"]

_NUMBERS = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 2**32 - 1)


@functools.cache
def valid_media() -> dict[str, bytes]:
    """Return name -> file; the names of sounds end with .wav."""
    noise = np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    rgb = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames: dict[str, Any] = {"save_all": True, "append_images": [rgb.rotate(90)]}
    grey = Image.fromarray(noise[:, :, 0].astype(np.uint16) * 250)
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.png": (rgb, {"exif": exif}),
        "alpha.png": (rgb.convert("RGBA"), {}),
        "palette.png": (rgb.quantize(16), {"transparency": 3}),
        "16bit.png": (grey, {}),
        "frames.png": (rgb, frames),
        "rgb.jpeg": (rgb, {"exif": exif}),
        "progressive.jpeg": (rgb, {"progressive": True}),
        "cmyk.jpeg": (rgb.convert("CMYK"), {}),
        "lossy.webp": (rgb, {}),
        "lossless.webp": (rgb.convert("RGBA"), {"lossless": True, "exif": exif}),
        "frames.webp": (rgb, frames),
        "frames.gif": (rgb, frames),
        "rgb.bmp": (rgb, {}),
        "palette.bmp": (rgb.quantize(16), {}),
    }
    found = {}
    for name, (picture, options) in kinds.items():
        out = io.BytesIO()
        picture.save(out, name.rpartition(".")[2], **options)
        found[name] = out.getvalue()
    for tag, width in ((1, 1), (1, 2), (1, 3), (1, 4), (3, 4), (3, 8)):
        form = struct.pack("<HHIIHH", tag, 2, 16_000, 32_000 * width, 2 * width, 8 * width)
        body = noise.tobytes()[: 2 * width * 100] if tag == 1 else bytes(2 * width * 100)
        chunks = b"fmt \x10\0\0\0" + form + b"data" + struct.pack("<I", len(body)) + body
        head = b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE"
        found[f"{tag}-{width}.wav"] = head + chunks
    return found


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Return a file with one to four damages, mostly near its start."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        end = max(1, len(found))
        at = rng.randrange(min(end, rng.choice((16, 64, 256, end))))
        match rng.randrange(7):
            case 0 | 1:
                found[at : at + 1] = bytes([rng.randrange(256)])
            case 2:
                size, order = rng.choice((1, 2, 4)), rng.choice(("little", "big"))
                number = rng.choice(_NUMBERS) % 2 ** (8 * size)
                found[at : at + size] = number.to_bytes(size, "big" if order == "big" else "little")
            case 3:
                del found[rng.randrange(end) :]
            case 4:
                del found[at : at + rng.randint(1, 16)]
            case 5:
                found[at:at] = found[at : at + rng.randint(1, 64)] * rng.randint(1, 8)
            case _:
                found[at:at] = rng.randbytes(rng.randint(1, 16))
    return bytes(found)

"""Pictures and sounds as arrays: from arrays, files, bytes, data URLs and the web.

Everything is decoded here, within the limits of a `MediaPolicy`; C gets pixels and samples only.
Encoded pictures need Pillow (the extra `multimodal`); arrays and WAV files need nothing.
"""

from .images import load_image
from .parts import is_media_part, load_media, load_part
from .policy import MediaPolicy
from .sounds import load_audio
from .types import Audio, Image

__all__ = [
    "Audio",
    "Image",
    "MediaPolicy",
    "is_media_part",
    "load_audio",
    "load_image",
    "load_media",
    "load_part",
]

"""Parse build specs, the short names of llama.cpp builds.

npm:3.22.1, npm:latest          a version of the npm source
github:b11549, github:latest    a release on GitHub
b8179, v0.5.0                   a llama.cpp tag, from any source
latest, default                 the newest or the pinned build, from any source
path:DIR, ./build, …            a library file or a folder
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from typing import TypeGuard

from ..errors import FetchError, ValidationError

__all__ = ["Spec", "is_plain_name", "parse", "plain_name"]

# Names of folders and files in the cache. No separator, no leading dot, no drive, no control.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_TAG = re.compile(r"b\d{1,9}|v\d+\.\d+\.\d+[A-Za-z0-9.-]*")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_LIBRARY_SUFFIX = re.compile(r"\.(so(\.[\d.]+)?|dylib|dll)$")

_HELP = (
    "Write npm:3.22.1, github:b11549, a llama.cpp tag such as b8179 or v0.5.0, latest, default, "
    "or path:FOLDER."
)


@dataclass(frozen=True)
class Spec:
    """A parsed build spec.

    Attributes:
        source: `npm`, `github`, `path`, or `any` if the source is still to be chosen.
        version: A version or tag of that source, or `latest` or `default`; for `path`, the path.
    """

    source: str
    version: str

    def __str__(self) -> str:
        return self.version if self.source == "any" else f"{self.source}:{self.version}"


def is_plain_name(name: object) -> TypeGuard[str]:
    """Return whether *name* is a str that is safe as one path component of the cache."""
    return isinstance(name, str) and _PLAIN_NAME.fullmatch(name) is not None


def plain_name(name: object, what: str) -> str:
    """Return *name*, a source, version, tag or variant, for use as one path component.

    Args:
        name: What a server, an archive or a file of the cache says.
        what: What it is and where it comes from, for the message.

    Raises:
        FetchError: It is not one plain path component.
    """
    if isinstance(name, str) and is_plain_name(name):
        return name
    shown = repr(name)
    raise FetchError(
        f"{what} {shown[:60]}{'…' * (len(shown) > 60)} is refused: a name is 1 to 64 letters, "
        "digits and ._+-, beginning with a letter or digit. Check the address of the registry or "
        "mirror."
    )


def parse(text: str) -> Spec:
    """Parse a build spec.

    Raises:
        ValidationError: *text* has none of the known forms.
    """
    text = text.strip()
    source, colon, rest = text.partition(":")
    if colon and source == "path":
        if not rest or "\0" in rest:
            raise ValidationError(f"build spec {text!r} has no valid path after path:. {_HELP}")
        return Spec("path", os.path.expanduser(rest))
    if colon and source in ("npm", "github"):
        if not is_plain_name(rest):
            raise ValidationError(f"build spec {text!r} has an invalid version {rest!r}. {_HELP}")
        return Spec(source, rest)
    if text in ("default", "latest") or _TAG.fullmatch(text):
        return Spec("any", text)
    if _looks_like_path(text):
        return Spec("path", os.path.expanduser(text))
    near = difflib.get_close_matches(text, ("latest", "default"), 1)
    near = [f"npm:{text}"] if _VERSION.fullmatch(text) else near
    hint = f"; did you mean {near[0]}?" if near else "."
    raise ValidationError(f"unknown build spec {text!r}{hint} {_HELP}")


def _looks_like_path(text: str) -> bool:
    if not text or "\0" in text or "://" in text:
        return False
    return "/" in text or "\\" in text or text[0] in ".~" or bool(_LIBRARY_SUFFIX.search(text))

"""Forms with files: multipart/form-data.

Source: RFC 7578, https://www.rfc-editor.org/rfc/rfc7578
"""

from __future__ import annotations

from collections.abc import Mapping
from email.message import Message
from email.parser import BytesParser

from .body import BOOL, INTEGER, NUMBER, Kind, Object, bytes_kind, parse_value
from .errors import invalid

__all__ = ["FILE", "parse_form"]

FILE = bytes_kind("a file")
_MAX_PARTS = 100
_MAX_HEAD = 8192
_NO_TEXT = (BOOL, INTEGER, NUMBER)


def parse_form(body: bytes, content_type: str, fields: Mapping[str, Kind]) -> Object:
    """Return the fields of a form: bytes of files, numbers, true and false, and texts.

    Args:
        body: The form.
        content_type: The header, which has the boundary.
        fields: The fields that are known, by name; others are left out.

    Raises:
        ApiError: It is not a form, or a text is not UTF-8.
    """
    head = Message()
    head["content-type"] = content_type
    boundary = head.get_boundary()
    if not boundary:
        raise invalid(None, "the content type has no boundary; let the client write this header")
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1", "replace"))
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise invalid(None, "the body is not a whole form: its last boundary is missing")
    if len(pieces) - 2 > _MAX_PARTS:
        raise invalid(None, f"the form has {len(pieces) - 2} parts; at most {_MAX_PARTS} are taken")
    found: Object = {}
    for piece in pieces[1:-1]:
        lines, separator, value = piece.lstrip(b" \t").partition(b"\r\n\r\n")
        if not separator or len(lines) > _MAX_HEAD:
            raise invalid(None, "the form has a part without headers, or with too long ones")
        part = BytesParser().parsebytes(lines.lstrip(b"\r\n"), headersonly=True)
        name = part.get_param("name", header="content-disposition")
        if isinstance(name, str) and (kind := fields.get(name)) is not None:
            found[name] = value if kind is FILE else _value(name, value, kind)
    return found


def _value(name: str, value: bytes, kind: Kind) -> object:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise invalid(name, f"{name} must be {kind.words}, and is not UTF-8") from None
    return parse_value(text) if kind in _NO_TEXT else text

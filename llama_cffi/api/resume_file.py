"""ResumeFile: the answers of a `map` so far, as JSON lines, from which another run continues."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..atomic_files import replacing
from ..errors import ValidationError

__all__ = ["ResumeFile"]

_VERSION = 1
_ADVICE = "name another file, or remove this one to start anew"


class ResumeFile:
    """A file with a first line about the run, and a line for each answer.

    A line that a killed process did not finish is dropped.

    Args:
        path: The file; made if missing.
        head: What the answers depend on: `model`, `schema` and `inputs`, as texts, and `n_rows`.
            All but the digests after a # are shown in messages.
        check: Raises a ValidationError if a text cannot be an answer.

    Attributes:
        answers: Row -> JSON text.

    Raises:
        ValidationError: The file is something else, damaged, or of another run.
        OSError: It cannot be read or written.
    """

    def __init__(
        self, path: Path, head: Mapping[str, object], check: Callable[[str], object]
    ) -> None:
        self.path = path
        self.answers: dict[int, str] = {}
        data = path.read_bytes() if path.exists() else b""
        if not data:
            with replacing(path) as file:
                file.write(_line({"llama_cffi_map": _VERSION, **head}))
            data = path.read_bytes()
        complete = data[: data.rfind(b"\n") + 1]
        lines = complete.splitlines()
        self._check_head(lines[0] if lines else data, head)
        for number, line in enumerate(lines[1:], 2):
            row, answer = self._read(number, line)
            if not 0 <= row < int(str(head["n_rows"])):
                raise ValidationError(f"{path}, line {number}: there is no row {row}; {_ADVICE}")
            try:
                check(answer)
            except ValidationError as e:
                raise ValidationError(f"{path}, line {number}: {e}; {_ADVICE}") from None
            self.answers.setdefault(row, answer)
        if len(complete) < len(data):
            os.truncate(path, len(complete))
        # Appended to, so that two runs with the same file only do some rows twice.
        self._file = open(path, "ab")  # noqa: SIM115  (closed by `close`)

    def add(self, row: int, answer: str) -> None:
        """Write an answer; it survives the end of this process."""
        self._file.write(_line({"row": row, "answer": answer}))
        self._file.flush()

    def close(self) -> None:
        """Close the file. Calling it again does nothing."""
        self._file.close()

    def _check_head(self, line: bytes, head: Mapping[str, object]) -> None:
        try:
            found: Any = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict) or "llama_cffi_map" not in found:
            raise ValidationError(f"{self.path} is not a file of `map`; {_ADVICE}")
        if found["llama_cffi_map"] != _VERSION:
            raise ValidationError(
                f"{self.path} has version {found['llama_cffi_map']!r} of the format, this is "
                f"version {_VERSION}; {_ADVICE}"
            )
        for name, value in head.items():
            if found.get(name) == value:
                continue
            before, now = (str(each).partition("#")[0].strip() for each in (found.get(name), value))
            what = {"n_rows": "number of rows", "inputs": "rows or prompts"}.get(name, name)
            shown = f": {before} then, {now} now" if before != now else ""
            raise ValidationError(f"{self.path} is of another {what}{shown}; {_ADVICE}")

    def _read(self, number: int, line: bytes) -> tuple[int, str]:
        try:
            found = json.loads(line)
            row, answer = found["row"], found["answer"]
        except (ValueError, KeyError, TypeError):
            row = answer = None
        if type(row) is not int or not isinstance(answer, str):
            raise ValidationError(
                f"{self.path}, line {number} is damaged; remove that line to compute its row again"
            )
        return row, answer


def _line(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"

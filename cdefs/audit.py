"""Check declarations against the headers they were generated from, with a C compiler.

    python -m llama_cffi.cdefs.audit FOLDER [--cc gcc]

FOLDER holds one build's headers, or one folder of headers per upstream tag. A translation unit
includes the real headers, asserts every size, offset, member type, enumerator and constant that
cffi sees in the declarations, and declares every function again, which a compiler rejects if the
types differ. Nothing is linked or run.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cffi
from tqdm import tqdm

from ..errors import LlamaError, ValidationError
from .describe import complete_struct
from .generator import bare_tags, find_headers, generate, preprocess
from .parsing import Renderer, c_ast, parse

__all__ = ["Audit", "audit", "compiler"]


class Audit(NamedTuple):
    """The result of an audit.

    Attributes:
        checks: Number of checks.
        problems: The failed checks, each with the compiler's message.
    """

    checks: int
    problems: list[str]


def compiler() -> str | None:
    """Return the path of a GCC-compatible C compiler; None if there is none on PATH."""
    return next((path for name in ("gcc", "clang", "cc") if (path := shutil.which(name))), None)


def audit(header_dir: Path, text: str, cc: str) -> Audit:
    """Compare the declarations *text* with the headers in *header_dir*.

    Args:
        header_dir: Folder of the real headers.
        text: Declarations, as `generate` returns them.
        cc: Path of GCC or Clang.

    Raises:
        ValidationError: The headers cannot be read, or the compiler fails for another reason.
    """
    headers = find_headers(header_dir)
    # Headers written for C++ use tags as type names; C needs a typedef for each.
    bare = [
        f"typedef {keyword} {tag} {tag};"
        for tag, keyword in bare_tags(preprocess(headers)[0]).items()
    ]
    includes = [f'#include "{path.resolve()}"' for path in headers.values()]
    folders = dict.fromkeys(f"-I{path.resolve().parent}" for path in headers.values())
    checks = list(_checks(text))
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "audit.c")
        for path in headers.values():
            # ggml-openvino.h includes <cstring>, which C compilers do not have.
            for name in re.findall(r"#\s*include\s*<(\w+)>", path.read_text(encoding="utf-8")):
                Path(scratch, name).touch()
        start = ["#include <stddef.h>", *bare, *includes]
        source.write_text("\n".join([*start, *checks, ""]), encoding="utf-8")
        options = ["-std=gnu11", "-w", "-fsyntax-only", "-I", scratch]
        options += folders
        command = [cc, *options, str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    messages = [line for line in done.stderr.splitlines() if ": error: " in line]
    if done.returncode and not messages:
        raise ValidationError(f"{cc} failed: {done.stderr.strip()}")
    problems = []
    for message in messages:
        match = re.match(r".*audit\.c:(\d+):\d+: error: (.*)", message)
        line = int(match[1]) - len(start) if match else 0
        problems.append(f"{checks[line - 1]}  // {match[2]}" if match and line > 0 else message)
    return Audit(len(checks), problems)


def _checks(text: str) -> Iterator[str]:
    """Yield one line of C for each fact in the declarations."""
    ffi: Any = cffi.FFI()
    ffi.cdef(text)
    renderer = Renderer()
    for node in parse(text).ext:
        declaration = renderer.declaration(node)
        if isinstance(node, c_ast.Decl) and isinstance(node.type, c_ast.FuncDecl):
            yield declaration
        elif (struct := complete_struct(node)) is not None:
            name = f"struct {struct.name}" if struct.name else node.name
            ctype = ffi.typeof(name)
            yield _assert(f"sizeof({name}) == {ffi.sizeof(ctype)}")
            yield _assert(f"_Alignof({name}) == {ffi.alignof(ctype)}")
            yield from _members(ffi, renderer, name, struct, ctype)
    for constant, value in renderer.constants.items():
        yield _assert(f"{constant} == {value}")
    for constant, literal in re.findall(r"(?m)^#define (\w+) (\S+)$", text):
        yield _assert(f"{constant} == {literal}")


def _members(
    ffi: Any, renderer: Renderer, name: str, struct: Any, ctype: Any, path: str = "", base: int = 0
) -> Iterator[str]:
    """Yield the checks of a struct's members; *path* and *base* locate a nested struct."""
    fields = dict(ctype.fields)
    for member in struct.decls:
        if not member.name:
            continue  # an unnamed union or struct; the next offset shows its size
        field, full = fields[member.name], path + member.name
        expression = f"(({name} *)0)->{full}"
        yield _assert(f"offsetof({name}, {full}) == {base + field.offset}")
        yield _assert(f"sizeof({expression}) == {ffi.sizeof(field.type)}")
        inner: Any = getattr(member.type, "type", None)
        if isinstance(inner, (c_ast.Struct, c_ast.Union)) and inner.decls is not None:
            at = base + field.offset
            yield from _members(ffi, renderer, name, inner, field.type, full + ".", at)
        else:
            kind = renderer.typed(member.type, "")
            yield _assert(f"__builtin_types_compatible_p(__typeof__({expression}), {kind})")


def _assert(expression: str) -> str:
    return f'_Static_assert({expression}, "");'


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m llama_cffi.cdefs.audit",
        description="Check generated declarations against the headers with a C compiler.",
    )
    parser.add_argument("folder", type=Path, help="headers, or one folder of headers per tag")
    parser.add_argument("--cc", default=compiler(), help="C compiler (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.cc is None:
        print("error: no C compiler on PATH; install one or name it with --cc", file=sys.stderr)
        return 1
    folders = sorted(path.parent for path in args.folder.glob("*/llama.h")) or [args.folder]
    checks, problems = 0, 0
    for folder in tqdm(folders, unit="build", disable=None):
        try:
            result = audit(folder, generate(folder), args.cc)
        except LlamaError as e:
            print(f"error: {folder.name}: {e}", file=sys.stderr)
            return 1
        checks += result.checks
        problems += len(result.problems)
        for problem in result.problems:
            print(f"{folder.name}: {problem}")
    print(f"{checks} checks in {len(folders)} builds, {problems} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())

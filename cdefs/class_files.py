"""Write and check the stored ABI classes: table.json, the newest class's .h, classes.tar.xz.

    python -m llama_cffi.cdefs.class_files add TAG HEADER_DIR [--after TAG]  # a new upstream build
    python -m llama_cffi.cdefs.class_files rebuild ROOT                      # all ROOT/<tag>/*.h
    python -m llama_cffi.cdefs.class_files check ROOT                        # what would change?

ROOT is the output of tools/collect_headers.py. With --whisper before the command they are the
classes of whisper.cpp; the folders of tags are its source trees. The table holds upstream tags in
upstream's order, which their names do not show (b10566 < v0.4.0 < v0.5.0 < b11549): a new tag goes
last or `--after`.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import re
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import LlamaError, ValidationError
from . import LLAMA, WHISPER, AbiClass, AbiTable, Layout
from .describe import describe
from .generator import LLAMA_HEADERS, WHISPER_HEADERS, HeaderSet, find_headers, generate

__all__ = ["add", "check", "pack", "rebuild", "table_json", "write"]


def known_texts(table: AbiTable = LLAMA) -> dict[str, str]:
    """Return the declarations of every known upstream tag, in upstream order."""
    return {
        tag: text
        for c in table.classes()
        for text in [table.declarations(c.name)]
        for tag in c.builds
    }


def classify(texts: Mapping[str, str]) -> list[tuple[AbiClass, str]]:
    """Group upstream tags (in upstream order) by identical declarations.

    Returns:
        Each class with its declarations, oldest first.

    Raises:
        ValidationError: Declarations are invalid, or differ between 64-bit platforms.
    """
    groups: dict[str, list[str]] = {}
    for tag, text in texts.items():
        if re.search(r"\blong\b(?! long\b)(?<!\blong long)", text):
            # 4 bytes on Windows, 8 elsewhere: one class has to be right on every platform.
            raise ValidationError(f"{tag} uses `long`, whose size differs between platforms")
        groups.setdefault(text, []).append(tag)
    return [
        (describe(text, tags[0], tuple(tags)), text)
        for text, tags in tqdm(groups.items(), desc="describe", unit="class", disable=None)
    ]


def add(tag: str, header_dir: Path, after: str | None = None, table: AbiTable = LLAMA) -> AbiClass:
    """Add the build *tag* to the class with the same declarations, or to a new class.

    Args:
        tag: Upstream tag.
        header_dir: Folder of its headers.
        after: The known tag that it follows; None: the newest.
        table: The project.

    Returns:
        The class of *tag*.

    Raises:
        ValidationError: The headers cannot be parsed, or *after* is unknown.
    """
    texts = known_texts(table)
    texts.pop(tag, None)
    order = list(texts)
    if after is not None and after not in texts:
        raise ValidationError(f"no build {after!r} in the table; the newest is {order[-1]}")
    order.insert(len(order) if after is None else order.index(after) + 1, tag)
    texts[tag] = generate(header_dir, header_set=_headers(table))
    classes = classify({t: texts[t] for t in order})
    write(classes, table=table)
    return next(c for c, _ in classes if tag in c.builds)


def _headers(table: AbiTable) -> HeaderSet:
    return WHISPER_HEADERS if table is WHISPER else LLAMA_HEADERS


def _has_headers(folder: Path, header_set: HeaderSet) -> bool:
    try:
        return bool(find_headers(folder, header_set))
    except ValidationError:
        return False


def rebuild(root: Path, table: AbiTable = LLAMA) -> list[tuple[AbiClass, str]]:
    """Generate every class from the headers in *root*/<tag>/, without writing anything.

    Raises:
        ValidationError: *root* lacks a tag of the table, or has one that the table lacks.
    """
    header_set = _headers(table)
    order = [tag for c in table.classes() for tag in c.builds]
    there = {path.name for path in root.iterdir() if _has_headers(path, header_set)}
    if set(order) != there:
        raise ValidationError(
            f"{root}: missing {sorted(set(order) - there)}, not in the table (use `add`) "
            f"{sorted(there - set(order))}"
        )
    return classify(
        {
            t: generate(root / t, header_set=header_set)
            for t in tqdm(order, desc="generate", unit="tag", disable=None)
        }
    )


def check(root: Path, table: AbiTable = LLAMA) -> list[str]:
    """Return what `rebuild` would change, one line each; empty if the files are up to date."""
    classes = rebuild(root, table)
    problems = []
    stored = (table.folder / "table.json").read_text(encoding="utf-8")
    if table_json([c for c, _ in classes], _headers(table).license_note) != stored:
        problems.append("table.json differs")
    now = {c.name: text for c, text in classes}
    old = {c.name: table.declarations(c.name) for c in table.classes()}
    for name in [*now, *(set(old) - set(now))]:
        if now.get(name) != old.get(name):
            problems.append(f"declarations of {name} differ")
    return problems


def write(
    classes: Sequence[tuple[AbiClass, str]], folder: Path | None = None, table: AbiTable = LLAMA
) -> None:
    """Write all classes into *folder* and remove the .h of the class that was the newest.

    Args:
        classes: Every class with its declarations, oldest first.
        folder: Where to; None: where the package has them.
        table: The project.
    """
    folder = folder or table.folder
    note = _headers(table).license_note
    newest = classes[-1][0].name
    for path in folder.glob("*.h"):
        path.unlink()
    (folder / f"{newest}.h").write_text(classes[-1][1], encoding="utf-8", newline="\n")
    packed = pack({c.name: text for c, text in classes[:-1]}, note)
    (folder / "classes.tar.xz").write_bytes(packed)
    rows = table_json([c for c, _ in classes], note)
    (folder / "table.json").write_text(rows, encoding="utf-8", newline="\n")


def pack(texts: Mapping[str, str], note: str = LLAMA_HEADERS.license_note) -> bytes:
    """Return the declarations by class name as one .tar.xz, reproducible byte for byte."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, text in {"LICENSE-NOTE": note, **texts}.items():
            info = tarfile.TarInfo(name if name == "LICENSE-NOTE" else f"{name}.h")
            data = text.encode()
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return lzma.compress(tar.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def table_json(classes: Iterable[AbiClass], note: str = LLAMA_HEADERS.license_note) -> str:
    """Return the content of table.json: each class as its difference from the one before."""
    rows = []
    last = AbiClass("", (), frozenset(), frozenset(), {}, "")
    for c in classes:
        changed = {k: v for k, v in c.layouts.items() if last.layouts.get(k) != v}
        rows.append(
            {
                "name": c.name,
                "builds": list(c.builds),
                "digest": c.digest,
                "+functions": sorted(c.functions - last.functions),
                "-functions": sorted(last.functions - c.functions),
                "+optional": sorted(c.optional - last.optional),
                "-optional": sorted(last.optional - c.optional),
                "+layouts": {k: holes(changed[k]) for k in sorted(changed)},
                "-layouts": sorted(set(last.layouts) - set(c.layouts)),
            }
        )
        last = c
    about = " ".join(line.removeprefix("// ") for line in note.splitlines())
    return _dump({"about": about, "classes": rows}) + "\n"


def holes(layout: Layout) -> list[int]:
    """Return [size, start of a hole, its end, ...], a hole being a run of padding bytes."""
    edges = [layout.size]
    for i in range(layout.size + 1):
        before = i == 0 or bool(layout.written[i - 1])
        now = i == layout.size or bool(layout.written[i])
        if before != now:
            edges.append(i)
    return edges


def _dump(value: Any, indent: str = "") -> str:
    """Return JSON with one item per line; lists of numbers and empty values stay on one line."""
    deeper = indent + " "
    if isinstance(value, dict) and value:
        items = [f"{json.dumps(k)}: {_dump(v, deeper)}" for k, v in value.items()]
        return "{\n" + ",\n".join(deeper + item for item in items) + f"\n{indent}}}"
    if isinstance(value, list) and value and not isinstance(value[0], int):
        items = [_dump(v, deeper) for v in value]
        return "[\n" + ",\n".join(deeper + item for item in items) + f"\n{indent}]"
    return json.dumps(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m llama_cffi.cdefs.class_files",
        description="Write and check the stored ABI classes.",
    )
    parser.add_argument("--whisper", action="store_true", help="those of whisper.cpp")
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("add", help="add an upstream build")
    adding.add_argument("tag")
    adding.add_argument("headers", type=Path)
    adding.add_argument("--after", metavar="TAG", help="the known build it follows")
    for name in ("rebuild", "check"):
        commands.add_parser(name).add_argument("root", type=Path, help="folder of <tag>/*.h")
    args = parser.parse_args(argv)
    table = WHISPER if args.whisper else LLAMA
    try:
        if args.command == "add":
            c = add(args.tag, args.headers, args.after, table)
            print(f"{args.tag}: class {c.name} ({', '.join(c.builds)})")
        elif args.command == "rebuild":
            write(rebuild(args.root, table), table=table)
        else:
            problems = check(args.root, table)
            print("\n".join(problems) or "up to date")
            return 1 if problems else 0
    except LlamaError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Draw and list the layers of the package from its imports and import-linter's contract.

    python tools/architecture.py            # write docs/images/layers.svg and the table in the page
    python tools/architecture.py --check    # status 1 if they are out of date

The layers are those of the first `layers` contract in pyproject.toml. The purpose of a package
is the first line of its docstring; its imports are read from the source, type-only ones left out.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PICTURE = ROOT / "docs" / "images" / "layers.svg"
BEGIN, END = "<!-- begin: tools/architecture.py -->\n", "<!-- end: tools/architecture.py -->\n"
PACKAGE = "llama_cffi"
# Packages that lie outside the folder of the package.
ELSEWHERE = {"cdefs": ROOT / "cdefs", "libs_fetch": ROOT / "libs_fetch"}

WIDTH, ROW, GAP, MARGIN = 960, 36, 10, 8


@dataclass(frozen=True)
class Part:
    """A package or module directly below `llama_cffi`.

    Attributes:
        name: Its name there.
        purpose: The first line of its docstring.
        imports: The other parts that it imports when it runs.
    """

    name: str
    purpose: str
    imports: tuple[str, ...]


def layers(pyproject: str) -> list[list[str]]:
    """Return the names of each layer of the contract, the highest layer first.

    Raises:
        ValueError: There is no layers contract.
    """
    linter = tomllib.loads(pyproject).get("tool", {}).get("importlinter", {})
    for contract in linter.get("contracts", []):
        if contract["type"] == "layers":
            rows = [re.findall(r"[\w.]+", layer) for layer in contract["layers"]]
            named = [[name.removeprefix(f"{PACKAGE}.") for name in row] for row in rows]
            # A layer in parentheses may not exist yet.
            there = [[name for name in row if files(name)[0].exists()] for row in named]
            return [row for row in there if row]
    raise ValueError("pyproject.toml has no [[tool.importlinter.contracts]] of type layers")


def files(name: str) -> list[Path]:
    """Return the Python files of a part, its own first."""
    folder = ELSEWHERE.get(name, ROOT / PACKAGE / name)
    if folder.is_dir():
        return [
            folder / "__init__.py",
            *sorted(set(folder.rglob("*.py")) - {folder / "__init__.py"}),
        ]
    return [folder.with_suffix(".py")]


def imported(name: str, path: Path) -> Iterator[str]:
    """Yield the parts that one file of the part *name* imports when it runs."""
    folder = ELSEWHERE.get(name, ROOT / PACKAGE / name)
    inner = path.relative_to(folder).parts if folder.is_dir() else ()
    module = [PACKAGE, name, *inner]
    yield from parts_in(ast.parse(path.read_text("utf-8")), module)


def parts_in(node: ast.AST, module: Sequence[str]) -> Iterator[str]:
    """Yield the parts imported below *node* of *module* (its path, the file name last)."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        names: list[str] = []
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            # A file is in the package of all but its last part; each further dot leaves one.
            base = [*module[: len(module) - child.level]] if child.level else []
            target = ".".join([*base, *([child.module] if child.module else [])])
            names = [f"{target}.{alias.name}" for alias in child.names]
        for full in names:
            package, _, rest = full.partition(".")
            if package == PACKAGE and rest:
                yield rest.split(".")[0]
        yield from parts_in(child, module)


def parts(rows: Sequence[Sequence[str]]) -> dict[str, Part]:
    """Describe every part that the contract names."""
    known = {name for row in rows for name in row}
    found = {}
    for name in known:
        paths = files(name)
        purpose = (ast.get_docstring(ast.parse(paths[0].read_text("utf-8"))) or "").split("\n")[0]
        imports = {other for path in paths for other in imported(name, path)} & known - {name}
        found[name] = Part(name, purpose, tuple(sorted(imports)))
    return found


def table(rows: Sequence[Sequence[str]], found: Mapping[str, Part]) -> str:
    """Return the Markdown table of the layers."""
    lines = ["| layer | | imports |", "|---|---|---|"]
    for row in rows:
        for name in row:
            part = found[name]
            imports = ", ".join(part.imports) or "nothing"
            purpose = part.purpose.replace("``", "`").replace("|", "\\|")
            lines.append(f"| `{name}` | {purpose} | {imports} |")
    return "\n".join(lines) + "\n"


def picture(rows: Sequence[Sequence[str]]) -> str:
    """Return the SVG: a row of boxes for each layer."""
    height = len(rows) * (ROW + GAP) - GAP + 2 * MARGIN
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'font-family="sans-serif" font-size="14" text-anchor="middle">',
        "<title>The layers of llama_cffi: each may import those below it</title>",
    ]
    for i, row in enumerate(rows):
        y = MARGIN + i * (ROW + GAP)
        share = (WIDTH - 2 * MARGIN + GAP) / len(row)
        for j, name in enumerate(row):
            x, width = MARGIN + j * share, share - GAP
            out += [
                f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{ROW}" rx="6" '
                'fill="#e0f2f1" stroke="#00796b"/>',
                f'<text x="{x + width / 2:.0f}" y="{y + ROW / 2 + 5:.0f}" fill="#00332e">'
                f"{escape(name)}</text>",
            ]
    return "\n".join([*out, "</svg>"]) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if out of date")
    check = parser.parse_args(argv).check
    rows = layers((ROOT / "pyproject.toml").read_text("utf-8"))
    found = parts(rows)
    page = PAGE.read_text("utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    made = {
        PAGE: before + BEGIN + table(rows, found) + END + after,
        PICTURE: picture(rows),
    }
    stale = [p for p, text in made.items() if not p.exists() or p.read_text("utf-8") != text]
    for path in stale:
        if check:
            print(f"{path.relative_to(ROOT)} is out of date: run python tools/architecture.py")
        else:
            path.write_text(made[path], encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())

"""Tables and drawings of the documentation against the code that they are about."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = ("llama_cffi", "libs_fetch", "cdefs")


def strings(tree: ast.Module) -> set[str]:
    """Return the string constants of a module, those of `__all__` left out."""
    body = [node for node in tree.body if "__all__" not in ast.unparse(node).split(" = ")[0]]
    return {
        node.value
        for statement in body
        for node in ast.walk(statement)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def variables_read() -> Iterator[str]:
    """Yield each LLAMA_CFFI_ variable that a module names, whole or by its end."""
    for folder in CODE:
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text("utf-8"))
            found = strings(tree)
            yield from (s for s in found if re.fullmatch(r"LLAMA_CFFI_[A-Z_]*[A-Z]", s))
            imported = {
                alias.name
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
            }
            if "environment" in imported:
                yield from (f"LLAMA_CFFI_{s}" for s in found if re.fullmatch(r"[A-Z][A-Z_]+", s))


def test_every_environment_variable_is_documented() -> None:
    page = (ROOT / "docs" / "environment.md").read_text("utf-8")
    documented = set(re.findall(r"^\| `(LLAMA_CFFI_[A-Z_]+)` \|", page, re.M))
    assert documented == {*variables_read(), "LLAMA_CFFI_TEST_CACHE"}


def test_the_drawing_of_the_layers_is_current() -> None:
    script = ROOT / "tools" / "architecture.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_files_that_the_architecture_names_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", page))
    assert len(named) > 20
    roots = [ROOT, ROOT / "llama_cffi"]
    assert {n for n in named if not any((root / n).exists() for root in roots)} == set()


def test_every_page_is_in_the_navigation() -> None:
    config = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert f": {page.name}\n" in config, page.name

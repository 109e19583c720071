"""Rules about imports that the layers in pyproject.toml (`nox -s lint`) cannot say."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = {
    "llama_cffi": "llama_cffi",
    "cdefs": "llama_cffi/cdefs",
    "libs_fetch": "llama_cffi/libs_fetch",
}


def modules() -> list[tuple[str, Path]]:
    """(dotted name, path) of every module of the package."""
    found = []
    for folder, package in ROOMS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT / folder).with_suffix("")
            found.append((".".join([package.replace("/", "."), *inner.parts]), path))
    return found


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def test_binding_imports_the_fetcher_in_one_function() -> None:
    places = []
    for name, path in modules():
        if room(name) == "binding":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for function in ast.walk(tree):
                if isinstance(function, ast.FunctionDef):
                    inside = ast.unparse(function)
                    if re.search(r"import libs_fetch|from .*libs_fetch import", inside):
                        places.append(f"{name}.{function.name}")
    assert places == ["llama_cffi.binding.loading.library._libs_fetch"]


def test_only_binding_knows_cffi() -> None:
    for name, path in modules():
        if room(name) in {"binding", "cdefs"}:
            continue
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import|from) _?cffi\b", text, re.M), name


def test_no_registry_host_and_no_machine_path_in_the_repository() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split() or [str(p.relative_to(ROOT)) for _, p in modules()]
    hosts = re.compile(r"\bnpmjs" + r"\.|//pypi" + r"\.|pythonhosted" + r"\.", re.I)
    machine = re.compile(r"(?<![\w.])/(work|far" + r"m)/\w")
    for name in names:
        path = ROOT / name
        if path.suffix in {".gguf", ".xz", ".png"} or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        assert not hosts.search(text), name
        assert not machine.search(text), name

"""The design's import rules, read from the source."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {
    "llama_cffi": "llama_cffi",
    "cdefs": "llama_cffi/cdefs",
    "libs_fetch": "llama_cffi/libs_fetch",
}

# Room -> the rooms it may import (errors is free for all).
ALLOWED = {
    "cdefs": set(),
    "libs_fetch": set(),
    "text": set(),
    "sampling": {"binding"},
    "typed": set(),
    "binding": {"cdefs", "gbnf", "libs_fetch", "__version__"},
    "gbnf": set(),
    "chains": {"binding", "sampling", "structured"},
    "context_policy": set(),
    "environment": set(),
    "interrupts": set(),
    "stats": set(),
    "turns": set(),
    "prefix": set(),
    "decoding": {"binding", "prefix"},
    "logprobs": set(),
    "answer": {"binding", "chains", "logprobs", "sampling", "stats", "text"},
    "generation": {
        "answer",
        "binding",
        "chains",
        "context_policy",
        "decoding",
        "interrupts",
        "stats",
    },
    "calls": {"answer", "binding", "context_policy", "environment", "sampling", "text"},
    "stages": {"environment"},
    "engine": {
        "answer",
        "binding",
        "calls",
        "chains",
        "decoding",
        "environment",
        "generation",
        "interrupts",
        "stages",
        "stats",
        "turns",
    },
    "chat": set(),
    "scheduler": {
        "answer",
        "binding",
        "calls",
        "chains",
        "context_policy",
        "decoding",
        "interrupts",
        "prefix",
        "sampling",
        "stats",
    },
    "structured": {"binding", "gbnf"},
    "growing": {"binding"},
    "embedding": {"binding", "growing"},
    "scores": {"binding", "decoding", "growing", "logprobs", "prefix"},
    "openai_types": set(),
    "config": set(),
    "background": {"interrupts"},
    "tool_grammar": {"chat", "structured"},
    "completion": {"binding", "sampling", "structured"},
    "thinking": {"binding", "chat", "text"},
    "chat_answer": {"chat", "completion"},
    "chat_completion": {
        "binding",
        "chat",
        "chat_answer",
        "completion",
        "context_policy",
        "structured",
        "thinking",
        "tool_grammar",
    },
    "llama": {
        "background",
        "binding",
        "calls",
        "chat_completion",
        "completion",
        "config",
        "context_policy",
        "embedding",
        "engine",
        "hub",
        "sampling",
        "scheduler",
        "session",
        "typed",
    },
    "pool": {"background", "config", "llama"},
    "ray": {"binding", "completion", "interrupts", "llama"},
    "session": {"binding"},
    "unified": {"binding", "config", "llama"},
    "llama_cpp": {
        "binding",
        "chains",
        "chat",
        "chat_completion",
        "completion",
        "config",
        "engine",
        "hub",
        "interrupts",
        "llama",
        "logprobs",
        "openai_types",
        "prefix",
        "stats",
        "structured",
    },
    "hub": set(),
    "errors": set(),
    "demo": set(),
}
TOP = {"cli", "doctor", "server", "notebook", "__main__", "__init__"}


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


def imports(name: str, path: Path) -> set[tuple[str, bool]]:
    """Names imported from the package, and whether only for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = name.split(".")[: -node.level] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            targets = [module]
            if module == "llama_cffi":
                targets = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {(t, id(node) in typing_only) for t in targets if t.startswith("llama_cffi")}
    return found


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda v: v if isinstance(v, str) else "")
def test_room_imports_only_what_the_design_allows(name: str, path: Path) -> None:
    own = room(name)
    if own in TOP:
        return
    assert own in ALLOWED, f"{own} is a new room: say in ALLOWED what it may import"
    for target, typing_only in imports(name, path):
        other = room(target)
        if other not in {own, "errors"} and not typing_only:
            assert other in ALLOWED[own], f"{name} imports {target}"


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
    assert places == ["llama_cffi.binding.library._libs_fetch"]


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

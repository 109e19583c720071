"""Tables and drawings of the documentation match the code."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from inspect import signature
from pathlib import Path

import llama_cffi
from llama_cffi import SamplingParams, UnifiedLLM
from llama_cffi.cli import generate
from llama_cffi.engine.preset import complete
from llama_cffi.generation.aliases import ALIASES
from llama_cffi.generation.options import GenerationOptions
from llama_cffi.variables import NAMES

ROOT = Path(__file__).parents[1]
CODE = ("llama_cffi", "libs_fetch", "cdefs")


def strings(tree: ast.Module) -> set[str]:
    """Return the string constants of a module, except those in `__all__`."""
    body = [node for node in tree.body if "__all__" not in ast.unparse(node).split(" = ")[0]]
    return {
        node.value
        for statement in body
        for node in ast.walk(statement)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def variables_read() -> Iterator[str]:
    """Yield each LLAMA_CFFI_ variable that a module names, in full or without the prefix."""
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


def test_the_list_of_known_variables_has_those_that_the_code_reads() -> None:
    assert {*variables_read()} == NAMES


def documented_options() -> dict[str, tuple[str, str, set[str]]]:
    """Return option -> (default, default of Engine, aliases) of the sampling table."""
    page = (ROOT / "docs" / "options.md").read_text("utf-8")
    page = page.split("## Sampling")[1].split("## Defaults")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) ?\| (.*?) ?\| (.*?) ?\|", page, re.M)
    return {
        name: (default.strip("`"), engine, set(re.findall(r"`(\w+)`", names)))
        for name, default, engine, names in rows
    }


def test_every_sampling_option_is_documented_with_its_default_and_names() -> None:
    documented = documented_options()
    fields = {f.name: f.default for f in dataclasses.fields(SamplingParams)}
    assert list(documented) == list(fields)
    for name, (default, _, names) in documented.items():
        assert names == {alias for alias, known in ALIASES.items() if known == name}, name
        value = fields[name]
        if isinstance(value, (int, float)):
            assert default == repr(value), name
        elif isinstance(value, str):
            assert default == value, name
        else:
            assert bool(default) == bool(value), name


def test_the_defaults_of_the_engine_are_documented() -> None:
    documented = {name: own for name, (_, own, _) in documented_options().items() if own}
    sampled = complete({}, "error", None)
    assert documented == {
        "temperature": str(sampled["temperature"]),
        "top_p": str(sampled["top_p"]),
        "repeat_penalty": f"{sampled['repeat_penalty']}; 1.0 when greedy",
    }
    assert complete({"temperature": 0}, "error", None)["repeat_penalty"] == 1.0


def test_every_other_option_of_a_generation_is_documented() -> None:
    page = (ROOT / "docs" / "options.md").read_text("utf-8").split("## Sampling")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| .*? ?\| (.*?) ?\|", page, re.M))
    own = GenerationOptions.__annotations__.keys() - SamplingParams.__dataclass_fields__.keys()
    assert rows.keys() == own | {"max_tokens"}
    for name, names in rows.items():
        known = {alias for alias, option in ALIASES.items() if option == name}
        assert set(re.findall(r"`(\w+)`", names)) == known, name


def documented_defaults() -> dict[str, tuple[str, str]]:
    """Return function -> (max_tokens, sampling) of the table of defaults by class."""
    page = (ROOT / "docs" / "options.md").read_text("utf-8").split("## Defaults by class")[1]
    return {
        name: (max_tokens, sampling)
        for name, max_tokens, sampling in re.findall(
            r"^\| `(.*?)` \| (.*?) \| (.*?) \|$", page, re.M
        )
    }


def cli_default(option: str) -> object:
    """Return the default of an option of `llama-cffi generate`."""
    parser = argparse.ArgumentParser()
    generate.add_parser(parser.add_subparsers())
    return getattr(parser.parse_args(["generate"]), option)


def test_max_tokens_of_every_class_is_documented() -> None:
    documented = {name: max_tokens for name, (max_tokens, _) in documented_defaults().items()}
    assert documented.pop("llama-cffi generate") == str(cli_default("max_tokens"))
    assert len(documented) == 7
    for name, max_tokens in documented.items():
        class_name, method = name.split(".")
        parameters = signature(getattr(getattr(llama_cffi, class_name), method)).parameters
        default = (
            str(parameters["max_tokens"].default) if "max_tokens" in parameters else "no limit"
        )
        assert max_tokens.removesuffix(", as OpenAI") == default, name


def test_sampling_of_every_class_is_documented() -> None:
    documented = {name: sampling for name, (_, sampling) in documented_defaults().items()}
    sampled, greedy = complete({}, "error", None), complete({"temperature": 0}, "error", None)
    assert documented["Engine.generate"] == (
        f"`temperature` {sampled['temperature']}, `top_p` {sampled['top_p']}, "
        f"`repeat_penalty` {sampled['repeat_penalty']} ({greedy['repeat_penalty']} when greedy)"
    )
    assert documented["llama-cffi generate"].startswith(
        f"`temperature` {cli_default('temperature'):g},"
    )
    for option in ("top_k", "top_p", "min_p", "repeat_penalty"):
        assert cli_default(option) is None, option  # the engine's

    asked: dict[str, object] = {}

    class Recorder:
        def create_chat_completion(self, messages: object, **options: object) -> Iterator[object]:
            asked.update(options)
            return iter(())

    unified = UnifiedLLM.__new__(UnifiedLLM)
    unified.llm = Recorder()  # type: ignore[assignment]
    assert list(unified.generate("Hello", stream=True)) == []
    assert documented["UnifiedLLM.generate"] == f'`sampling="{asked["sampling"]}"`'


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

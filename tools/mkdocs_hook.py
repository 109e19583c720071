"""MkDocs hook: the pages of the site that are made from the code and from the repository's root.

The reference has a page for each package with names in `llama_cffi.__all__`, so a new public name
is there without being listed; the build fails if one is missing.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING

import llama_cffi

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
# Public modules whose names are imported from themselves.
MODULES = ("llama_cffi.demo", "llama_cffi.ray", "llama_cffi.whisper")
COPIES = {
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
}


def public_names() -> dict[str, list[str]]:
    """Return the packages of `llama_cffi`, each with the dotted public names that live in it."""
    packages: dict[str, list[str]] = {}
    for name in sorted(llama_cffi.__all__, key=str.lower):
        home = getattr(getattr(llama_cffi, name), "__module__", "llama_cffi")
        package = ".".join(home.split(".")[:2])
        packages.setdefault(package, []).append(f"llama_cffi.{name}")
    for module in MODULES:
        names = importlib.import_module(module).__all__
        packages[module] = [f"{module}.{name}" for name in names]
    return dict(sorted(packages.items()))


def summary(dotted: str) -> str:
    """Return the first line of the docstring of a module or of something in one."""
    module, _, name = dotted.rpartition(".")
    try:
        value = importlib.import_module(dotted)
    except ImportError:
        value = getattr(importlib.import_module(module), name)
    text = "" if isinstance(value, str) else inspect.getdoc(value) or ""
    return text.split("\n\n")[0].replace("\n", " ")


def page_of(package: str) -> str:
    """Return the path of the reference page of *package*."""
    return f"reference/{package.rpartition('.')[2]}.md"


def reference() -> dict[str, str]:
    """Return the reference pages by path."""
    index = ["# Reference\n\nEvery public name. What is not here may change in any release.\n"]
    index.append("| name | |\n|---|---|")
    pages, lines = {}, []
    for package, names in public_names().items():
        page = page_of(package)
        body = "\n\n".join(f"::: {name}" for name in names)
        pages[page] = f"# {package}\n\n{summary(package)}\n\n{body}\n"
        for name in names:
            link = f"[`{name.removeprefix('llama_cffi.')}`]({page.partition('/')[2]}#{name})"
            lines.append((name.lower(), f"| {link} | {summary(name)} |"))
    index += [line for _, line in sorted(lines)]
    return {"reference/index.md": "\n".join(index) + "\n", **pages}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the reference pages into the navigation."""
    for entry in config.nav or []:
        if "Reference" in entry:
            entry["Reference"] = [{"All names": "reference/index.md"}]
            entry["Reference"] += [{p: page_of(p)} for p in public_names()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    made = reference() | {page: (ROOT / n).read_text("utf-8") for page, n in COPIES.items()}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a reference without one of the public names."""
    from mkdocs.exceptions import PluginError

    for package, names in public_names().items():
        page = Path(config.site_dir, page_of(package)).with_suffix("") / "index.html"
        html = page.read_text("utf-8")
        if missing := [name for name in names if f'id="{name}"' not in html]:
            raise PluginError(f"the reference lacks {', '.join(missing)}")

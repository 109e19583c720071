"""Run the notebooks of examples/ and write them, with their outputs, as pages of the documentation.

    python tools/notebooks.py            # write docs/notebooks/*.md and their pictures
    python tools/notebooks.py first      # only those whose names begin so

A page has the cells of its notebook; below each are its outputs, between two comments. A test
(tests/notebook/test_examples.py) runs the notebooks and compares cells and kinds of outputs with
the pages, but not the outputs, which have timings.
"""

from __future__ import annotations

import argparse
import base64
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

import llama_cffi
from llama_cffi.libs_fetch.store import cache_dir

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PAGES = ROOT / "docs" / "notebooks"
IMAGES = ROOT / "docs" / "images"
SOURCE = "https://github.com/llama-cffi/llama-cffi/blob/main/examples"
END = "<!-- end of output -->"
_OUTPUT = re.compile(rf"<!-- output: ([\w/+]+) -->\n.*?{END}\n", re.S)
_TIMEOUT_S = 300
# Of several forms of an output, the first of these.
_KINDS = ("image/png", "text/html", "text/plain")


def execute(path: Path) -> Any:
    """Return a notebook with its outputs.

    Raises:
        CellExecutionError: A cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=_TIMEOUT_S,
        startup_timeout=_TIMEOUT_S,
        kernel_name="python3",
        coalesce_streams=True,  # a print may come in any number of messages
    ).execute()
    return notebook


def page(name: str, notebook: Any, images: dict[str, bytes] | None = None) -> str:
    """Return a notebook as Markdown.

    Args:
        name: The name of the notebook.
        notebook: The notebook.
        images: Receives the pictures by the names of their files.
    """
    pictures = {} if images is None else images
    parts = [f"<!-- Written by tools/notebooks.py from examples/{name}.ipynb. -->\n"]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(f"{cell.source}\n")
            continue
        parts.append(f"```python\n{cell.source}\n```\n")
        parts += _outputs(name, cell.outputs, pictures)
    parts.append(f"[This notebook]({SOURCE}/{name}.ipynb) is in the repository.\n")
    return "\n".join(parts)


def skeleton(text: str) -> str:
    """Return a page without the contents of its outputs."""
    return _OUTPUT.sub(r"<!-- output: \1 -->\n", text)


def _outputs(name: str, outputs: list[Any], images: dict[str, bytes]) -> Iterator[str]:
    """Yield the outputs of a cell."""
    for output in outputs:
        if output.output_type == "stream":
            kind, text = "text/plain", output.text
        else:
            kind = next(kind for kind in _KINDS if kind in output.data)
            text = output.data[kind]
        if kind == "image/png":
            file = f"{name}-{len(images) + 1}.png"
            images[file] = base64.b64decode(text)
            shown = f"![](../images/{file})"
        elif kind == "text/html":
            shown = f'<div class="notebook-output">{_elsewhere(text)}</div>'
        else:
            shown = f"```text\n{_elsewhere(text).rstrip()}\n```"
        yield f"<!-- output: {kind} -->\n\n{shown}\n\n{END}\n"


def _elsewhere(text: str) -> str:
    """Return a text with the folders of this machine replaced."""
    package = Path(llama_cffi.__file__).parent
    for folder, instead in (
        (package, "site-packages/llama_cffi"),
        (cache_dir(), "~/.cache/llama_cffi"),
        (Path.home(), "~"),
    ):
        text = text.replace(str(folder), instead)
    return text


def main() -> int:
    """Write the pages; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("begin", nargs="?", default="", help="only notebooks that begin so")
    wanted = parser.parse_args().begin
    PAGES.mkdir(exist_ok=True)
    for path in sorted(EXAMPLES.glob(f"{wanted}*.ipynb")):
        images: dict[str, bytes] = {}
        (PAGES / f"{path.stem}.md").write_text(page(path.stem, execute(path), images), "utf-8")
        for file in IMAGES.glob(f"{path.stem}-*.png"):
            file.unlink()
        for file, data in images.items():
            (IMAGES / file).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())

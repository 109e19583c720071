"""The notebooks of examples/ run, and their pages in the documentation are current."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.fixture(scope="module")
def tool() -> Any:
    """The script that writes the pages."""
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "tools" / "notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_page_is_current(tool: Any, path: Path) -> None:
    notebook = tool.execute(path)  # an error in a cell raises
    kinds = [kind for cell in notebook.cells for kind in kinds_of(cell)]
    assert "text/html" in kinds
    assert "stderr" not in kinds
    page = (ROOT / "docs" / "notebooks" / f"{path.stem}.md").read_text("utf-8")
    advice = f"run tools/notebooks.py {path.stem}"
    assert tool.skeleton(page) == tool.skeleton(tool.page(path.stem, notebook)), advice


def kinds_of(cell: Any) -> list[str]:
    """Return the kind of each output of a cell: MIME types, or the name of a stream."""
    found = []
    for output in cell.get("outputs", ()):
        found += [output.name] if output.output_type == "stream" else [*output.data]
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert not cell.get("execution_count")


def test_every_notebook_and_its_pictures_are_in_the_documentation() -> None:
    config = (ROOT / "mkdocs.yml").read_text("utf-8")
    for path in NOTEBOOKS:
        assert f": notebooks/{path.stem}.md\n" in config
    pages = sorted((ROOT / "docs" / "notebooks").glob("*.md"))
    assert [page.stem for page in pages] == [path.stem for path in NOTEBOOKS]
    text = "".join(page.read_text("utf-8") for page in pages)
    for path in NOTEBOOKS:
        for image in (ROOT / "docs" / "images").glob(f"{path.stem}-*.png"):
            assert f"../images/{image.name})" in text

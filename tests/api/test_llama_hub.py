"""Llama.from_pretrained with the real client and a test server with the hub's API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import pytest
from support import tiny_gguf
from support.hub_server import Hub
from support.tiny_gguf import write_tiny

CODE = """
import json, sys
from llama_cffi import Llama, LlamaError
arguments, options = json.loads(sys.argv[1])
try:
    with Llama.from_pretrained(*arguments, n_ctx=64, n_threads=1, **options) as llm:
        text = llm.generate("ab", 4, temperature=0)
        print(json.dumps({"path": llm.model_path, "n_params": llm.model.n_params, "text": text}))
except LlamaError as error:
    print(json.dumps({"type": type(error).__name__, "message": str(error)}))
"""


class Loader:
    """Runs `from_pretrained` in a new process, because the client reads its settings on import."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self.hub, self.home = hub, home
        self.stderr = ""

    def __call__(self, *arguments: str, env: dict[str, str] | None = None, **options: Any) -> Any:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        clean |= {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.home)}
        clean |= {"NO_PROXY": "127.0.0.1,localhost", **(env or {})}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", CODE, json.dumps([arguments, options])],
            env=clean, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        self.stderr = done.stderr
        return json.loads(done.stdout)  # stdout has nothing else


@pytest.fixture
def load(hub: Hub, tmp_path: Path) -> Loader:
    return Loader(hub, tmp_path / "hf")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return one model in one file, and another in three parts."""
    folder = tmp_path_factory.mktemp("repository")
    write_tiny(folder / "m-Q4_K_M.gguf", n_layer=1)
    with pytest.MonkeyPatch.context() as patch:
        writer = partial(gguf.GGUFWriter, split_max_tensors=9)
        patch.setattr(tiny_gguf.gguf, "GGUFWriter", writer)
        write_tiny(folder / "m-Q8_0.gguf", n_layer=2)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(found)[1:] == [f"m-Q8_0-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    return {"README.md": b"hello", **found}


def test_file_quantization_and_split_models(
    hub: Hub, load: Loader, files: dict[str, bytes]
) -> None:
    hub.repos["owner/repo"] = {"main": files}
    one = load("owner/repo")
    assert load("owner/repo", "m-Q4_K_M.gguf") == {**one, "path": one["path"] + ":m-Q4_K_M.gguf"}
    assert load("owner/repo", "Q4_K_M")["text"] == one["text"]
    split = load("owner/repo", "Q8_0")
    assert split["n_params"] > one["n_params"]
    assert load("owner/repo", "m-Q8_0-00002-of-00003.gguf")["text"] == split["text"]
    # Cached files are not fetched again and need no hub.
    assert sum("cdn" in line for line in hub.asked) == 4
    hub.asked.clear()
    assert load("owner/repo", "Q8_0", env={"HF_HUB_OFFLINE": "1"}) == split
    assert not hub.asked


def test_revision(hub: Hub, load: Loader, files: dict[str, bytes]) -> None:
    one = {"m-Q4_K_M.gguf": files["m-Q4_K_M.gguf"]}
    split = {name: data for name, data in files.items() if "Q8_0" in name}
    hub.repos["owner/repo"] = {"main": one, "old": split}
    assert load("owner/repo@old")["n_params"] > load("owner/repo")["n_params"]


def test_progress_bar_in_terminals(hub: Hub, load: Loader, files: dict[str, bytes]) -> None:
    hub.repos["owner/repo"] = {"main": files}
    load("owner/repo")
    # A pipe gets a line per file.
    assert load.stderr == "fetching m-Q4_K_M.gguf of owner/repo from the Hugging Face hub\n"
    terminal = {"TQDM_POSITION": "-1"}  # the hub's client treats stderr as a terminal then
    load("owner/repo", "Q8_0", env=terminal)
    assert "100%" in load.stderr
    load("owner/repo", "Q8_0", env=terminal)
    assert load.stderr == ""
    hub.repos["owner/other"] = {"main": files}
    load("owner/other", env={**terminal, "HF_HUB_DISABLE_PROGRESS_BARS": "1"})
    assert load.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("owner/none",), "FetchError", "owner/none"),
        (("owner/repo", "Q2_K"), "ValidationError", "no GGUF with Q2_K"),
        (("owner/repo", "n.gguf"), "ValidationError", r"m-Q4_K_M.gguf"),
        (("owner/repo@never",), "ValidationError", "no revision 'never'"),
        (("owner",), "ValidationError", "hf:OWNER/REPO"),
        (("owner/closed",), "FetchError", "HF_TOKEN"),
        (("owner/broken",), "ModelLoadError", "m-Q4_K_M.gguf"),
    ],
)
def test_errors(
    hub: Hub, load: Loader, files: dict[str, bytes], arguments: Any, error: str, message: str
) -> None:
    hub.repos["owner/repo"] = hub.repos["owner/closed"] = {"main": files}
    hub.repos["owner/broken"] = {"main": {"m-Q4_K_M.gguf": files["m-Q4_K_M.gguf"][:5000]}}
    hub.gated.add("owner/closed")
    answer = load(*arguments)
    assert answer["type"] == error, answer
    assert message in answer["message"]

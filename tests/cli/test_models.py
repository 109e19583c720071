"""`llama-cffi models`: the real client against a server with the hub's shapes, and a folder."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.command_line import Runner, cli, error_of, text_of
from support.hub_server import Hub

from llama_cffi import demo


class Machine:
    """Runs the command with a cache of its own."""

    def __init__(self, hub: Hub, cache: Path) -> None:
        self.hub, self.cache = hub, cache

    def __call__(self, *args: object, **env: str) -> subprocess.CompletedProcess[bytes]:
        variables = {
            "HF_ENDPOINT": self.hub.url,
            "HF_HUB_CACHE": str(self.cache),
            "HF_HUB_DISABLE_XET": "1",
            "no_proxy": "127.0.0.1,localhost",
            **env,
        }
        return cli("models", *args, **variables)

    def json(self, *args: object) -> Any:
        return json.loads(text_of(self(*args, "--json")))


@pytest.fixture
def machine(hub: Hub, tmp_path: Path) -> Machine:
    data = demo.model_path().read_bytes()
    hub.repos["owner/repo"] = {"main": {"a-Q4_0.gguf": data, "a-Q8_0.gguf": data[:-1] + b"x"}}
    return Machine(hub, tmp_path / "cache")


def test_from_nothing_to_two_models_and_back(machine: Machine, tmp_path: Path) -> None:
    size = demo.model_path().stat().st_size
    assert text_of(machine("list")).startswith("No models here yet")
    pulled = machine("pull", "hf:owner/repo:q4_0")
    path = Path(text_of(pulled).strip())
    assert path.read_bytes() == demo.model_path().read_bytes()
    assert "fetching a-Q4_0.gguf of owner/repo" in pulled.stderr.decode()
    again = machine.json("pull", "hf:owner/repo:Q8_0")
    assert again["size_bytes"] == size
    table = text_of(machine("list")).splitlines()
    assert [row.split()[0] for row in table] == [
        "NAME", "hf:owner/repo:a-Q4_0.gguf", "hf:owner/repo:a-Q8_0.gguf",
    ]  # fmt: skip
    assert machine.json("du")["size_bytes"] == 2 * size
    blobs = machine.cache / "models--owner--repo" / "blobs"
    (blobs / "x.incomplete").write_bytes(b"12345")
    assert machine.json("du")["incomplete_bytes"] == 5
    shown = machine.json("show", "hf:owner/repo:Q4_0")
    assert (shown["name"], shown["architecture"]) == ("hf:owner/repo:Q4_0", "llama")

    planned = machine.json("rm", "hf:owner/repo:Q4_0", "--dry-run")
    assert (planned["freed_bytes"], planned["dry_run"]) == (size, True)
    assert path.exists()
    text = text_of(machine("rm", "hf:owner/repo:Q4_0"))
    assert text.startswith(f"removed {path}\n")
    assert not path.exists()
    assert [m["name"] for m in machine.json("list")["models"]] == ["hf:owner/repo:a-Q8_0.gguf"]
    assert machine.json("du")["size_bytes"] == size
    text_of(machine("rm", "hf:owner/repo"))
    assert machine.json("list") == {"models": []}
    assert [p for p in blobs.iterdir() if not p.name.endswith(".incomplete")] == []


def test_the_projector_of_a_model_is_pulled_when_asked(machine: Machine, tmp_path: Path) -> None:
    repo = machine.hub.repos["owner/repo"]
    files = repo["0123456789abcdef" * 2 + "01234567"] = repo["main"]  # the name of its snapshot
    folder = tmp_path / "mine"
    for more in ([], ["--dir", folder]):
        args = ("pull", "hf:owner/repo:Q4_0", "--mmproj", *more)
        files.pop("mmproj-F16.gguf", None)
        assert "owner/repo has no projector for it" in error_of_last(machine(*args))
        files["mmproj-F16.gguf"] = b"GGUF projector"
        model, projector = map(Path, text_of(machine(*args)).splitlines())
        assert (model.name, projector.name) == ("a-Q4_0.gguf", "mmproj-F16.gguf")
        assert projector.read_bytes() == b"GGUF projector"
        assert projector.parent == model.parent
        assert machine.json(*args)["mmproj"] == str(projector)


def error_of_last(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return the message of a command that failed after it told what it fetches."""
    assert (done.returncode, done.stdout) == (1, b"")
    return done.stderr.decode().splitlines()[-1]


def test_a_folder_of_ones_own_is_listed_pulled_to_and_cleared(
    machine: Machine, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    path = Path(machine.json("pull", "hf:owner/repo:Q4_0", "--dir", folder)["file"])
    assert path.parent == folder
    for i in (1, 2):
        (folder / f"b-0000{i}-of-00002.gguf").write_bytes(b"12345")
    (folder / "mmproj-b.gguf").write_bytes(b"1")
    found = machine.json("list", "--dir", folder, "--sort", "size")["models"]
    assert [Path(m["name"]).name for m in found] == ["a-Q4_0.gguf", "b-00001-of-00002.gguf"]
    assert found[1]["size_bytes"] == 10
    removed = machine.json("rm", "b-00001-of-00002.gguf", "--dir", folder)
    assert removed["freed_bytes"] == 10
    assert sorted(p.name for p in folder.glob("*.gguf")) == ["a-Q4_0.gguf", "mmproj-b.gguf"]


def test_a_download_to_a_folder_goes_on_where_it_ended(machine: Machine, tmp_path: Path) -> None:
    data = demo.model_path().read_bytes()
    partial = tmp_path / f".a-Q4_0.gguf.{hashlib.sha256(data).hexdigest()[:12]}.part"
    partial.write_bytes(data[:1_500_000])
    path = Path(text_of(machine("pull", "hf:owner/repo:Q4_0", "--dir", tmp_path)).strip())
    assert path.read_bytes() == data
    assert machine.hub.sent == len(data) - 1_500_000
    assert not partial.exists()
    text_of(machine("pull", "hf:owner/repo:Q4_0", "--dir", tmp_path))  # it is there
    assert machine.hub.sent == len(data) - 1_500_000
    path.unlink()
    partial.write_bytes(bytes(1000))
    done = machine("pull", "hf:owner/repo:Q4_0", "--dir", tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"its SHA-256 is not the hub's" in done.stderr
    assert not partial.exists()
    assert not path.exists()


def test_a_download_that_failed_is_one_sentence_and_can_be_tried_again(machine: Machine) -> None:
    assert error_of(machine("pull", "hf:owner/none")).startswith("the hub has no repository")
    machine.hub.status = 503
    message = error_of(machine("pull", "hf:owner/repo:Q4_0"))
    assert "answered 503" in message
    machine.hub.status = 0
    assert text_of(machine("pull", "hf:owner/repo:Q4_0"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["pull", "owner/repo"], "write hf:OWNER/REPO"),
        (["pull", "hf:owner"], "is not a model on the hub"),
        (["show", "hf:owner/none"], "`llama-cffi models pull hf:owner/none` fetches it"),
        (["rm", "hf:owner/none"], "`llama-cffi models list` lists them"),
        (["rm", "nowhere.gguf"], "no model file at nowhere.gguf"),
        (["list", "--dir", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_wrong_input_is_one_sentence(
    args: list[str],
    message: str,
    run: Runner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert message in run.error("models", *args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "arguments are required: COMMAND"),
        (["lst"], "did you mean list?"),
        (["rm"], "arguments are required: MODEL"),
        (["list", "--sort", "age"], "invalid choice: 'age'"),
    ],
)
def test_wrong_arguments_are_usage_errors(args: list[str], message: str, run: Runner) -> None:
    assert message in run.usage("models", *args)

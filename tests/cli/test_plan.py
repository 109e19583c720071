"""`llama-cffi plan`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.command_line import cli, error_of, json_of
from support.hub_server import Hub
from support.sparse_gguf import write_sparse
from support.tiny_gguf import write_tiny

from llama_cffi.cli import main
from llama_cffi.memory_plan import planner
from llama_cffi.system_memory import SystemMemory


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model."""
    return write_sparse(tmp_path_factory.mktemp("models") / "model.gguf")


def test_a_table_or_json(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-m", str(path), "-c", "1024", "-np", "2", "-ctk", "q8_0"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "n_ctx 1,024 (trained for 32,768), n_parallel 2" in out
    assert "It fits, and leaves" in out
    assert main(["plan", "-m", str(path), "-c", "auto", "-fa", "off", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["n_ctx"] == 32768
    assert data["settings"]["flash_attn"] is False
    assert data["devices"][0]["kv_bytes"] == 32768 * 6 * 512 * 2 * 2


def test_the_exit_code_says_whether_it_fits(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ram = SystemMemory(2**26, 2**26, "cgroup", 0)
    monkeypatch.setattr(planner, "system_memory", lambda: ram)
    assert main(["plan", "-m", str(path)]) == 1
    assert "does not fit: it lacks" in capsys.readouterr().out


def test_wrong_options_are_usage_errors_or_failures(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as usage:
        main(["plan", "-c", "much"])
    assert usage.value.code == 2
    assert "must be an integer or auto, got 'much'" in capsys.readouterr().err
    assert main(["plan", "-m", str(path), "-ctk", "q9"]) == 1
    assert "type_k='q9' is not one of" in capsys.readouterr().err
    assert main(["plan", "-m", str(path.with_name("none.gguf")), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "ModelLoadError"


def test_of_a_file_on_the_hub_only_the_header_is_read(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    big = write_tiny(tmp_path / "big.gguf", n_embd=512)
    hub.repos["owner/repo"] = {"main": {"big-Q8_0.gguf": big.read_bytes(), "README.md": b""}}
    variables = {"HF_ENDPOINT": hub.url, "no_proxy": "127.0.0.1,localhost"}
    remote = json_of(cli("plan", "-m", "hf:owner/repo:q8_0", "-c", "64", "--json", **variables))
    assert hub.sent == 2**20 < big.stat().st_size
    assert main(["plan", "-m", str(big), "-c", "64", "--json"]) == 0
    local = json.loads(capsys.readouterr().out)
    assert not remote["exact"]
    assert "hub" in " ".join(remote["notes"])
    for part in ("weights_bytes", "kv_bytes"):
        assert remote["devices"][0][part] == local["devices"][0][part]
    hub.ranges = False
    done = cli("plan", "-m", "hf:owner/repo:q8_0", **variables)
    assert "does not send parts of files" in error_of(done)

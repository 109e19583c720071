"""`llama-cffi inspect`: files here, and headers on the hub by ranges."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from support.command_line import Runner, cli, error_of, json_of
from support.hub_server import Hub
from support.split_gguf import write_split
from support.tiny_gguf import CHATML, write_tiny
from support.tiny_projectors import write_projector

from llama_cffi import demo, read_gguf
from llama_cffi.errors import ModelLoadError
from llama_cffi.gguf.remote import read_remote_header


def test_the_overview_has_the_facts(run: Runner, tiny_model: Path) -> None:
    text = run.text("inspect", tiny_model)
    facts = dict(line.split(None, 1) for line in text.splitlines())
    assert facts["architecture"] == "llama"
    assert facts["context"] == "256"
    assert facts["tokenizer"] == "gpt2 (qwen2), 259 tokens"
    assert "eos 258 '<|im_end|>'" in text
    assert "32.00 bits per weight" in facts["parameters"]
    assert run.text("inspect", "-m", tiny_model) == text
    assert "file" in run.text("inspect")  # the demo model


def test_json_has_what_the_reader_finds(run: Runner, tiny_model: Path) -> None:
    found = run.json("inspect", tiny_model)
    file = read_gguf(tiny_model)
    assert found["version"] == file.version
    assert found["size_bytes"] == tiny_model.stat().st_size
    assert [
        (t["name"], tuple(t["shape"]), t["type"], t["size_bytes"]) for t in found["tensors"]
    ] == [(t.name, t.shape, t.type_name, t.size_bytes) for t in file.tensors]
    assert found["metadata"].keys() == file.metadata.keys()
    assert found["metadata"]["tokenizer.ggml.tokens"] == {"array": "str", "count": 259}
    assert found["chat_template"] == CHATML
    assert found["tokenizer"]["special"]["bos"] == {"id": 256, "text": "<|endoftext|>"}


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("janus_pro", {"pictures": "janus_pro, 16 x 16 pixels in patches of 4, 16 tokens for a "
                                   "picture", "projector": "of pictures"}),
        ("gemma3", {"pictures": "gemma3, 16 x 16 pixels in patches of 4, 4 tokens for a picture"}),
        ("idefics3", {"pictures": "idefics3, 16 x 16 pixels in patches of 4, 4 tokens for each "
                                  "tile of a picture"}),
        ("both", {"projector": "of pictures and sounds",
                  "pictures": "qwen2vl_merger, of any size, a token for 8 x 8 pixels",
                  "sounds": "qwen2a, 80 mel bins, 750 tokens for each 30 s",
                  "for": "models      with embeddings of 64 numbers"}),
    ],
)  # fmt: skip
def test_what_a_projector_is(kind: str, lines: dict[str, str], run: Runner, tmp_path: Path) -> None:
    text = run.text("inspect", write_projector(tmp_path / "mmproj.gguf", kind))
    facts = dict(line.split(None, 1) for line in text.splitlines())
    assert {name: facts[name] for name in lines} == lines
    assert "chat" not in facts


def test_single_values_are_printed_alone(run: Runner, tiny_model: Path) -> None:
    def value(key: str) -> str:
        return run.text("inspect", tiny_model, "--key", key)

    assert value("general.architecture") == "llama\n"
    assert value("llama.block_count") == "2\n"
    assert len(json.loads(value("tokenizer.ggml.tokens"))) == 259
    assert value("tokenizer.chat_template") == CHATML + "\n"
    assert run.text("inspect", tiny_model, "--template") == CHATML + "\n"
    key = "llama.context_length"
    assert run.json("inspect", tiny_model, "--key", key) == {key: 256}


def test_tables_have_a_line_for_each_entry(run: Runner, tiny_model: Path) -> None:
    file = read_gguf(tiny_model)
    tensors = run.text("inspect", tiny_model, "--tensors").splitlines()[1:]
    assert [line.split()[0] for line in tensors] == [t.name for t in file.tensors]
    keys = run.text("inspect", tiny_model, "--metadata").splitlines()[1:]
    assert {line.split()[0] for line in keys} == file.metadata.keys()


def test_wrong_input_is_one_sentence(run: Runner, tiny_model: Path, tmp_path: Path) -> None:
    def error(*args: object) -> str:
        return run.error("inspect", *args)

    assert "did you mean llama.block_count?" in error(tiny_model, "--key", "llama.blok_count")
    assert "--metadata lists the keys" in error(tiny_model, "--key", "zzz")
    assert "no model file at" in error(tmp_path / "no.gguf")
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(tiny_model.read_bytes()[:3000])
    assert "is truncated or corrupt" in error(bad)
    bad.write_bytes(b"PK")
    assert "is not a GGUF file" in error(bad)
    no_template = write_tiny(tmp_path / "plain.gguf", chat_template=None)
    assert "has no tokenizer.chat_template" in error(no_template, "--template")
    assert "give the model once" in run.usage("inspect", tiny_model, "-m", tiny_model)
    assert "not allowed with" in run.usage("inspect", tiny_model, "--tensors", "--metadata")


def test_control_characters_of_a_file_do_not_reach_the_screen(run: Runner, tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "evil.gguf", name="a\x1b[2J\nb")
    for args in ([], ["--metadata"]):
        assert "\x1b" not in run.text("inspect", model, *args)


# --- on the hub --------------------------------------------------------------------------------


def inspect(hub: Hub, spec: str, *args: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    variables = {"HF_ENDPOINT": hub.url, "no_proxy": "127.0.0.1,localhost", **env}
    return cli("inspect", spec, *args, **variables)


def test_only_the_header_of_a_file_on_the_hub_is_read(
    hub: Hub, tmp_path: Path, run: Runner
) -> None:
    model = write_tiny(tmp_path / "big.gguf", n_embd=512)
    data = model.read_bytes()
    assert len(data) > 3 * 2**20
    hub.repos["owner/repo"] = {"main": {"big-Q8_0.gguf": data, "README.md": b""}}
    remote = json_of(inspect(hub, "hf:owner/repo:q8_0", "--json", HF_TOKEN="hf_secret"))
    local = run.json("inspect", model)
    assert hub.sent == 2**20
    assert hub.tokens == []  # the files are on another host
    assert {**remote, "file": ""} == {**local, "file": ""}
    assert remote["file"] == "hf:owner/repo:q8_0 (big-Q8_0.gguf)"


def test_parts_on_the_hub_count_together(hub: Hub, tmp_path: Path, tiny_model: Path) -> None:
    parts = write_split(tmp_path, 2)
    hub.repos["owner/repo"] = {"main": {part.name: part.read_bytes() for part in parts}}
    found = json_of(inspect(hub, "hf:owner/repo", "--json"))
    assert found["n_files"] == 2
    assert len(found["tensors"]) == len(read_gguf(tiny_model).tensors)


def test_errors_of_the_hub_are_one_sentence(hub: Hub, tiny_model: Path) -> None:
    hub.repos["owner/repo"] = {"main": {"a-Q8_0.gguf": tiny_model.read_bytes()}}
    assert "has no repository owner/none" in error_of(inspect(hub, "hf:owner/none"))
    assert "no GGUF with Q4_0" in error_of(inspect(hub, "hf:owner/repo:Q4_0"))
    offline = error_of(inspect(hub, "hf:owner/repo", LLAMA_CFFI_OFFLINE="1"))
    assert "LLAMA_CFFI_OFFLINE is set" in offline
    hub.ranges = False
    assert "does not send parts of files (status 200" in error_of(inspect(hub, "hf:owner/repo"))


@pytest.mark.parametrize("start", [64, 1000, 4096, 2**20])
def test_a_header_is_complete_wherever_its_parts_end(
    start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_cffi.gguf.remote.FIRST_BYTES", start)
    data = demo.model_path().read_bytes()
    found = read_remote_header("demo.gguf", len(data), lambda a, b: data[a:b])
    assert found.summary.tensors == read_gguf(demo.model_path()).tensors


def test_a_remote_file_that_is_no_model_is_refused() -> None:
    def read(data: bytes, size: int = 0) -> None:
        read_remote_header("x.gguf", size or len(data), lambda a, b: data[a:b])

    with pytest.raises(ModelLoadError, match="is not a GGUF file"):
        read(b"<svg>" * 20)
    with pytest.raises(ModelLoadError, match="is truncated"):
        read(demo.model_path().read_bytes()[:2000])

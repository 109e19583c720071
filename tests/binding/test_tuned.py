"""The file of the settings that `tune` keeps: whatever is in it, nothing breaks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.children import Child
from support.tiny_gguf import write_tiny

from llama_cffi import ValidationError, get_library
from llama_cffi.binding import Model, tuned
from llama_cffi.binding.tuned import TunedSettings, head_size, keep, kept
from llama_cffi.gguf.header_check import check_gguf
from llama_cffi.libs_fetch import machine


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache" / "tuned.json"
    monkeypatch.setattr(tuned, "tuned_file", lambda: path)
    return path


SETTINGS = TunedSettings("haswell", 3, 4, False, 256)


def test_settings_come_back_for_the_same_shape_build_and_processor(
    file: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, gguf = get_library().build, model.gguf
    assert kept(build, gguf, offloads=False) == TunedSettings()
    keep(build, gguf, SETTINGS, {"ratio": 0.5}, offloads=False)
    same_shape = check_gguf(write_tiny(tmp_path / "same.gguf", seed=5))
    assert kept(build, gguf, offloads=False) == kept(build, same_shape, offloads=False) == SETTINGS
    deeper = check_gguf(write_tiny(tmp_path / "deeper.gguf", n_layer=3))
    others = [
        kept(build, deeper, offloads=False),
        kept(build, gguf, offloads=True),
        kept(replace(build, version="0"), gguf, offloads=False),
    ]
    monkeypatch.setattr(tuned, "usable_cpus", lambda: 999)
    others.append(kept(build, gguf, offloads=False))
    monkeypatch.undo()
    monkeypatch.setattr(tuned, "tuned_file", lambda: file)
    monkeypatch.setattr(tuned, "cpu_identity", lambda: "Another CPU")
    others.append(kept(build, gguf, offloads=False))
    assert others == [TunedSettings()] * 5


def test_defaults_replace_what_was_kept_and_other_models_stay(
    file: Path, model: Model, tmp_path: Path
) -> None:
    build = get_library().build
    deeper = check_gguf(write_tiny(tmp_path / "deeper.gguf", n_layer=3))
    for gguf in (model.gguf, deeper):
        keep(build, gguf, SETTINGS, {}, offloads=False)
    keep(build, model.gguf, TunedSettings(), {}, offloads=False)
    assert not kept(build, model.gguf, offloads=False)
    assert kept(build, deeper, offloads=False) == SETTINGS
    assert len(json.loads(file.read_text())["models"]) == 1
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"1", b"\xff", b'{"version": 2, "models": {}}',
        b'{"version": 1}', b'{"version": 1, "models": []}', b'{"version": 1, "models": 3}',
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_counts_as_empty(
    content: bytes, file: Path, model: Model
) -> None:
    build = get_library().build
    file.parent.mkdir()
    file.write_bytes(content)
    assert not kept(build, model.gguf, offloads=False)
    keep(build, model.gguf, SETTINGS, {}, offloads=False)
    assert kept(build, model.gguf, offloads=False) == SETTINGS


@pytest.mark.parametrize(
    "settings",
    [
        None, 3, [], {"n_threads": 0}, {"n_threads": "2"}, {"n_threads": 513}, {"n_ubatch": -1},
        {"flash_attn": 2}, {"cpu_variant": 1}, {"n_thread": 1}, {"n_ubatch": 1e9},
    ],
)  # fmt: skip
def test_an_entry_that_cannot_be_settings_is_not_used(
    settings: object, file: Path, model: Model
) -> None:
    build = get_library().build
    keep(build, model.gguf, SETTINGS, {}, offloads=False)
    data = json.loads(file.read_text())
    (key,) = data["models"]
    for entry in (settings, {"settings": settings}):
        data["models"][key] = entry
        file.write_text(json.dumps(data))
        assert not kept(build, model.gguf, offloads=False)


def test_a_folder_that_cannot_be_written_is_named(file: Path, model: Model) -> None:
    file.parent.write_text("a file")
    with pytest.raises(ValidationError, match="LLAMA_CFFI_CACHE names another folder"):
        keep(get_library().build, model.gguf, SETTINGS, {}, offloads=False)


@pytest.mark.parametrize(("text", "on"), [("", True), ("1", True), ("OFF", False), ("0", False)])
def test_a_variable_switches_them_off(text: str, on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CFFI_TUNED", text)
    assert tuned.is_on() is on
    monkeypatch.setenv("LLAMA_CFFI_TUNED", "perhaps")
    with pytest.raises(ValidationError, match="LLAMA_CFFI_TUNED='perhaps' must be 1 or 0"):
        tuned.is_on()


def test_the_size_of_a_head_is_the_smaller_one(tmp_path: Path) -> None:
    gguf = check_gguf(write_tiny(tmp_path / "m.gguf"))
    assert head_size(gguf) == 32
    more = {**gguf.values, "llama.attention.value_length": 16}
    assert head_size(replace(gguf, values=more)) == 16
    assert head_size(replace(gguf, values={"general.architecture": "llama"})) == 0


def test_the_identity_of_a_cpu_tells_its_features() -> None:
    assert machine.cpu_identity().startswith(machine._cpu_name())
    assert machine.cpu_identity() == machine.cpu_identity()


def test_the_first_model_of_a_process_decides_about_the_cpu_variant(
    child: Child, tiny_model: Path, tmp_path: Path, shared_cache: Path
) -> None:
    (tmp_path / "builds").symlink_to(shared_cache / "builds")
    code = """
        import sys
        from llama_cffi.binding import Context, Model
        from llama_cffi.binding.tuned import TunedSettings, keep
        from llama_cffi.gguf.header_check import check_gguf
        from llama_cffi.libs_fetch import ensure
        from pathlib import Path
        build, gguf = ensure(), check_gguf(Path(sys.argv[1]))
        variants = [name for name in build.cpu_variants if name in ("sse42", "x64")]
        name = variants[0] if variants else None
        keep(build, gguf, TunedSettings(cpu_variant=name, n_ubatch=8), {}, offloads=False)
        with Model(sys.argv[1]) as model, Context(model, n_ctx=64, n_threads=1) as context:
            wanted = name or ""
            print(model.library.cpu_variant == wanted, context.n_ubatch)
    """
    cache = {"LLAMA_CFFI_CACHE": str(tmp_path), "LLAMA_CFFI_CPU_VARIANT": ""}
    assert child(code, tiny_model, **cache).stdout == "True 8\n"
    off = child(code, tiny_model, **cache, LLAMA_CFFI_TUNED="0").stdout
    assert off.split()[1] == "64"

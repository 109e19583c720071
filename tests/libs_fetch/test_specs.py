from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_cffi.errors import ValidationError
from llama_cffi.libs_fetch.specs import Spec, parse


@pytest.mark.parametrize(
    ("text", "source", "version"),
    [
        ("npm:3.22.1", "npm", "3.22.1"),
        ("npm:latest", "npm", "latest"),
        (" github:b11549 ", "github", "b11549"),
        ("github:latest", "github", "latest"),
        ("b8179", "any", "b8179"),
        ("v0.5.0", "any", "v0.5.0"),
        ("latest", "any", "latest"),
        ("default", "any", "default"),
        ("path:/opt/llama", "path", "/opt/llama"),
        ("/opt/llama", "path", "/opt/llama"),
        ("./build/bin", "path", "./build/bin"),
        (r"C:\llama\llama.dll", "path", r"C:\llama\llama.dll"),
        ("libllama.so", "path", "libllama.so"),
        ("libllama.so.0.0.1", "path", "libllama.so.0.0.1"),
    ],
)
def test_known_forms(text: str, source: str, version: str) -> None:
    assert parse(text) == Spec(source, version)


@pytest.mark.parametrize(
    "text",
    ["", "npm", "npm:", "npm:../x", "npm:.", "github:a/b", "3.22.1", "path:", "b", "hello", "v1"],
)
def test_anything_else_is_refused_with_the_known_forms(text: str) -> None:
    with pytest.raises(ValidationError, match=r"npm:3\.22\.1.*path:FOLDER"):
        parse(text)


@pytest.mark.parametrize(("text", "meant"), [("3.22.1", "npm:3.22.1"), ("latst", "latest")])
def test_the_nearest_form_is_suggested(text: str, meant: str) -> None:
    with pytest.raises(ValidationError, match=f"; did you mean {meant}\\?"):
        parse(text)


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    assert parse("path:~/llama").version == "/home/me/llama"


@given(st.text(max_size=40))
def test_a_version_is_always_one_plain_path_component(text: str) -> None:
    try:
        spec = parse(text)
    except ValidationError:
        return
    if spec.source != "path":
        assert spec.version not in ("", ".", "..")
        assert not set(spec.version) & set("/\\\0: ")
        assert parse(str(spec)) == spec


@given(st.sampled_from(["npm", "github"]), st.text(max_size=20))
def test_sources_take_only_safe_versions(source: str, version: str) -> None:
    try:
        spec = parse(f"{source}:{version}")
    except ValidationError:
        return
    assert (spec.source, spec.version) == (source, version.strip())
    assert spec.version[0].isascii()
    assert spec.version[0].isalnum()

"""The real registry that npm is configured for on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llama_cffi.libs_fetch import available, ensure, exported_symbols, fetch, headers, pins, verify

pytestmark = pytest.mark.network
HOME = os.environ.get("HOME", "")
ENVIRONMENT = {k: v for k, v in os.environ.items() if k.lower().startswith("npm_config_")}
ENVIRONMENT |= {k: v for k, v in os.environ.items() if k.lower().endswith("_proxy")}


@pytest.fixture(autouse=True)
def as_configured(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the real home and environment, which the `cache` fixture replaces."""
    monkeypatch.setenv("HOME", HOME)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    if registry := os.environ.get("LLAMA_CFFI_TEST_NPM_REGISTRY"):
        monkeypatch.setenv("LLAMA_CFFI_NPM_REGISTRY", registry)


def test_the_default_build_is_fetched_verified_and_found_again() -> None:
    build = ensure(backend="cpu", progress=False)
    assert (build.source, build.version) == pins.default_versions()[0]
    assert build.tag == pins.tag_of(build.version)
    assert verify(build) == []
    assert {"llama_decode", "llama_model_default_params"} <= exported_symbols(build.library)
    assert ensure(offline=True).library == build.library
    assert ensure(build.tag, backend="cpu", offline=True) == build


def test_the_oldest_build_and_its_headers() -> None:
    build = fetch("npm:3.1.1", backend="cpu", progress=False)
    assert build.tag == "b3889"
    text = (headers(build, progress=False) / "llama.h").read_text()
    assert "llama_load_model_from_file" in text
    declared = exported_symbols(build.library)
    assert "llama_load_model_from_file" in declared


def test_every_tag_in_the_table_is_on_the_registry() -> None:
    versions = [spec.version for spec in available("npm")]
    assert len(versions) >= 33
    assert set(pins.table()["tags"]) <= set(versions)

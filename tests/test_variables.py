"""Misspelt environment variables are told, with the nearest name."""

from __future__ import annotations

import pytest
from support.children import Child

from llama_cffi import variables
from llama_cffi.doctor import system
from llama_cffi.libs_fetch.machine import detect


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("LLAMA_CFFI_BUILDS", "did you mean LLAMA_CFFI_BUILD?"),
        ("LLAMA_CFFI_APIKEY", "did you mean LLAMA_CFFI_API_KEY?"),
        ("LLAMA_CFFI_NTHREADS", "did you mean LLAMA_CFFI_N_THREADS?"),
        ("LLAMA_CFFI_XYZZY", "see docs/environment.md"),
        ("LLAMA_CFFI_", "see docs/environment.md"),
    ],
)
def test_a_misspelt_variable_is_told_with_the_nearest_name(
    name: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "secret-value")
    message = variables.unknown_variables()[name]
    assert message == f"the environment variable {name} has no effect; {advice}"


def test_known_variables_and_those_of_tests_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    before = variables.unknown_variables()
    for name in [*variables.NAMES, "LLAMA_CFFI_TEST_CACHE"]:
        monkeypatch.setenv(name, "1")
    assert variables.unknown_variables() == before


def test_loading_the_library_warns_once(child: Child) -> None:
    code = """
        import llama_cffi
        llama_cffi.get_library()
        llama_cffi.get_library()
    """
    done = child(code, LLAMA_CFFI_BUILDS="npm:1.0.0")
    assert done.returncode == 0
    assert done.stderr.count("did you mean LLAMA_CFFI_BUILD?") == 1
    assert "npm:1.0.0" not in done.stderr


def test_doctor_tells_it_and_shows_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CFFI_APIKEY", "canary-1")
    monkeypatch.setenv("LLAMA_CFFI_API_KEY", "canary-2")
    (found,) = [check for check in system.system_checks(detect()) if check.name == "settings"]
    assert found.status == "warn"
    assert "did you mean LLAMA_CFFI_API_KEY?" in found.advice
    assert "canary" not in str(found)

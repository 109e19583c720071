from __future__ import annotations

import pytest

from llama_cffi.engine import environment
from llama_cffi.errors import ValidationError


def test_argument_overrides_variable_overrides_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.number("SAFETY", None, 16) == 16
    monkeypatch.setenv("POLARIS_SAFETY", "3")
    assert environment.number("SAFETY", None, 16) == 3
    monkeypatch.setenv("LLAMA_CFFI_SAFETY", " 4 ")
    assert environment.number("SAFETY", None, 16) == 4
    assert environment.number("SAFETY", 5, 16) == 5
    monkeypatch.setenv("LLAMA_CFFI_SAFETY", "")
    assert environment.number("SAFETY", None, 16) == 3


@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ("on", True), ("YES", True), ("0", False), ("off", False)]
)
def test_flag(monkeypatch: pytest.MonkeyPatch, value: str, expected: bool) -> None:
    monkeypatch.setenv("POLARIS_RESET_KV", value)
    assert environment.flag("RESET_KV", None, not expected) is expected
    assert environment.flag("RESET_KV", not expected, expected) is (not expected)


def test_errors_name_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLARIS_SAFETY", "many")
    with pytest.raises(ValidationError, match="POLARIS_SAFETY='many'"):
        environment.number("SAFETY", None, 16)
    monkeypatch.setenv("LLAMA_CFFI_BATCH", "0")
    with pytest.raises(ValidationError, match=r"LLAMA_CFFI_BATCH=0 is outside 1\.\."):
        environment.number("BATCH", None, 16, 1)
    monkeypatch.setenv("LLAMA_CFFI_SPECIAL", "perhaps")
    with pytest.raises(ValidationError, match="LLAMA_CFFI_SPECIAL='perhaps'"):
        environment.flag("SPECIAL", None, False)

"""The verdict, over every class of the table: pure, no library loaded."""

from __future__ import annotations

import re

import pytest

from llama_cffi import cdefs
from llama_cffi.binding.loading import abi
from llama_cffi.binding.loading.probe import BOOTSTRAP
from llama_cffi.errors import AbiMismatchError

CLASSES = cdefs.all_classes()
STRUCTS = (
    "llama_model_params",
    "llama_context_params",
    "llama_model_quantize_params",
    "ggml_backend_dev_props",
)


def measured(
    c: cdefs.AbiClass, tag: str | None = None, *, padding: bool = False
) -> abi.Measurement:
    """Measurements of a perfect build: all functions but the optional, all fields."""
    written = {}
    for name in STRUCTS:
        layout = c.layouts[name]
        body = b"\x01" * layout.size if padding else layout.written
        written[name] = body.ljust(512, b"\0")
    sizes = {"ggml_tensor": c.layouts["ggml_tensor"].size}
    return abi.Measurement(c.functions - c.optional, written, tag, sizes=sizes)


@pytest.mark.parametrize("c", CLASSES, ids=lambda c: c.name)
@pytest.mark.parametrize("padding", [False, True])
def test_a_known_build_is_exact(c: cdefs.AbiClass, padding: bool) -> None:
    for tag in c.builds:
        identity = abi.identify(measured(c, tag, padding=padding), CLASSES)
        assert (identity.verdict, identity.name) == ("exact", c.name)


@pytest.mark.parametrize("c", CLASSES, ids=lambda c: c.name)
def test_a_build_without_a_tag_is_compatible_with_a_class_of_equal_measurements(
    c: cdefs.AbiClass,
) -> None:
    identity = abi.identify(measured(c), CLASSES)
    assert identity.verdict == "compatible"
    assert identity.abi_class is not None
    for name in STRUCTS:
        assert identity.abi_class.layouts[name].size == c.layouts[name].size
    assert identity.abi_class.functions - identity.abi_class.optional <= c.functions


def test_forcing_another_class_is_refused_for_every_build() -> None:
    tried = 0
    for c in CLASSES:
        for other in CLASSES:
            if other is not c:
                tried += 1
                with pytest.raises(AbiMismatchError, match=f"LLAMA_CFFI_ABI={other.name} does not"):
                    abi.identify(measured(c, c.builds[0]), CLASSES, forced=other.name)
    assert tried == len(CLASSES) * (len(CLASSES) - 1)


def test_the_right_class_may_be_forced() -> None:
    c = CLASSES[-1]
    identity = abi.identify(measured(c), CLASSES, forced=c.name)
    assert identity.forced
    assert identity.name == c.name


def test_an_unknown_forced_class_names_the_known_ones() -> None:
    with pytest.raises(AbiMismatchError, match=r"not a known ABI class; known: b3889, .*b11549"):
        abi.identify(measured(CLASSES[0]), CLASSES, forced="b1")


def test_a_wrong_tag_never_overrides_the_measurement() -> None:
    old, new = CLASSES[0], CLASSES[-1]
    identity = abi.identify(measured(new, old.builds[0]), CLASSES)
    assert (identity.verdict, identity.name) == ("compatible", new.name)


def test_a_new_function_in_a_future_build_is_compatible_and_reported() -> None:
    now = measured(CLASSES[-1], "b99999")
    future = abi.Measurement(now.exports | {"llama_from_the_future"}, now.written, now.tag)
    identity = abi.identify(future, CLASSES)
    assert (identity.verdict, identity.name) == ("compatible", CLASSES[-1].name)
    assert identity.new_functions == ("llama_from_the_future",)
    assert "llama_from_the_future" in str(identity)


def test_a_grown_struct_is_refused_with_numbers_and_advice() -> None:
    c = CLASSES[-1]
    now = measured(c, "b99999")
    grown = {**now.written, "llama_context_params": b"\x01" * 176 + bytes(336)}
    with pytest.raises(AbiMismatchError) as caught:
        abi.identify(abi.Measurement(now.exports, grown, now.tag), CLASSES)
    message = str(caught.value)
    assert "llama_context_params 176 bytes" in message
    assert f"{c.layouts['llama_context_params'].size} declared" in message
    assert "LLAMA_CFFI_ABI=user" in message


def test_a_field_moved_inside_the_same_size_is_refused() -> None:
    c = cdefs.abi_class("b8121")
    now = measured(c)
    body = bytearray(now.written["llama_model_quantize_params"])
    hole = bytes(c.layouts["llama_model_quantize_params"].written).index(0)
    body[hole] = 1  # a field where this class has padding, and not all of the padding
    written = {**now.written, "llama_model_quantize_params": bytes(body)}
    assert not abi.match_class(c, abi.Measurement(now.exports, written)).fits


def test_a_build_with_longer_tensor_names_is_refused() -> None:
    """stable-diffusion.cpp builds ggml with GGML_MAX_NAME=128."""
    now = measured(CLASSES[-1], CLASSES[-1].builds[0])
    longer = abi.Measurement(now.exports, now.written, now.tag, sizes={"ggml_tensor": 400})
    with pytest.raises(AbiMismatchError, match="ggml_tensor: 400 bytes measured, 336 declared"):
        abi.identify(longer, CLASSES)


def test_a_missing_function_is_refused() -> None:
    c = CLASSES[-1]
    now = measured(c, c.builds[0])
    fewer = abi.Measurement(now.exports - {"llama_decode"}, now.written, now.tag)
    with pytest.raises(AbiMismatchError, match=r"1 functions missing \(llama_decode\)"):
        abi.identify(fewer, CLASSES)


def test_user_declarations_must_fit_the_build() -> None:
    right, wrong = CLASSES[-1], CLASSES[0]
    assert abi.identify_user(measured(right), right).verdict == "user"
    with pytest.raises(AbiMismatchError, match="headers do not belong to this build"):
        abi.identify_user(measured(right), wrong)


def test_evidence_is_plain_data() -> None:
    identity = abi.identify(measured(CLASSES[-1], CLASSES[-1].builds[0]), CLASSES)
    data = identity.as_dict()
    assert data["verdict"] == "exact"
    assert data["struct_bytes"]["llama_context_params"] == 168  # type: ignore[index]
    assert data["classes_compared"] == len(CLASSES)


def test_bootstrap_functions_have_one_type_in_every_class() -> None:
    """Functions called before the verdict have the same types in all classes."""
    called = set(re.findall(r"(\w+)\(", BOOTSTRAP)) - {"void", "callback"}
    seen: dict[str, set[str]] = {}
    for name in cdefs.class_names():
        text = cdefs.declarations(name)
        for function in called:
            for line in re.findall(rf"^.*\b{function}\(.*;$", text, re.M):
                # `enum x` passes as int, `struct y *` as a pointer: spelled the same way here.
                seen.setdefault(function, set()).add(line)
    assert {f: lines for f, lines in seen.items() if len(lines) != 1} == {}
    assert len(seen) >= 9

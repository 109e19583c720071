"""Public signatures have types that say something: no Any, no untyped options."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

import llama_cffi
from llama_cffi.api.config import LlamaConfig, LlamaOptions
from llama_cffi.binding.context.params import ContextOptions, ContextParams
from llama_cffi.generation.sampling_params import SamplingOptions, SamplingParams

_ANY = re.compile(r"\bAny\b")


def public_callables() -> Iterator[tuple[str, Any]]:
    """(dotted name, function) of everything that a user can call, through `__all__`."""
    for name in llama_cffi.__all__:
        value = getattr(llama_cffi, name)
        if inspect.isclass(value):
            for attribute, member in vars(value).items():
                if attribute.startswith("_") and attribute not in ("__init__", "__call__"):
                    continue
                member = getattr(member, "__func__", member)
                if isinstance(member, property):
                    member = member.fget
                if inspect.isfunction(member) and member.__module__.startswith("llama_cffi"):
                    yield f"{name}.{attribute}", member
        elif inspect.isfunction(value):
            yield name, value


CALLABLES = dict(public_callables())


@pytest.mark.parametrize("name", CALLABLES)
def test_no_any_in_a_public_signature(name: str) -> None:
    function = CALLABLES[name]
    for argument, annotation in function.__annotations__.items():
        assert not _ANY.search(str(annotation)), f"{name}: {argument}: {annotation}"
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name != "self" and parameter.name != "cls":
            assert parameter.annotation is not inspect.Parameter.empty, (name, parameter.name)


@pytest.mark.parametrize(
    ("options", "declared", "own"),
    [
        (SamplingOptions, SamplingParams, set()),
        (LlamaOptions, LlamaConfig, {"model_path"}),
        (ContextOptions, ContextParams, set()),
    ],
)
def test_options_are_declared_once(options: Any, declared: Any, own: set[str]) -> None:
    """The typed options of a call are the fields of the dataclass, with the same types."""
    fields = {f.name: str(f.type) for f in dataclasses.fields(declared) if f.name not in own}
    assert options.__annotations__.keys() == fields.keys()
    for name, annotation in options.__annotations__.items():
        given = set(getattr(annotation, "__forward_arg__", str(annotation)).split(" | "))
        assert given - {"None"} == set(fields[name].split(" | ")) - {"None"}, name

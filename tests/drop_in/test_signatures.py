"""The drop-in's signatures: llama-cpp-python's order and defaults, typed, and options once."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from llama_cffi import ChatCompletionOptions, CompletionOptions, LlamaOptions, SamplingParams
from llama_cffi.api.llama import Llama as NativeLlama
from llama_cffi.generation.aliases import ALIASES
from llama_cffi.llama_cpp import Llama, LlamaGrammar, llama, llama_cache, options
from llama_cffi.llama_cpp import llama_chat_format as chat_format
from llama_cffi.llama_cpp import llama_tokenizer as tokenizers

# llama-cpp-python 0.3.36; programs pass these by position.
ORDER = {
    "create_completion": (
        "prompt suffix max_tokens temperature top_p min_p typical_p logprobs echo stop "
        "frequency_penalty presence_penalty repeat_penalty top_k stream seed tfs_z mirostat_mode "
        "mirostat_tau mirostat_eta model stopping_criteria logits_processor grammar logit_bias"
    ),
    "create_chat_completion": (
        "messages functions function_call tools tool_choice temperature top_p top_k min_p "
        "typical_p stream stop seed response_format max_tokens presence_penalty frequency_penalty "
        "repeat_penalty tfs_z mirostat_mode mirostat_tau mirostat_eta model logits_processor "
        "grammar logit_bias logprobs top_logprobs"
    ),
    "sample": (
        "top_k top_p min_p typical_p temp repeat_penalty frequency_penalty presence_penalty tfs_z "
        "mirostat_mode mirostat_eta mirostat_tau penalize_nl logits_processor grammar idx"
    ),
    "_generate": (
        "tokens top_k top_p min_p typical_p temp repeat_penalty reset frequency_penalty "
        "presence_penalty tfs_z mirostat_mode mirostat_tau mirostat_eta penalize_nl "
        "logits_processor stopping_criteria grammar"
    ),
}
# Where llama-cpp-python differs from `SamplingParams`.
DEFAULTS = {"create_chat_completion": {"temperature": 0.2}}
ANY = {
    "from_pretrained options",
    "create_chat_completion_openai_v1 args",
    "create_chat_completion_openai_v1 options",
    "__call__ kwargs",  # a formatter's
    "generate args",  # typed by overloads
    "generate options",
}
SAMPLING = {field.name: field.default for field in dataclasses.fields(SamplingParams)}


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    found = inspect.signature(function).parameters
    return {name: p for name, p in found.items() if name != "self" and p.kind != p.VAR_KEYWORD}


@pytest.mark.parametrize("name", ORDER)
def test_order_and_defaults(name: str) -> None:
    found = parameters(getattr(Llama, name))
    assert " ".join(found) == ORDER[name]
    compared = 0
    for given, parameter in found.items():
        option = ALIASES.get(given, given)
        if option in SAMPLING and isinstance(parameter.default, (int, float)):
            assert parameter.default == DEFAULTS.get(name, {}).get(option, SAMPLING[option]), given
            compared += 1
    assert compared >= 11


@pytest.mark.parametrize(
    ("function", "more", "native"),
    [
        (Llama.create_completion, options.MoreCompletionOptions, CompletionOptions),
        (Llama.create_chat_completion, options.MoreChatCompletionOptions, ChatCompletionOptions),
    ],
)
def test_every_option_of_llama_cffi_is_an_option_once(
    function: Any, more: Any, native: Any
) -> None:
    own, rest = set(parameters(function)), more.__annotations__
    assert not own & set(rest)
    assert set(rest) == set(native.__annotations__) - own
    for name, annotation in rest.items():
        expected = native.__annotations__[name]
        assert annotation.__forward_arg__ == expected.__forward_arg__, name


def test_every_field_of_the_configuration_is_an_argument_once() -> None:
    own, rest = set(parameters(Llama)), set(options.MoreLlamaOptions.__annotations__)
    assert not own & rest
    ignored = {*options.OldLlamaOptions.__annotations__, "device"}
    assert rest - ignored == set(LlamaOptions.__annotations__) - own
    for name in rest - ignored:
        given = options.MoreLlamaOptions.__annotations__[name].__forward_arg__
        assert given == LlamaOptions.__annotations__[name].__forward_arg__, name


def test_everything_that_llama_cffi_has_is_there() -> None:
    public = {name for name in dir(NativeLlama) if not name.startswith("_")}
    assert public <= set(dir(Llama))
    assert {"parse", "create_chat_completion_async", "kv_cache_seq_rm", "embedder"} <= public
    assert Llama.__mro__ == (Llama, object)


def test_the_overload_of_a_whole_answer_has_the_arguments_of_its_function() -> None:
    tree = ast.parse(Path(llama.__file__).read_text(encoding="utf-8"))
    first: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            first.setdefault(node.name, [argument.arg for argument in node.args.args])
    assert "_generate" in first
    for name, function in (("create_completion", Llama.create_completion),
                           ("create_chat_completion", Llama.create_chat_completion),
                           ("generate", Llama._generate)):  # fmt: skip
        assert first[name] == ["self", *parameters(function)]


@pytest.mark.parametrize(
    "owner",
    [
        Llama, LlamaGrammar, llama_cache.LlamaRAMCache, llama_cache.LlamaDiskCache,
        chat_format.Jinja2ChatFormatter, chat_format.LlamaChatCompletionHandlerRegistry,
        tokenizers.LlamaTokenizer, tokenizers.LlamaHFTokenizer,
    ],
)  # fmt: skip
def test_any_only_where_llama_cpp_python_has_it(owner: type) -> None:
    for name, member in vars(owner).items():
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        function = getattr(member, "fget", None) or getattr(member, "__func__", member)
        if inspect.isfunction(function):
            for argument, annotation in function.__annotations__.items():
                allowed = f"{name} {argument}" in ANY
                assert allowed or not re.search(r"\bAny\b", str(annotation)), (name, argument)

"""Wrong arguments for every method of Llama and UnifiedLLM, in a process that may crash.

Usage: llama_machine.py MODEL. Prints how many calls were made; what must not happen is raised.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_cffi import Llama, LlamaConfig, LlamaError, UnifiedLLM
from llama_cffi.api.chat_completions import ChatCompletionOptions
from llama_cffi.api.llama import CompletionOptions
from llama_cffi.generation.options import GenerationOptions


class Odd:
    """A value of no valid type."""

    def __repr__(self) -> str:
        return "<odd>"


# No str is a file name, and no number makes a call run for minutes.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([-(2**63), -(2**31), 2**31, 2**63, 2**70]),
    st.floats(),
    st.text(max_size=3),
    st.just("\ud800"),
    st.binary(max_size=3),
    st.builds(Odd),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=2) | st.integers(0, 9), inner, max_size=2)
    ),
    max_leaves=4,
)
UNTRIED = {"n", "best_of", "progress"}  # 2**31 answers and a progress bar are valid
# The types that `SamplingParams` and the engine document.
ALIASES = {"max_completion_tokens": "max_tokens", "structured": "grammar"}


def arguments(function: Callable[..., Any], *more: str) -> list[str]:
    """Return the names of the parameters of a function."""
    names = inspect.signature(function).parameters
    own = [n for n in names if n not in ("self", "options", "args", "kwargs")]
    return [*dict.fromkeys((*own, *more))]


def main(path: str) -> None:
    """Call every method with every value."""
    llm = Llama(path, n_ctx=256, n_threads=1, embeddings=True)
    unified = UnifiedLLM(path, n_ctx=256, n_threads=1)
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    text: dict[str, Any] = {"prompt": "hi", "max_tokens": 2}
    config = [field.name for field in dataclasses.fields(LlamaConfig)]
    calls: list[tuple[Callable[..., Any], dict[str, Any], list[str]]] = [
        (llm.generate, text, arguments(Llama.generate, *GenerationOptions.__annotations__)),
        (
            llm.create_completion,
            text,
            arguments(Llama.create_completion, *CompletionOptions.__annotations__),
        ),
        (
            llm.create_chat_completion,
            chat,
            arguments(Llama.create_chat_completion, *ChatCompletionOptions.__annotations__),
        ),
        (unified.generate, text, arguments(UnifiedLLM.generate, "temperature", "thinking")),
        (llm.parse, {"prompt": "hi", "type_": int, "max_tokens": 4}, ["prompt", "type_"]),
        (llm.tokenize, {"text": "a"}, arguments(Llama.tokenize)),
        (llm.detokenize, {"tokens": [1]}, arguments(Llama.detokenize)),
        (llm.n_tokens, {"text": "a"}, arguments(Llama.n_tokens)),
        (llm.embed, {"text": "a"}, arguments(Llama.embed, "truncate")),
        (llm.create_embedding, {"input": "a"}, arguments(Llama.create_embedding)),
        (llm.set_state, {}, ["state"]),
        (llm.load_state, {}, ["state"]),
        (llm.kv_cache_seq_rm, {}, arguments(Llama.kv_cache_seq_rm)),
        (
            llm.kv_cache_seq_cp,
            {"seq_id_src": 0, "seq_id_dst": 0},
            arguments(Llama.kv_cache_seq_cp),
        ),
        (llm.token_to_piece, {"token": 1}, ["token"]),
        (llm.get_chat_template, {}, ["name"]),
        (
            unified.generate_with_thinking,
            text,
            arguments(UnifiedLLM.generate_with_thinking, "temperature", "thinking"),
        ),
        (unified.strip_thinking, {"text": "a"}, ["text"]),
        (unified.set_reasoning_level, {"level": None}, ["level"]),
        (llm.kv_cache_seq_keep, {}, arguments(Llama.kv_cache_seq_keep)),
        (
            llm.kv_cache_seq_add,
            {"seq_id": 0, "p0": 0, "p1": 1, "delta": 0},
            arguments(Llama.kv_cache_seq_add),
        ),
        (llm.kv_cache_seq_pos_max, {}, arguments(Llama.kv_cache_seq_pos_max)),
        (llm.load_lora, {"path": "x"}, ["path"]),
        (llm.remove_lora, {"path": "x"}, arguments(Llama.remove_lora)),
        (Llama.from_pretrained, {"repo_id": "a"}, ["repo_id", "filename"]),
        (
            lambda **options: Llama(**options).close(),
            {"model_path": path, "n_ctx": 64, "n_threads": 1},
            ["config", "sampling", *config],
        ),
    ]
    pairs = [(call, valid, name) for call, valid, names in calls for name in names]
    pairs = [pair for pair in pairs if pair[2] not in UNTRIED]
    made = 0
    unnamed: list[str] = []

    def try_one(call: Callable[..., Any], valid: dict[str, Any], name: str, value: Any) -> None:
        nonlocal made
        made += 1
        said = ""
        try:
            result = call(**{**valid, name: value})
            if isinstance(result, Iterator):
                list(result)
        except (FileNotFoundError, IsADirectoryError):
            pass  # a name of a file
        except (LlamaError, TypeError, ValueError) as error:
            said = str(error)
        names = (name, ALIASES.get(name, name), "<odd>", "Odd;")
        if isinstance(value, Odd) and said and not any(n in said for n in names):
            unnamed.append(f"{name}={value!r} of {call}: {said}")

    for call, valid, name in pairs:
        try_one(call, valid, name, Odd())
    assert not unnamed, "\n".join(unnamed)

    @settings(
        max_examples=600, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.sampled_from(pairs), VALUES)
    def anything(pair: Any, value: Any) -> None:
        try_one(*pair, value)

    anything()
    assert llm.create_chat_completion(chat["messages"], temperature=0)["choices"]
    print(made)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(sys.argv[1])

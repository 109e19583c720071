"""Public objects tell what they are, refuse to be copied with advice, and hide internals."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llama_cffi
from llama_cffi import (
    Batch,
    Candidates,
    ChatRenderer,
    Constraint,
    Context,
    Embedder,
    Engine,
    InferenceEngine,
    Llama,
    LlamaGrammar,
    LlamaPool,
    Model,
    ResponseCache,
    SamplerChain,
    Scorer,
    UnifiedLLM,
    get_library,
)
from llama_cffi.llama_cpp import Llama as DropIn

# The size or state that the repr has besides the model's name.
FACTS = {
    "Engine": "n_ctx=256, 0 tokens cached",
    "InferenceEngine": "n_parallel=2 n_ctx=256: 0 running, 0 waiting",
    "Llama": "n_ctx=256",
    "LlamaPool": "n_parallel=4",
    "UnifiedLLM": "family=",
    "Embedder": "pooling=mean n_tokens_max=256",
    "Scorer": "n_ctx=256",
    "Model": "llama, 0.5 MB",
    "Vocab": "tokens, bpe",
    "Context": "n_ctx=256",
    "Memory": "n_ctx=256",
    "ChatRenderer": "family=",
    "ResponseCache": "0 of 128 answers",
}
NAMELESS = {
    "Batch": "<Batch 1 of 4 tokens>",
    "SamplerChain": "<SamplerChain temp>",
    "Candidates": "<Candidates of ",
    "Constraint": "<Constraint open>",
    "Scheduler": "<Scheduler 0 of 2 running, 0 waiting>",
    "KVCache": "<KVCache 2 sequences",
    "Library": "abi=",
    "RequestHandle": "<RequestHandle of <Request",
}


@pytest.fixture(scope="module")
def objects(tiny_model: Path) -> Iterator[dict[str, Any]]:
    model = Model(tiny_model)
    engine = InferenceEngine(model, 2, 256, n_threads=1)
    context, llm, batch = (
        Context(model, n_ctx=256, n_threads=1),
        Llama(model, n_threads=1),
        Batch(4),
    )
    batch.add(1, 0)
    chain = SamplerChain(model)
    chain.add_temp(0.5)
    made: list[Any] = [
        model, model.vocab, context, context.memory, batch, chain, engine, engine.scheduler,
        engine.cache, llm, Engine(model, n_threads=1), LlamaPool(model, n_threads=1),
        UnifiedLLM(model, n_threads=1), Embedder(model, pooling="mean", n_threads=1),
        Scorer(model, n_threads=1), ChatRenderer(model), ResponseCache(llm), Candidates(model),
        Constraint(model, LlamaGrammar.from_choices(["a", "b"])), get_library(),
        engine.submit("a", 1),
    ]  # fmt: skip
    made[-1].result()
    yield {type(made).__name__: made for made in made}
    model.close()


@pytest.mark.parametrize("name", [*FACTS, *NAMELESS])
def test_repr_tells_model_size_and_state(objects: dict[str, Any], name: str) -> None:
    shown = repr(objects[name])
    assert (FACTS | NAMELESS)[name] in shown
    assert name in shown
    assert ("tiny.gguf" in shown) == (name in FACTS)


@pytest.mark.parametrize("face", [Engine, InferenceEngine, Llama, LlamaPool, UnifiedLLM, DropIn,
                                  Embedder, Scorer, Model])  # fmt: skip
def test_repr_of_a_closed_object_says_so(face: Any, tiny_model: Path) -> None:
    options = {} if face is Model else {"n_threads": 1}
    made = face(str(tiny_model), **options)
    assert "closed" not in repr(made)
    made.close()
    assert "tiny.gguf" in repr(made)
    assert "closed" in repr(made)


@pytest.mark.parametrize("copier", [pickle.dumps, copy.copy, copy.deepcopy])
def test_what_belongs_to_a_model_is_not_copied_and_says_what_to_do(
    objects: dict[str, Any], copier: Any
) -> None:
    for made in objects.values():
        with pytest.raises(TypeError, match=r"cannot be pickled or copied.*; \w+"):
            copier([made] if copier is copy.deepcopy else made)


def test_tab_completion_shows_public_names_only(objects: dict[str, Any]) -> None:
    assert dir(llama_cffi) == sorted(llama_cffi.__all__)
    shown = {name for name in dir(objects["RequestHandle"]) if not name.startswith("_")}
    assert shown == {
        "cancel", "done", "future", "listens", "output", "params", "request", "result", "stats",
        "steps", "steps_async", "text",
    }  # fmt: skip

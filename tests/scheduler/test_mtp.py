"""MtpHead: drafts with the model's own head, on tiny GLM-4.5 models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builds import MIDDLE, OLD
from support.children import Child
from support.odd_models import write_nextn
from support.rounding import EXACT
from support.tiny_gguf import write_tiny

from llama_cffi import (
    Batch,
    Context,
    InferenceEngine,
    Llama,
    Model,
    ModelLoadError,
    MtpHead,
    PromptLookup,
    ValidationError,
)

PROMPTS = [[65 + i + j for j in range(3 + 9 * i)] for i in range(8)]
N = 40
CONFIG: dict[str, Any] = {"n_ctx": 256, "n_threads": 1, "n_batch": 32, **EXACT}


class Recorder(MtpHead):
    """Records the last token of each request and the drafted one."""

    def __init__(self) -> None:
        super().__init__(n_threads=1)
        self.seen: list[tuple[int, int]] = []

    def draft(self, requests: Sequence[Any], lengths: Sequence[int]) -> list[list[int]]:
        drafts = super().draft(requests, lengths)
        for request, draft in zip(requests, drafts, strict=True):
            self.seen += [(request.tokens[-1], token) for token in draft]
        return drafts


def answers(path: Path, draft: Any, **options: Any) -> tuple[list[list[int]], Any, int]:
    """Return tokens, (drafted, accepted), and the number of steps."""
    config = {**CONFIG, "n_parallel": 4, **options}
    with InferenceEngine(path, draft=draft, **config) as engine:
        handles = [engine.submit(prompt, N, temperature=0) for prompt in PROMPTS]
        for handle in handles:
            handle.result()
        tokens = [[*handle.request.tokens] for handle in handles]
        made = sum(handle.stats.n_drafted for handle in handles)
        right = sum(handle.stats.n_accepted for handle in handles)
        return tokens, (made, right), len(engine.timeline)


@pytest.mark.parametrize("options", [{}, {"n_kv_tokens": 256, "block_size": 16}])
@pytest.mark.parametrize("head", ["token", "hidden", "random"])
def test_answers_stay_the_same(tmp_path: Path, head: str, options: Any) -> None:
    path = write_nextn(tmp_path / "glm.gguf", head)
    plain, _, n_steps = answers(path, None, **options)
    drafter = Recorder()
    drafted, (made, right), n_fewer = answers(path, drafter, **options)
    assert drafted == plain
    assert made > 0
    assert drafter.seen
    if head == "token":
        assert made == right
        assert n_fewer < 0.75 * n_steps
    if head == "hidden":  # the right hidden state, also after rejected drafts
        assert all(last == token for last, token in drafter.seen)


def test_a_request_can_go_without(tmp_path: Path) -> None:
    path = write_nextn(tmp_path / "glm.gguf", "token")
    with InferenceEngine(path, 2, draft=MtpHead(), **CONFIG) as engine:
        handle = engine.submit(PROMPTS[0], 8, temperature=0, n_draft=0)
        assert handle.result()
        assert handle.stats.n_drafted == 0


def test_llama_loads_the_head(tmp_path: Path) -> None:
    path = write_nextn(tmp_path / "glm.gguf", "token")
    options = {"n_ctx": 256, "n_threads": 1, **EXACT}
    with Llama(path, **options) as llm:
        plain = llm.generate("Once", N, temperature=0)
    with Llama(path, draft=MtpHead(), **options) as llm:
        assert llm.generate("Once", N, temperature=0) == plain
        engine: Any = llm.engine
        assert len(engine.timeline) < 0.75 * N


def test_the_head_reads_the_hidden_states(tmp_path: Path) -> None:
    path = write_nextn(tmp_path / "glm.gguf", "hidden")
    tokens, n = [5, 6, 7], 3
    with Model(path, load_mtp=True) as model:
        context = Context(model, n_ctx=64, n_threads=1, embeddings=True)
        batch = Batch(n)
        batch.fill(tokens, 0)
        context.decode(batch)
        hidden = np.stack([context.embedding(i) for i in range(n)])
        expected = np.stack([context.logits(i) for i in range(n)])
        head = Context(model, n_ctx=64, n_threads=1, mtp=True)
        batch = Batch(n, n_hidden=model.n_embd_out)
        batch.put([8, 9, 10], range(1, n + 1), [0] * n, b"\1\1\1")
        batch.put_hidden(hidden)
        head.decode(batch)
        found = np.stack([head.logits(i) for i in range(n)])
        np.testing.assert_allclose(found, expected, atol=5e-3)  # norms of what has a norm


def test_contexts_refuse_the_wrong_batches(tmp_path: Path) -> None:
    with Model(write_nextn(tmp_path / "glm.gguf"), load_mtp=True) as model:
        width = model.n_embd_out
        plain = Context(model, n_ctx=64, n_threads=1)
        head = Context(model, n_ctx=64, n_threads=1, mtp=True)
        for context, n_hidden in ((plain, width), (head, 0), (head, width + 1)):
            batch = Batch(2, n_hidden=n_hidden)
            batch.fill([1], 0)
            with pytest.raises(ValidationError, match="the batch has n_hidden="):
                context.decode(batch)
        with pytest.raises(ValidationError, match="no embeddings"):
            head.set_embeddings(True)
        with pytest.raises(ValidationError, match="no embeddings"):
            Context(model, n_ctx=64, mtp=True, embeddings=True)
        batch = Batch(2, n_hidden=width)
        for rows in (np.ones((1, 3), "f4"), np.ones((1, width)), np.ones((3, width), "f4")):
            with pytest.raises(ValidationError, match="hidden states"):
                batch.put_hidden(rows)
        with pytest.raises(ValidationError, match="hidden states"):
            Batch(2).put_hidden(np.ones((1, width), "f4"))


def test_models_without_a_head_are_refused(tmp_path: Path) -> None:
    llama = write_tiny(tmp_path / "llama.gguf")
    with pytest.raises(ModelLoadError, match=r"is a llama model; .* glm4moe only"):
        InferenceEngine(llama, draft=MtpHead(), **CONFIG)

    def no_head(writer: Any) -> None:
        writer.add_uint32("glm4moe.nextn_predict_layers", 0)

    bare = write_tiny(tmp_path / "bare.gguf", architecture="glm4moe", edit=no_head)
    with pytest.raises(ModelLoadError, match=r"nextn_predict_layers is 0.*nextn.eh_proj"):
        Model(bare, load_mtp=True)
    with Model(write_nextn(tmp_path / "glm.gguf")) as model:
        with pytest.raises(ValidationError, match="load it with load_mtp=True"):
            InferenceEngine(model, draft=MtpHead(), **CONFIG)
        with pytest.raises(ValidationError, match="load it with load_mtp=True"):
            Context(model, mtp=True)
        with InferenceEngine(model, draft=PromptLookup(), **CONFIG) as engine:
            assert engine.generate(PROMPTS[0], 4, temperature=0)
    with pytest.raises(ValidationError, match=r"must be a drafter such as .*, got 'mtp'"):
        InferenceEngine(llama, draft="mtp", **CONFIG)  # type: ignore[arg-type]


@pytest.mark.parametrize("build", [OLD, MIDDLE])
def test_older_builds_say_so(child: Child, tmp_path: Path, build: str) -> None:
    code = """
        import sys
        from llama_cffi import Context, Model

        try:
            Model(sys.argv[1], load_mtp=True)
        except Exception as error:
            print(type(error).__name__, error)
        with Model(sys.argv[1]) as model:
            try:
                Context(model, n_ctx=64, mtp=True)
            except Exception as error:
                print(type(error).__name__, error)
    """
    run = child(code, write_tiny(tmp_path / "llama.gguf"), LLAMA_CFFI_BUILD=build)
    first, second = run.stdout.splitlines()
    assert "this build does not run multi-token prediction heads" in first
    assert "load it with load_mtp=True" in second

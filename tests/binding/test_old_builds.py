"""What single builds die of, hang in or compute wrongly gives an error, or is done another way."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
from support.architectures import WRITE
from support.builds import NEWEST, OLD
from support.children import Child
from support.loras import make_pairs, write_lora
from support.odd_models import write_recurrent

B3995, B4234, B4980, B5590, B5640 = (f"npm:3.{v}" for v in ("2.0", "3.0", "7.0", "9.0", "10.0"))

START = """
import sys
import numpy as np
from llama_cffi.binding import Batch, Context, LoraAdapter, Model
from llama_cffi.errors import *

def feed(context, tokens, pos=0, seq_id=0):
    batch = Batch(len(tokens))
    batch.fill(tokens, pos, seq_id)
    context.decode(batch)
    return context.logits()

def refused(call):
    try:
        call()
    except LlamaError as e:
        return str(e)
    raise AssertionError("it was not refused")

"""


def run(child: Child, build: str, code: str, *args: object) -> None:
    done = child(
        START + textwrap.dedent(code),
        *args,
        LLAMA_CFFI_BUILD=build,
        MALLOC_PERTURB_="165",
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


@pytest.mark.parametrize("build", [OLD, "npm:3.6.0", B4980])
def test_a_sliding_window_needs_causal_attention(child: Child, tmp_path: Path, build: str) -> None:
    """Phi-3 reads a mask that is NULL until b4753, and b4980 reads one that nothing fills."""
    WRITE["phi3"](tmp_path / "phi3.gguf")
    code = """
    context = Context(Model(sys.argv[1]), n_ctx=64, n_threads=1)
    before = feed(context, [1, 2, 3])
    for call in (
        lambda: context.set_causal_attn(False),
        lambda: Context(context.model, n_ctx=64, n_threads=1, attention="non_causal"),
    ):
        said = refused(call)
        assert "sliding window" in said and "b5590" in said, said
    context.memory.clear()
    assert np.array_equal(feed(context, [1, 2, 3]), before)
    """
    run(child, build, code, tmp_path / "phi3.gguf")


@pytest.mark.parametrize("build", [B5590, NEWEST])
def test_from_b5590_on_it_does_not(child: Child, tmp_path: Path, build: str) -> None:
    WRITE["phi3"](tmp_path / "phi3.gguf")
    code = """
    context = Context(Model(sys.argv[1]), n_ctx=64, n_threads=1)
    causal = feed(context, range(20))
    context.set_causal_attn(False)
    context.memory.clear()
    switched = feed(context, range(20))
    made = Context(context.model, n_ctx=64, n_threads=1, attention="non_causal")
    assert np.allclose(feed(made, range(20)), switched, atol=1e-4)
    assert not np.allclose(switched, causal, atol=1e-2)
    """
    run(child, build, code, tmp_path / "phi3.gguf")


def test_b3995_does_not_load_state_space_models(child: Child, tmp_path: Path) -> None:
    code = """
    said = refused(lambda: Model(sys.argv[1]))
    assert "b3995" in said and "b4234 or later" in said, said
    """
    run(child, B3995, code, write_recurrent(tmp_path / "mamba.gguf"))


@pytest.mark.parametrize("build", [B4234, B5590, B5640])
def test_recurrent_models_survive_an_abort(child: Child, tmp_path: Path, build: str) -> None:
    """C would leave cells that belong to no sequence, or read sequence ids that do not exist."""
    code = """
    context = Context(Model(sys.argv[1]), n_ctx=64, n_threads=1)
    assert not context.abortable
    first, second = feed(context, [1, 2, 3]), feed(context, [4], 3)
    for tokens in ([5], [5, 6], [5, 6, 7], [5]):
        context.abort_flag.set()
        said = refused(lambda: feed(context, tokens, 4))
        assert "sequences [0] are empty now" in said, said
        context.abort_flag.clear()
        assert np.allclose(feed(context, [1, 2, 3]), first, atol=1e-5)
        assert np.allclose(feed(context, [4], 3), second, atol=1e-5)
    """
    run(child, build, code, write_recurrent(tmp_path / "mamba.gguf"))


@pytest.mark.parametrize("build", [B4980, B5590])
def test_a_recurrent_sequence_begins_anew(child: Child, tmp_path: Path, build: str) -> None:
    """C would continue from the state of the sequence that was removed."""
    code = """
    context = Context(Model(sys.argv[1]), n_ctx=64, n_threads=1)
    expected = feed(context, [1, 2, 3])
    for _ in range(2):
        assert context.memory.seq_rm(0)
        assert np.allclose(feed(context, [1, 2, 3]), expected, atol=1e-5)
    assert not context.memory.takes_several
    """
    run(child, build, code, write_recurrent(tmp_path / "mamba.gguf"))


def test_b4980_divides_positions_near_the_end(child: Child, tiny_model: Path) -> None:
    """It would plan a graph of n_ubatch tokens behind the last cell that was used, and assert."""
    code = """
    model, found = Model(sys.argv[1]), []
    for n_ubatch in (64, 4):
        context = Context(model, n_ctx=64, n_ubatch=n_ubatch, n_threads=1)
        feed(context, range(40))
        context.memory.seq_div(0, 20, -1, 2)
        context.memory.seq_rm(0, 15)
        assert not context.memory.defrag()
        found.append(feed(context, [7], 15))
    assert np.allclose(*found, atol=1e-4)
    """
    run(child, B4980, code, tiny_model)


@pytest.mark.parametrize("build", [OLD, B4234, "npm:3.6.0"])
@pytest.mark.parametrize("pooling", ["none", "mean", "last"])
def test_graphs_of_equal_size_are_planned_anew(
    child: Child, tiny_model: Path, build: str, pooling: str
) -> None:
    """Until b4980 C takes a graph with the counts of the last one for planned.

    It then writes outside of its buffers, or asserts.
    """
    code = """
    model = Model(sys.argv[1])
    vector = np.full((model.n_layer - 1, model.n_embd), 0.1)

    def context(embeddings, control):
        made = Context(
            model, n_ctx=64, n_threads=1, pooling=sys.argv[2], embeddings=embeddings
        )
        if control:
            made.set_control_vector(vector)
        return made

    def output(made):
        made.memory.clear()
        batch = Batch(3)
        batch.fill([1, 2, 3], 0, 0)
        batch.want_all()
        made.decode(batch)
        if not made.embeddings:
            return made.logits().copy()
        if made.pooling == "none":
            return made.embedding().copy()
        return made.sequence_embedding().copy()

    states = [(e, c) for e in (True, False) for c in (True, False)]
    expected = {state: output(context(*state)) for state in states}
    assert not np.allclose(expected[False, True], expected[False, False], atol=1e-3)
    for first in states:
        for second in states:
            made = context(*first)
            if states.index(second) % 2:  # sometimes before the first decode, too
                output(made)
            made.set_embeddings(second[0])
            made.set_control_vector(vector if second[1] else None)
            assert np.allclose(output(made), expected[second], atol=1e-4), (first, second)
    """
    run(child, build, code, tiny_model, pooling)


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_b3889_plans_for_pooling_that_comes_later(
    child: Child, tiny_model: Path, pooling: str
) -> None:
    """Its row numbers take 32 bytes more, by which C takes its buffers for larger than they are."""
    code = """
    model, batch = Model(sys.argv[1]), Batch(1)
    for _ in range(20):  # it depends on where malloc puts the buffer
        context = Context(
            model, n_ctx=256, n_batch=1, n_threads=1, pooling=sys.argv[2], flash_attn=True
        )
        assert not context.embeddings
        for embeddings in (False, True, False):
            context.set_embeddings(embeddings)
            context.memory.clear()
            batch.fill([76], 0)
            context.decode(batch)
        context.close()
    """
    run(child, OLD, code, tiny_model, pooling)


def test_b4980_does_not_switch_embeddings(child: Child, tiny_model: Path) -> None:
    code = """
    context = Context(Model(sys.argv[1]), n_ctx=64, n_threads=1, pooling="last", embeddings=True)
    context.set_control_vector(np.full((context.model.n_layer - 1, context.model.n_embd), 0.1))
    context.set_embeddings(True)
    said = refused(lambda: context.set_embeddings(False))
    assert "b4980" in said and "create a context" in said, said
    batch = Batch(2)
    batch.fill([1, 2], 0, 0)
    context.decode(batch)
    assert np.isfinite(context.sequence_embedding()).all()
    """
    run(child, B4980, code, tiny_model)


def test_b4980_shifts_nothing_that_it_pools_by_mean(child: Child, tiny_model: Path) -> None:
    code = """
    context = Context(Model(sys.argv[1]), n_ctx=64, n_threads=1, pooling="mean", embeddings=True)
    batch = Batch(2)
    batch.fill([1, 2], 0, 0)
    context.decode(batch)
    refused(lambda: context.memory.seq_add(0, 1, -1, 3))
    refused(lambda: context.memory.seq_div(0, 0, -1, 2))
    batch.fill([1, 2], 2, 0)
    context.decode(batch)
    """
    run(child, B4980, code, tiny_model)


def test_b4980_encodes_without_rank_pooling(child: Child, tmp_path: Path) -> None:
    WRITE["t5"](tmp_path / "t5.gguf")
    code = """
    context = Context(Model(sys.argv[1]), n_ctx=64, n_threads=1, pooling="rank")
    batch = Batch(2)
    batch.fill([1, 2], 0, 0)
    said = refused(lambda: context.encode(batch))
    assert "pool" in said and "b4980" in said, said
    """
    run(child, B4980, code, tmp_path / "t5.gguf")


def test_b3889_plans_a_decoder_for_64_tokens(child: Child, tmp_path: Path) -> None:
    """Planned for fewer, the decoder writes 16 bytes behind its buffer, depending on malloc."""
    WRITE["t5"](tmp_path / "t5.gguf")
    code = """
    rows = []
    for n_ubatch in (1, 4):
        context = Context(Model(sys.argv[1]), n_ctx=64, n_batch=4, n_ubatch=n_ubatch, n_threads=1)
        assert context.library.lib.llama_n_ubatch(context.ptr) == 64
        assert (context.n_batch, context.n_ubatch) == (4, n_ubatch)
        batch = Batch(4)
        batch.fill([5], 0)
        context.encode(batch)
        rows.append(feed(context, [1, 2, 3]).copy())
        batch.fill([5, 6, 7, 8], 0)
        if n_ubatch == 1:
            assert "4 tokens" in refused(lambda: context.encode(batch))
    np.testing.assert_array_equal(*rows)
    """
    run(child, OLD, code, tmp_path / "t5.gguf")


def test_an_abort_loses_no_other_sequence(child: Child, tiny_model: Path) -> None:
    """b5590 would remove all but the first."""
    code = """
    context = Context(Model(sys.argv[1]), n_ctx=64, n_seq_max=3, n_threads=1)
    for seq_id in range(3):
        feed(context, [1, 2, 3], 0, seq_id)
    for seq_id in (1, 0, 2):
        context.abort_flag.set()
        refused(lambda: feed(context, [4, 5], 3, seq_id))
        context.abort_flag.clear()
        assert [context.memory.seq_pos_max(s) for s in range(3)] == [2, 2, 2]
    assert Context(context.model, n_ctx=64, n_threads=1).abortable
    """
    run(child, B5590, code, tiny_model)


@pytest.mark.parametrize("build", [OLD, B3995])
def test_more_contexts_than_ggml_has(
    child: Child, tiny_model: Path, tmp_path: Path, build: str
) -> None:
    """Builds before b4234 have 64, and use NULL for one more."""
    lora = write_lora(tmp_path / "lora.gguf", make_pairs())
    code = """
    model = Model(sys.argv[1])
    make = {
        "a context": lambda: Context(model, n_ctx=32, n_threads=1),
        "an adapter": lambda: LoraAdapter(model, sys.argv[2]),
        "a model": lambda: Model(sys.argv[1]),
    }
    context = make["a context"]()
    expected = feed(context, [1, 2, 3])
    for what, one in make.items():
        made = []
        said = refused(lambda: [made.append(one()) for _ in range(70)])
        assert said.startswith(what) and "b4234" in said and len(made) >= 15, said
        for other in make.values():
            refused(other)
        context.memory.clear()
        assert np.allclose(feed(context, [1, 2, 3]), expected, atol=1e-5)
        cycle = [made]
        cycle.append(cycle)
        del made, cycle  # dropped objects do not count
        one().close()
    """
    run(child, build, code, tiny_model, lora)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_b3995_pools_by_mean(child: Child, tmp_path: Path, name: str) -> None:
    WRITE[name](tmp_path / "model.gguf")
    code = """
    context = Context(Model(sys.argv[1]), n_ctx=64, n_threads=1, embeddings=True, pooling="mean")
    batch = Batch(3)
    batch.fill([1, 2, 3], 0)
    context.decode(batch)
    print(context.sequence_embedding().tolist())
    """
    lines, path = START + textwrap.dedent(code), tmp_path / "model.gguf"
    found = [child(lines, path, LLAMA_CFFI_BUILD=build) for build in (B3995, NEWEST)]
    assert [done.stderr for done in found] == ["", ""]
    old, new = (json.loads(done.stdout) for done in found)
    assert new == pytest.approx(old, abs=1e-2)


def test_old_builds_keep_no_threads(child: Child, tiny_model: Path) -> None:
    """A kept thread that is late reads the next graph, and waits at a barrier for ever."""
    code = """
    import os, time
    from llama_cffi.binding import processors
    processors.usable_cpus = lambda: 2
    model = Model(sys.argv[1])
    alone, context = (Context(model, n_ctx=64, n_threads=n) for n in (1, 2))
    expected = feed(alone, [1, 2, 3])
    for n_threads, n_threads_batch in ((2, 2), (1, 2), (2, 1), (1, 1)):
        context.set_threads(n_threads, n_threads_batch)
        context.memory.clear()
        before = len(os.listdir("/proc/self/task"))
        assert np.allclose(feed(context, [1, 2, 3]), expected, atol=1e-4)
        while len(os.listdir("/proc/self/task")) > before:  # they have ended, or are about to
            time.sleep(0.01)
    """
    run(child, OLD, code, tiny_model)

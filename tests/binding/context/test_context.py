from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.odd_models import write_hybrid, write_windowed
from support.tiny_encoders import N_POSITIONS, write_bert
from support.tiny_gguf import write_tiny

from llama_cffi.binding import Batch, Context, Model, SamplerChain
from llama_cffi.errors import GenerationError, KvCacheFullError, LlamaError, ValidationError


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    with Context(model, n_ctx=256, n_batch=64, n_threads=1) as context:
        yield context


def feed(context: Context, tokens: list[int], pos: int = 0, **how: bool) -> None:
    batch = Batch(max(1, len(tokens)))
    batch.fill(tokens, pos, **how)  # type: ignore[arg-type]
    context.decode(batch)


def test_logits(context: Context) -> None:
    feed(context, [1, 2, 3])
    row = context.logits()
    assert (row.shape, row.dtype) == ((259,), np.float32)
    assert np.isfinite(row).all()
    assert np.array_equal(row, context.logits(2))


def test_chunks_give_the_same_logits(context: Context) -> None:
    tokens = list(range(40))
    feed(context, tokens)
    whole = context.logits().copy()
    context.memory.clear()
    for start in range(0, 40, 8):
        feed(context, tokens[start : start + 8], start)
    assert np.allclose(context.logits(), whole, atol=1e-4)
    assert context.logits().argmax() == whole.argmax()


def test_argmax_of_several_outputs(context: Context) -> None:
    for wanted in (b"\1\1\1\1\1", b"\0\1\0\1\1", b"\0\0\0\0\1"):
        for first in range(9):
            context.memory.clear()
            batch = Batch(5)
            batch.put([first + i for i in range(5)], range(5), [0] * 5, wanted)
            context.decode(batch)
            expected = {i: int(context.logits(i).argmax()) for i in range(5) if wanted[i]}
            assert {i: context.argmax(i) for i in expected} == expected
            assert [context.argmax(-k) for k in range(1, len(expected) + 1)] == [
                *reversed(expected.values())
            ]
            for i in {*range(5)} - {*expected} | {-len(expected) - 1, 5}:
                with pytest.raises(ValidationError):
                    context.argmax(i)
    feed(context, [7], 5)
    assert context.argmax() == context.argmax(0) == context.logits().argmax()
    with pytest.raises(ValidationError):
        context.argmax(1)
    context.load_state(context.save_state())
    with pytest.raises(ValidationError):
        context.argmax()


def test_argmax_sees_written_logits(context: Context) -> None:
    batch = Batch(3)
    batch.put([7, 8, 9], range(3), [0] * 3, b"\1\1\1")
    for earlier in (False, True):
        context.memory.clear()
        context.decode(batch)
        usual = [int(context.logits(i).argmax()) for i in range(3)]
        if earlier:
            assert context.argmax(0) == usual[0]
        context.logits(1, copy=False)[33] = 1e9
        context.logits(2, copy=False)[34] = float("nan")
        assert [context.argmax(0), context.argmax(1)] == [usual[0], 33]
        with pytest.raises(GenerationError, match="NaN"):
            context.argmax(2)


def test_argmax_finds_nan_among_many(context: Context) -> None:
    batch = Batch(3)
    batch.put([7, 8, 9], range(3), [0] * 3, b"\1\1\1")
    context.decode(batch)
    view = context.logits(1, copy=False)
    context.memory.clear()
    context.decode(batch)
    view[:] = float("-inf")  # as a broken model may give
    assert context.argmax(0) == context.logits(0).argmax()
    with pytest.raises(GenerationError, match="forbidden"):
        context.argmax(1)
    assert context.argmax(2) == context.logits(2).argmax()


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_results_stay_after_larger_decodes_and_close(
    child: Child, tiny_model: Path, build: str
) -> None:
    code = """
        import sys
        import numpy as np
        from llama_cffi.binding import Batch, Context, Model
        model, batch = Model(sys.argv[1]), Batch(512)
        for name, how in (
            ("logits", {}),
            ("embedding", {"embeddings": True, "pooling": "none"}),
            ("sequence_embedding", {"embeddings": True, "pooling": "mean"}),
        ):
            context = Context(model, n_ctx=512, n_threads=1, **how)
            results, copies = [], []
            for n in (1, 8, 64, 500):
                context.memory.clear()
                batch.fill([1] * n, 0)
                context.decode(batch)
                results.append(getattr(context, name)())
                copies.append(results[-1].tobytes())
                borrowed = getattr(context, name)(copy=False)
                assert np.array_equal(borrowed, results[-1])
                assert np.shares_memory(borrowed, getattr(context, name)(copy=False))
            context.close()
            assert [result.tobytes() for result in results] == copies
            for result in results:
                result[:] = 0
                assert result.flags.owndata
    """
    result = child(code, tiny_model, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")


HYBRID = """
    import sys
    from llama_cffi.binding import Batch, Context, Model
    from llama_cffi.errors import ValidationError
    with Model(sys.argv[1]) as model:
        assert (model.is_hybrid, model.is_recurrent, model.keeps_states) == (True, False, True)
        for kv_unified in (None, True, False):
            try:
                context = Context(model, n_ctx=256, n_seq_max=3, kv_unified=kv_unified, n_threads=1)
            except ValidationError as error:
                print(kv_unified, "kv_unified=True" in str(error))
                continue
            with context:
                batch = Batch(9)
                batch.put([7, 8, 9] * 3, [0, 1, 2] * 3, [0] * 3 + [1] * 3 + [2] * 3, b"\\1" * 9)
                context.decode(batch)
                best = [context.argmax(i) for i in range(9)]
                assert best[:3] == best[3:6] == best[6:]
                memory = context.memory
                assert [memory.can_truncate(1, n) for n in (0, 2, 3)] == [True, False, True]
                print(kv_unified, context.kv_unified)
"""


@pytest.mark.parametrize("build", [MIDDLE, NEWEST])
def test_hybrids_keep_states_and_cells(child: Child, tmp_path: Path, build: str) -> None:
    """b6673 would abort if their sequences had separate caches."""
    result = child(HYBRID, write_hybrid(tmp_path / "hybrid.gguf"), LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
    expected = ["None True", "True True", "False True"]
    if build == NEWEST:
        expected = ["None False", "True True", "False False"]
    assert result.stdout.splitlines() == expected


@pytest.mark.parametrize("i", [0, 1, 3, 99, -2, -9, -(2**31), 2**40, 1.0, None])
def test_outputs_that_were_not_requested(context: Context, i: int) -> None:
    feed(context, [1, 2, 3])
    with pytest.raises(ValidationError):
        context.logits(i)
    with SamplerChain(context.model).add_greedy() as chain, pytest.raises(ValidationError):
        chain.sample(context, i)


def test_no_output_before_a_decode_nor_after_a_failed_one(context: Context) -> None:
    with pytest.raises(ValidationError):
        context.logits()
    feed(context, [1, 2, 3], logits=False)
    with pytest.raises(ValidationError):
        context.logits()
    feed(context, [4], 3)
    with pytest.raises(ValidationError):  # refused before C: the output is still there
        feed(context, [259], 4)
    assert context.logits().shape == (259,)
    with pytest.raises(GenerationError):
        feed(context, [5], 90)
    with pytest.raises(ValidationError):
        context.logits()


def test_several_outputs(context: Context) -> None:
    batch = Batch(4)
    for i, token in enumerate([7, 8, 9]):
        batch.add(token, i, logits=i != 1)
    context.decode(batch)
    assert np.array_equal(context.logits(-1), context.logits(2))
    assert np.array_equal(context.logits(-2), context.logits(0))
    for i in (1, -3):
        with pytest.raises(ValidationError):
            context.logits(i)


def test_batches_that_are_refused(context: Context) -> None:
    with pytest.raises(ValidationError, match="empty"):
        context.decode(Batch(4))
    with pytest.raises(ValidationError, match="n_batch is 64"):
        feed(context, [1] * 65)
    with pytest.raises(ValidationError, match="token 259"):
        feed(context, [259])
    batch = Batch(2)
    batch.fill([1], 0, seq_id=1)
    with pytest.raises(ValidationError, match="sequence 1"):
        context.decode(batch)
    assert context.memory.seq_pos_max(0) == -1


def test_positions_must_continue(context: Context) -> None:
    feed(context, [1, 2, 3])
    for pos in (10, 1):
        with pytest.raises(GenerationError, match="position"):
            feed(context, [4], pos)
    assert context.memory.seq_pos_max(0) == 2
    feed(context, [4], 3)


def test_full_cache(model: Model) -> None:
    with Context(model, n_ctx=256, n_batch=256, n_threads=1) as context:
        feed(context, [1] * context.n_ctx)
        with pytest.raises(KvCacheFullError, match="n_ctx=256"):
            feed(context, [1], context.n_ctx)
        assert context.memory.seq_pos_max(0) == context.n_ctx - 1


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_ctx": -1},
        {"n_ctx": 2**31},
        {"n_ctx": 1.5},
        {"n_ctx": "8"},
        {"n_ctx": None},
        {"n_batch": 0},
        {"n_ubatch": -1},
        {"n_seq_max": 0},
        {"n_seq_max": 1000},
        {"n_seq_max": 200, "n_batch": 64},
        {"n_threads": -1},
        {"n_threads_batch": -5},
        {"n_threads": 2.0},
        {"pooling": "max"},
        {"pooling": 1},
        {"attention": "both"},
        {"attention": ""},
        {"rope_scaling": "YARN"},
        {"rope_scaling": "max_value"},
        {"rope_freq_base": 0},
        {"rope_freq_base": -1},
        {"rope_freq_base": float("nan")},
        {"rope_freq_scale": 0},
        {"rope_freq_scale": 1e9},
        {"rope_freq_scale": "x"},
        {"yarn_ext_factor": -1},
        {"yarn_attn_factor": float("inf")},
        {"yarn_beta_fast": -1},
        {"yarn_beta_slow": float("nan")},
        {"yarn_orig_ctx": 0},
        {"yarn_orig_ctx": 2**31},
        {"type_k": "q4_k"},
        {"type_k": "F16"},
        {"type_v": "iq2_xs"},
        {"type_v": 1},
        {"type_v": "q8_0", "flash_attn": False},
    ],
)
def test_parameters_out_of_range(model: Model, sizes: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=next(iter(sizes))):
        Context(model, **{"n_ctx": 256, **sizes})  # type: ignore[arg-type]


def test_parameters_that_do_not_exist(model: Model) -> None:
    with pytest.raises(TypeError, match="n_gpu_layers"):
        Context(model, n_gpu_layers=1)  # type: ignore[call-arg]


def test_rope_parameters_reach_c(model: Model) -> None:
    rows = []
    for options in (
        {},
        {"rope_freq_base": 500.0},
        {"rope_freq_scale": 0.25},
        {"rope_scaling": "none", "rope_freq_scale": 0.25},
        {"rope_scaling": "yarn", "rope_freq_scale": 0.25, "yarn_orig_ctx": 64},
        {
            "rope_scaling": "yarn",
            "rope_freq_scale": 0.25,
            "yarn_orig_ctx": 64,
            "yarn_ext_factor": 0.3,
            "yarn_attn_factor": 1.5,
            "yarn_beta_fast": 16.0,
            "yarn_beta_slow": 2.0,
        },
    ):
        with Context(model, n_ctx=256, n_threads=1, **options) as context:  # type: ignore[arg-type]
            feed(context, list(range(40)))
            rows.append(context.logits().copy())
    assert np.allclose(rows[3], rows[0], atol=1e-5)  # "none" does not scale
    for i, j in ((0, 1), (0, 2), (2, 4), (4, 5)):
        assert not np.allclose(rows[i], rows[j], atol=1e-3), (i, j)


def test_threads_can_be_changed(model: Model) -> None:
    with Context(model, n_ctx=256, n_threads=2, n_threads_batch=1) as context:
        feed(context, [1, 2, 3])
        before = context.logits().copy()
        for n_threads, n_threads_batch in ((1, 2), (1, 1), (2, 0), (10_000, 1)):
            context.set_threads(n_threads, n_threads_batch)
            context.memory.clear()
            feed(context, [1, 2, 3])
            assert np.allclose(context.logits(), before, atol=1e-5)
        assert 1 <= context.n_threads <= 512
        with pytest.raises(ValidationError, match="n_threads"):
            context.set_threads(-1)
    with pytest.raises(ValidationError, match="closed"):
        context.set_threads(1)


def test_perf(model: Model) -> None:
    with Context(model, n_ctx=256, n_threads=1, no_perf=False) as context:
        feed(context, list(range(40)))
        context.synchronize()
        feed(context, [1], 40)
        context.synchronize()
        perf = context.perf
        assert (perf.n_prompt, perf.n_generated) == (40, 1)
        assert perf.prompt_ms > 0
        assert perf.generation_ms > 0
        context.reset_perf()
        assert context.perf.prompt_ms == 0


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_cache_types(child: Child, tmp_path: Path, build: str) -> None:
    """Types that a build does not support are refused, where C aborts or calls NULL."""
    models = [write_tiny(tmp_path / f"head{n}.gguf", n_embd=2 * n, n_layer=1) for n in (32, 40, 64)]
    code = """
        import itertools, sys
        import numpy as np
        from llama_cffi import LlamaError
        from llama_cffi.binding import Batch, Context, Model
        types = ("f32", "f16", "bf16", "q8_0", "q4_1", "iq4_nl", None)
        plain, made, shifted, refused = None, 0, 0, 0
        for path in sys.argv[1:]:
            model = Model(path)
            for k, v, flash_attn in itertools.product(types, types, (None, True, False)):
                try:
                    context = Context(
                        model, n_ctx=64, n_threads=1, type_k=k, type_v=v, flash_attn=flash_attn)
                except LlamaError:
                    refused += 1
                    continue
                batch = Batch(40)
                batch.fill(range(40), 0)
                context.decode(batch)
                rows = [context.logits().copy()]
                if context.memory.can_shift:
                    context.memory.seq_rm(0, 0, 4)
                    context.memory.seq_add(0, 4, -1, -4)
                    batch.fill([5], 36)
                    context.decode(batch)
                    rows.append(context.logits().copy())
                    shifted += 1
                assert np.isfinite(rows).all()
                if "head32" in path:
                    if (k, v, flash_attn) == ("f16", "f16", False):
                        plain = rows[0]
                    elif plain is not None and not {k, v} - {"f16", "q8_0", None}:
                        assert np.allclose(rows[0], plain, atol=0.3), (k, v, flash_attn)
                made += 1
                context.close()
            model.close()
        print(made, shifted, refused)
    """
    result = child(code, *models, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    made, shifted, refused = map(int, result.stdout.split())
    assert made > 60
    assert shifted > 20
    assert refused > 60


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_a_batch_that_fails_leaves_nothing(child: Child, tiny_model: Path, build: str) -> None:
    """The oldest build keeps the first part of a batch that the cache has no slot for."""
    code = """
        import sys
        import numpy as np
        from llama_cffi import KvCacheFullError
        from llama_cffi.binding import Batch, Context, Model
        model = Model(sys.argv[1])
        context = Context(model, n_ctx=256, n_batch=256, n_ubatch=32, n_threads=1)
        batch = Batch(256)
        def feed(tokens, pos):
            batch.fill(tokens, pos)
            context.decode(batch)
        feed([3] * 100, 0)
        feed([4], 100)
        expected = context.logits().copy()
        context.memory.seq_rm(0, 100)
        try:
            feed([5] * 200, 100)
        except KvCacheFullError:
            pass
        else:
            raise AssertionError("the cache has no room for 300 tokens")
        assert context.memory.seq_pos_max(0) == 99
        feed([4], 100)
        assert np.allclose(context.logits(), expected, atol=1e-5)
    """
    result = child(code, tiny_model, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr


def test_positions_beyond_the_position_table(tmp_path: Path) -> None:
    """C aborts on a position without a row in the table (gpt2, BERT)."""
    path, _ = write_bert(tmp_path / "bert.gguf")
    with Model(path) as model, Context(model, n_ctx=256, n_threads=1) as context:
        batch = Batch(1)
        batch.fill([1], N_POSITIONS - 1)
        context.decode(batch)
        batch.fill([1], N_POSITIONS)
        with pytest.raises(ValidationError, match=f"table of {N_POSITIONS} positions"):
            context.decode(batch)


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_sizes_that_a_build_does_not_support(child: Child, tmp_path: Path, build: str) -> None:
    """The oldest build aborts on a gemma2 of two layers."""
    path = write_windowed(tmp_path / "gemma2.gguf")
    code = """
        import sys
        from llama_cffi import ValidationError
        from llama_cffi.binding import Context, Model
        try:
            Context(Model(sys.argv[1]), n_ctx=64, n_threads=1)
        except ValidationError as e:
            print(e)
    """
    result = child(code, path, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
    assert ("2 layers" in result.stdout) == (build == OLD)


@pytest.mark.parametrize("field", ["op_offload", "swa_full"])
def test_parameters_that_a_build_does_not_have(child: Child, tiny_model: Path, field: str) -> None:
    code = """
        import sys
        from llama_cffi import ValidationError
        from llama_cffi.binding import Context, Model
        try:
            Context(Model(sys.argv[1]), n_ctx=64, **{sys.argv[2]: True})
        except ValidationError as e:
            print(e)
    """
    result = child(code, tiny_model, field, LLAMA_CFFI_BUILD=OLD)
    assert f"no {field}" in result.stdout
    assert "LLAMA_CFFI_BUILD=latest" in result.stdout
    result = child(code, tiny_model, field, LLAMA_CFFI_BUILD=NEWEST)
    assert (result.stdout, result.stderr) == ("", "")


def test_odd_sizes_work(model: Model) -> None:
    for sizes in (
        {"n_ctx": 1},
        {"n_batch": 1},
        {"n_batch": 2**31 - 1},
        {"n_ubatch": 4096},
        {"n_seq_max": 64},
        {"n_threads": 10_000},
        {"n_threads": 2, "n_threads_batch": 1},
    ):
        with Context(model, **{"n_ctx": 128, "n_threads": 1, **sizes}) as context:  # type: ignore[arg-type]
            feed(context, [1])
            assert context.n_batch <= 128
            assert context.n_threads <= 512


def test_more_memory_than_there_is(model: Model) -> None:
    with pytest.raises(LlamaError, match="GiB"):
        Context(model, n_ctx=2**31 - 1)


def test_closed_with_its_model(tiny_model: Path) -> None:
    model = Model(tiny_model)
    context = Context(model, n_ctx=64, n_threads=1)
    feed(context, [1])
    batch = Batch(1)
    batch.fill([1], 1)
    memory = context.memory
    model.close()
    assert context.closed
    for call in (
        lambda: context.decode(batch),
        context.logits,
        context.embedding,
        context.sequence_embedding,
        context.synchronize,
        context.reset_perf,
        lambda: context.encode(batch),
        lambda: context.set_embeddings(True),
        lambda: context.set_causal_attn(False),
        lambda: context.set_threads(1),
        lambda: context.set_adapters({}),
        lambda: context.set_control_vector(None),
        lambda: context.perf,
        context.__enter__,
        memory.clear,
        lambda: memory.seq_rm(0),
        lambda: memory.seq_cp(0, 0),
        lambda: memory.seq_keep(0),
        lambda: memory.seq_add(0, 0, 1, 1),
        lambda: memory.seq_pos_max(0),
        lambda: memory.can_shift,
        lambda: Context(model),
        lambda: SamplerChain(model),
    ):
        with pytest.raises(ValidationError, match="closed"):
            call()
    context.close()


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_every_build_survives(child: Child, tiny_model: Path, build: str) -> None:
    """What newer builds refuse must not end the process in older ones."""
    code = """
        import sys
        from llama_cffi import LlamaError
        from llama_cffi.binding import Batch, Context, Model, SamplerChain
        model = Model(sys.argv[1])
        refused = 0
        def attempt(f):
            global refused
            try:
                f()
            except LlamaError:
                refused += 1
        for sizes in ({"n_ctx": 1}, {"n_seq_max": 2}, {"n_seq_max": 64}, {"n_seq_max": 65},
                      {"n_ctx": 2**30}, {"n_threads": 513}, {"embeddings": True},
                      {"flash_attn": True}, {"kv_unified": True, "n_seq_max": 2},
                      {"kv_unified": False, "n_seq_max": 2}):
            try:
                context = Context(model, **{"n_ctx": 64, "n_threads": 1, **sizes})
            except LlamaError:
                refused += 1
                continue
            batch = Batch(64, n_seq_max=64)
            chain = SamplerChain(model).add_greedy()
            attempt(lambda: chain.sample(context))
            attempt(context.logits)
            for tokens, pos, seq in (([1, 2, 3], 0, 0), ([1], 50, 0), ([1], 1, 0),
                                     ([1], 2**31 - 2, 0), ([1], 0, 1), ([1], 0, 63),
                                     ([1] * 64, 0, 0)):
                attempt(lambda: (batch.fill(tokens, pos, seq), context.decode(batch)))
                attempt(lambda: chain.sample(context))
            batch.clear()
            attempt(lambda: (batch.add(1, 0, [0, 1], logits=True), context.decode(batch)))
            attempt(lambda: SamplerChain(model).add_temp(0.5).sample(context))
            memory = context.memory
            for call in (lambda: memory.seq_cp(0, 1, 1, 2), lambda: memory.seq_cp(0, 1),
                         lambda: memory.seq_add(0, 0, -1, 2**31 - 1),
                         lambda: memory.seq_add(0, 0, -1, -7),
                         lambda: memory.seq_rm(-1, 1, 2), lambda: memory.seq_keep(0)):
                attempt(call)
            context.close()
        assert refused > 50, refused
        print(refused)
    """
    result = child(code, tiny_model, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")


CLOSED_MEANWHILE = """
    import sys, threading, time
    from llama_cffi.binding import Batch, Context, Model
    from llama_cffi.errors import LlamaError

    class Closing:  # a number that closes the model when it is converted
        def __index__(self):
            model.close()
            return 1

        def __float__(self):
            return float(self.__index__())

        def __bool__(self):
            return bool(self.__index__())

    for turn in range(40):
        model = Model(sys.argv[1])
        context = Context(model, n_ctx=256, n_threads=1)
        batch = Batch(200)
        batch.fill([1] * 200, 0)
        ready = threading.Event()

        def work():
            try:
                while True:
                    ready.set()
                    context.decode(batch)
                    context.memory.clear()
            except LlamaError:
                pass

        thread = threading.Thread(target=work)
        thread.start()
        ready.wait()
        time.sleep(0.001)
        (model, context)[turn % 2].close()
        thread.join()
        model.close()
    for use in (lambda x: context.memory.clear(x), lambda x: context.set_embeddings(x),
                lambda x: context.set_causal_attn(x), lambda x: model.vocab.tokenize("a", x),
                lambda x: model.vocab.tokenize("a", parse_special=x),
                lambda x: model.vocab.token_to_piece(5, x), lambda x: Context(model, n_ctx=x),
                lambda x: Context(model, n_ctx=64, embeddings=x),
                lambda x: Context(model, n_ctx=64, flash_attn=x),
                lambda x: context.set_control_vector([[x] * 64])):
        model = Model(sys.argv[1])
        context = Context(model, n_ctx=64, n_threads=1)
        try:
            use(Closing())
        except LlamaError as e:
            assert "closed" in str(e) or "must be True or False" in str(e), e
        else:
            print("used")
"""


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_closed_while_in_use(build: str, child: Child, tiny_model: Path) -> None:
    """C finishes first, whether another thread or an argument closes the context."""
    done = child(CLOSED_MEANWHILE, tiny_model, LLAMA_CFFI_BUILD=build, MALLOC_PERTURB_="165")
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_threads_switched_between_decodes(build: str, child: Child, tiny_model: Path) -> None:
    """C pauses the previous pool at the next decode; this fill makes freed memory look locked."""
    code = """
        import sys
        from llama_cffi.binding import Batch, Context, Model
        context = Context(Model(sys.argv[1]), n_ctx=32, n_threads=1)
        for pos in range(6):
            batch = Batch(1)
            batch.fill([1], pos)
            context.decode(batch)
            context.set_threads(1 + pos % 2, 2 - pos // 2 % 2)
        print(sorted(context._pools))
    """
    done = child(code, tiny_model, timeout=30, LLAMA_CFFI_BUILD=build, MALLOC_PERTURB_="165")
    assert (done.stderr, done.returncode) == ("", 0)

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.gguf_codec import decode
from support.loras import ALPHA, RANK, Pairs, make_pairs, write_lora, write_merged
from support.tiny_gguf import write_tiny

from llama_cffi.binding import Batch, Context, LoraAdapter, Model, load_control_vector
from llama_cffi.errors import ModelLoadError, ValidationError

N_EMBD = 64
TARGETS = ("blk.0.attn_q.weight", "blk.1.ffn_down.weight", "output.weight")


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lora(tmp_path_factory.mktemp("lora") / "a.gguf", make_pairs())


@pytest.fixture
def model(tiny_model: Path) -> Iterator[Model]:
    with Model(tiny_model) as model:
        yield model


def logits(context: Context, tokens: tuple[int, ...] = (1, 2, 3)) -> NDArray[np.float32]:
    context.memory.clear()
    batch = Batch(len(tokens))
    batch.fill(tokens, 0)
    context.decode(batch)
    return context.logits().copy()


def logits_of(path: Path) -> NDArray[np.float32]:
    with Model(path) as model:
        return logits(Context(model, n_ctx=64, n_threads=1))


SAME_AS_MERGED = """
    import sys
    import numpy as np
    from llama_cffi.binding import Batch, Context, LoraAdapter, Model
    plain, merged, path, scale = *sys.argv[1:4], float(sys.argv[4])
    def rows(context):
        context.memory.clear()
        batch = Batch(3)
        batch.fill([1, 2, 3], 0)
        context.decode(batch)
        found = [context.logits().copy()]
        for pos in (3, 4):  # single tokens: newer builds reuse their graph
            batch.fill([4], pos)
            context.decode(batch)
            found.append(context.logits().copy())
        return np.array(found)
    how = {"n_ctx": 64, "n_threads": 1, "flash_attn": False}
    expected = rows(Context(Model(merged), **how))
    model = Model(plain)
    context = Context(model, **how)
    before = rows(context)
    adapter = LoraAdapter(model, path)
    context.set_adapters({adapter: scale})
    got = rows(context)
    assert not np.allclose(got, before, atol=0.1)
    assert np.allclose(got, expected, atol=2e-2), abs(got - expected).max()
    batch = Batch(1)
    batch.fill([4], 5)
    context.decode(batch)
    with_it = context.logits().copy()
    context.set_adapters({})
    context.memory.seq_rm(0, 5)
    context.decode(batch)  # the same graph but for the adapter
    assert not np.allclose(context.logits(), with_it, atol=1e-2)
    assert np.allclose(rows(context), before, atol=1e-4)
    context.set_adapters({adapter: scale})
    adapter.close()
    assert context.adapters == {}
    assert np.allclose(rows(context), before, atol=1e-4)
"""


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_an_adapter_is_the_merged_model(
    child: Child, tiny_model: Path, lora: Path, tmp_path: Path, build: str
) -> None:
    merged = write_merged(tmp_path / "merged.gguf", make_pairs(), 0.7)
    result = child(SAME_AS_MERGED, tiny_model, merged, lora, 0.7, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_an_adapter_of_the_token_embedding(
    child: Child, tiny_model: Path, tmp_path: Path, build: str
) -> None:
    """Its A and B are swapped; the oldest build refuses it."""
    rng = np.random.default_rng(5)
    a = rng.normal(0, 0.5, (259, RANK)).astype(np.float32)
    b = rng.normal(0, 0.5, (N_EMBD, RANK)).astype(np.float32)
    lora = write_lora(tmp_path / "a.gguf", {"token_embd.weight": (a, b)})
    merged = tmp_path / "merged.gguf"

    def edit(writer: gguf.GGUFWriter) -> None:
        data = writer.tensors[0]["token_embd.weight"].tensor
        data += (ALPHA / RANK * a @ b.T).astype(np.float32)

    write_tiny(merged, edit=edit)
    result = child(SAME_AS_MERGED, tiny_model, merged, lora, 1.0, LLAMA_CFFI_BUILD=build)
    if build == OLD:
        assert "incorrect shape" in result.stderr
    else:
        assert (result.returncode, result.stderr) == (0, ""), result.stderr


def test_two_adapters(model: Model, lora: Path, tmp_path: Path) -> None:
    other = write_lora(tmp_path / "b.gguf", make_pairs(4))
    both: Pairs = {  # of rank 8, so alpha / rank is half of what it was
        name: (np.concatenate([a, a2]), np.concatenate([2 * b, 2 * -0.5 * b2], axis=1))
        for (name, (a, b)), (a2, b2) in zip(
            make_pairs().items(), make_pairs(4).values(), strict=True
        )
    }
    one = write_lora(tmp_path / "both.gguf", both)
    context = Context(model, n_ctx=64, n_threads=1)
    context.set_adapters({LoraAdapter(model, one): 1.0})
    expected = logits(context)
    context.set_adapters({LoraAdapter(model, lora): 1.0, LoraAdapter(model, other): -0.5})
    assert np.allclose(logits(context), expected, atol=1e-3)
    gc.collect()  # only the context refers to them
    assert np.allclose(logits(context), expected, atol=1e-3)


def test_adapters_that_cannot_be_set(model: Model, lora: Path, tiny_model: Path) -> None:
    context = Context(model, n_ctx=64, n_threads=1)
    adapter = LoraAdapter(model, lora)
    before = logits(context)
    for scale in (float("nan"), float("inf"), "x", None, 1e9):
        with pytest.raises(ValidationError, match="scale"):
            context.set_adapters({adapter: scale})  # type: ignore[dict-item]
    with Model(tiny_model) as other, pytest.raises(ValidationError, match="another model"):
        context.set_adapters({LoraAdapter(other, lora): 1.0})
    assert np.array_equal(logits(context), before)
    adapter.close()
    with pytest.raises(ValidationError, match="closed"):
        context.set_adapters({adapter: 1.0})
    adapter = LoraAdapter(model, lora)
    context.set_adapters({adapter: 1.0})
    context.close()
    adapter.close()
    with pytest.raises(ValidationError, match="closed"):
        context.set_adapters({})
    model.close()
    with pytest.raises(ValidationError, match="closed"):
        LoraAdapter(model, lora)


def test_metadata(model: Model, tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_string("general.name", "Ada")
        writer.add_key_value(
            "adapter.alora.invocation_tokens",
            [5, 6, 7],
            gguf.GGUFValueType.ARRAY,
            sub_type=gguf.GGUFValueType.UINT32,
        )

    adapter = LoraAdapter(model, write_lora(tmp_path / "a.gguf", make_pairs(), edit=edit))
    assert adapter.metadata["general.name"] == "Ada"
    assert adapter.invocation_tokens == [5, 6, 7]
    plain = LoraAdapter(model, write_lora(tmp_path / "b.gguf", make_pairs()))
    assert plain.invocation_tokens == []


EDITS: dict[str, Callable[[gguf.GGUFWriter], object]] = {
    "no adapter": lambda w: w.kv_data[0].pop("general.type"),
    "no lora": lambda w: w.kv_data[0].pop("adapter.type"),
    "alpha is F64": lambda w: (
        w.kv_data[0].pop("adapter.lora.alpha"),
        w.add_float64("adapter.lora.alpha", 8.0),
    ),
    "type is a number": lambda w: (
        w.kv_data[0].pop("adapter.type"),
        w.add_uint32("adapter.type", 1),
    ),
    "a half is missing": lambda w: w.tensors[0].pop("output.weight.lora_b"),
    "half of every pair": lambda w: [
        w.tensors[0].pop(name) for name in list(w.tensors[0]) if name.endswith("b")
    ],
    "no tensors": lambda w: w.tensors[0].clear(),
    "a model": lambda w: w.kv_data[0].update(
        {"general.type": gguf.gguf_writer.GGUFValue("model", gguf.GGUFValueType.STRING)}
    ),
    "invocation tokens of text": lambda w: w.add_array("adapter.alora.invocation_tokens", ["a"]),
    "invocation tokens that are one": lambda w: w.add_uint32("adapter.alora.invocation_tokens", 1),
    "odd tensor": lambda w: w.add_tensor("blk.0.attn_q.bias", np.ones(64, np.float32)),
}


def broken(kind: str, path: Path) -> Path:
    pairs = make_pairs()
    a, b = pairs["blk.0.attn_q.weight"]
    if kind == "unknown tensor":
        pairs["blk.7.attn_q.weight"] = (a, b)
    elif kind == "wrong width":
        pairs["blk.0.attn_q.weight"] = (a[:, :32].copy(), b)
    elif kind == "ranks differ":
        pairs["blk.0.attn_q.weight"] = (a[:2].copy(), b)
    elif kind == "three dimensions":
        pairs["blk.0.attn_q.weight"] = (np.stack([a, a]), np.stack([b, b]))
    elif kind == "integers":
        pairs["blk.0.attn_q.weight"] = (a.astype(np.int32), b)  # type: ignore[assignment]
    elif kind == "other rows":
        pairs["blk.0.attn_q.weight"] = (a, b[:32].copy())
    elif kind == "long name":
        pairs["blk.0." + "x" * 60] = (a, b)
    elif kind == "embedding, ranks differ":
        shape = (259, 5)
        pairs["token_embd.weight"] = (np.ones(shape, np.float32), np.ones((64, 4), np.float32))
    elif kind == "embedding, wrong way round":
        pairs["token_embd.weight"] = (np.ones((4, 64), np.float32), np.ones((259, 4), np.float32))
    architecture = "gemma" if kind == "another architecture" else "llama"
    write_lora(path, pairs, architecture=architecture, edit=EDITS.get(kind))
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "empty":
        path.write_bytes(b"")
    return path


KINDS = (
    "another architecture",
    "no adapter",
    "no lora",
    "alpha is F64",
    "type is a number",
    "a half is missing",
    "unknown tensor",
    "odd tensor",
    "half of every pair",
    "no tensors",
    "a model",
    "invocation tokens of text",
    "invocation tokens that are one",
    "other rows",
    "wrong width",
    "ranks differ",
    "three dimensions",
    "integers",
    "long name",
    "embedding, ranks differ",
    "embedding, wrong way round",
    "cut off",
    "empty",
)


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_broken_adapters(child: Child, tiny_model: Path, tmp_path: Path, build: str) -> None:
    for kind in KINDS:
        broken(kind, tmp_path / f"{kind}.gguf")
    code = """
        import sys
        from pathlib import Path
        from llama_cffi import ModelLoadError
        from llama_cffi.binding import Batch, Context, LoraAdapter, Model
        model = Model(sys.argv[1])
        for path in sorted(Path(sys.argv[2]).glob("*.gguf")):
            try:
                adapter = LoraAdapter(model, path)
            except ModelLoadError as e:
                assert str(path) in str(e) and "no reason" not in str(e), e
                print(path.stem)
        context = Context(model, n_ctx=64, n_threads=1)
        batch = Batch(3)
        batch.fill([1, 2, 3], 0)
        context.decode(batch)
    """
    result = child(code, tiny_model, tmp_path, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert result.stdout.splitlines() == sorted(KINDS)


# Types of ggml that are not of weights: activations, storage, and weights that old builds repacked.
NO_WEIGHTS = (4, 9, 15, *range(24, 29), *range(31, 34), *range(36, 39), 99, 2**32 - 1)


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_types_that_cannot_be_multiplied(
    child: Child, tiny_model: Path, tmp_path: Path, build: str
) -> None:
    """C loads them, and aborts or reads past the end when it computes."""
    name = "blk.0.attn_q.weight"
    whole = decode(write_lora(tmp_path / "a.gguf", {name: make_pairs()[name]}).read_bytes())
    for kind in NO_WEIGHTS:
        for i in (0, 1):
            adapter = deepcopy(whole)
            adapter.tensors[i].kind = kind
            adapter.tensors[i].shape[1 - i] = 256  # the rank, so that rows are whole blocks
            adapter.tensors[i].data = bytes(256 * 64 * 8)
            adapter.tensors[1 - i].shape[i] = 256
            adapter.tensors[1 - i].data = bytes(256 * 64 * 4)
            (tmp_path / f"{kind}-{i}.gguf").write_bytes(adapter.encode())
    (tmp_path / "a.gguf").unlink()
    code = """
        import sys
        from pathlib import Path
        from llama_cffi import ModelLoadError
        from llama_cffi.binding import LoraAdapter, Model
        model = Model(sys.argv[1])
        for path in Path(sys.argv[2]).glob("*.gguf"):
            try:
                LoraAdapter(model, path)
            except ModelLoadError as e:
                print(path.stem, "multiplied" in str(e) or "has the shape" in str(e))
    """
    result = child(code, tiny_model, tmp_path, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert sorted(result.stdout.split("\n")[:-1]) == sorted(
        f"{kind}-{i} True" for kind in NO_WEIGHTS for i in (0, 1)
    )


def test_refused_adapters_leave_nothing_behind(
    child: Child, tiny_model: Path, lora: Path, tmp_path: Path
) -> None:
    """The oldest build has place for 64, and leaked what it refused."""
    for kind in ("a half is missing", "wrong width", "unknown tensor", "no adapter"):
        broken(kind, tmp_path / f"{kind}.gguf")
    code = """
        import sys
        from pathlib import Path
        from llama_cffi import ModelLoadError
        from llama_cffi.binding import LoraAdapter, Model
        model, n = Model(sys.argv[1]), 0
        for path in sorted(Path(sys.argv[3]).glob("*.gguf")) * 40:
            try:
                LoraAdapter(model, path)
            except ModelLoadError:
                n += 1
        print(n, LoraAdapter(model, sys.argv[2]).n_pairs)
    """
    result = child(code, tiny_model, lora, tmp_path, LLAMA_CFFI_BUILD=OLD)
    assert (result.stdout, result.stderr) == ("160 3\n", "")


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_more_adapters_than_a_graph_can_hold(child: Child, tmp_path: Path, build: str) -> None:
    """The middle build sizes its graph without them and aborts on one node too many."""
    model = write_tiny(tmp_path / "deep.gguf", n_layer=40, n_embd=32)
    ones = {"attn_q": (32, 32), "attn_k": (32, 32), "attn_v": (32, 32), "attn_output": (32, 32)}
    ones |= {"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
    pairs = {
        f"blk.{i}.{part}.weight": (np.ones((2, c), np.float32), np.ones((r, 2), np.float32))
        for i in range(40)
        for part, (r, c) in ones.items()
    }
    path = write_lora(tmp_path / "lora.gguf", pairs)
    code = """
        import sys
        from llama_cffi import ValidationError
        from llama_cffi.binding import Batch, Context, LoraAdapter, Model
        model = Model(sys.argv[1])
        context = Context(model, n_ctx=64, n_threads=1, flash_attn=False)
        adapters, batch = {}, Batch(3)
        for n in range(8):
            adapters[LoraAdapter(model, sys.argv[2])] = 0.001
            try:
                context.set_adapters(adapters)
            except ValidationError as e:
                assert "nodes" in str(e), e
                break
            context.memory.clear()
            batch.fill([1, 2, 3][: 1 + n % 3], 0)
            context.decode(batch)
        print(len(adapters))
    """
    result = child(code, model, path, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert int(result.stdout) >= 2


def write_directions(path: Path, rows: dict[str, NDArray[np.float32]]) -> Path:
    writer = gguf.GGUFWriter(path, "controlvector")
    for name, data in rows.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


CONTROL = """
    import sys
    import numpy as np
    from llama_cffi.binding import Batch, Context, Model, load_control_vector
    def rows(context):
        context.memory.clear()
        batch = Batch(3)
        batch.fill([1, 2, 3], 0)
        context.decode(batch)
        found = [context.logits().copy()]
        batch.fill([4], 3)
        context.decode(batch)
        return np.array([*found, context.logits()])
    model = Model(sys.argv[1])
    context = Context(model, n_ctx=64, n_threads=1)
    before = rows(context)
    vector = load_control_vector(model, sys.argv[2])
    # The last layer's output goes through the norm into the logits.
    context.set_control_vector(vector)
    with_it = rows(context)
    assert not np.allclose(with_it, before, atol=0.1)
    context.set_control_vector(2 * vector)
    twice = rows(context)
    assert not np.allclose(twice, with_it, atol=0.1)
    context.set_control_vector(np.zeros_like(vector))
    assert np.allclose(rows(context), before, atol=1e-5)
    context.set_control_vector(vector, 1, 1)
    assert np.allclose(rows(context), with_it, atol=1e-5)
    batch = Batch(1)
    batch.fill([4], 4)
    context.decode(batch)
    row = context.logits().copy()
    context.set_control_vector(None)
    context.memory.seq_rm(0, 4)
    context.decode(batch)  # the same graph but for the vector
    assert not np.allclose(context.logits(), row, atol=1e-2)
    assert np.allclose(rows(context), before, atol=1e-5)
"""


@pytest.mark.parametrize("build", [OLD, MIDDLE, "npm:3.17.1", NEWEST])
def test_control_vector(child: Child, tiny_model: Path, tmp_path: Path, build: str) -> None:
    direction = np.random.default_rng(0).normal(0, 1, N_EMBD).astype(np.float32)
    path = write_directions(tmp_path / "v.gguf", {"direction.1": direction})
    result = child(CONTROL, tiny_model, path, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr


@pytest.mark.parametrize("build", ["npm:3.10.0", "npm:3.12.0"])
def test_control_vector_of_a_context_that_pools(child: Child, tiny_model: Path, build: str) -> None:
    """Rebuilding the graph must not pool: C aborts on few tokens or without a head."""
    code = """
        import sys
        import numpy as np
        from llama_cffi.binding import Batch, Context, Model
        model, batch = Model(sys.argv[1]), Batch(2)
        for pooling in ("none", "mean", "last", "cls", "rank"):
            context = Context(model, n_ctx=64, n_threads=1, n_seq_max=2, pooling=pooling)
            for pos in (0, 2):
                batch.fill([1, 2], pos, 1)
                context.decode(batch)
                context.set_control_vector(np.ones((1, 64), np.float32))
            print(context.logits().argmax())
    """
    result = child(code, tiny_model, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert len(set(result.stdout.split())) == 1


@pytest.mark.parametrize("build", ["npm:3.12.0", MIDDLE, "npm:3.17.1", NEWEST])
def test_no_graph_of_before_runs_again(
    child: Child, tiny_model: Path, tmp_path: Path, build: str
) -> None:
    """Adapters come, go and are freed, and attention switches, in any order between decodes."""
    pairs = {"blk.0.attn_q.weight": (np.ones((2, N_EMBD)), np.ones((N_EMBD, 2)))}
    lora = write_lora(
        tmp_path / "lora.gguf",
        {k: (a.astype(np.float32), b.astype(np.float32)) for k, (a, b) in pairs.items()},
    )
    code = """
        import random, sys
        import numpy as np
        from llama_cffi.binding import Batch, Context, LoraAdapter, Model
        from llama_cffi.errors import DecodeAbortedError
        model, rng = Model(sys.argv[1]), random.Random(3)
        vector = np.random.default_rng(0).normal(0, 1, (1, 64)).astype(np.float32)
        def logits(context, n):
            context.memory.clear()
            batch = Batch(3)
            batch.fill([1, 2, 3][:n], 0)
            context.decode(batch)
            return context.logits().copy()
        for _ in range(6):
            context, other = (Context(model, n_ctx=64, n_threads=1) for _ in range(2))
            adapter, keeper = None, LoraAdapter(model, sys.argv[2])
            scale, steered, causal = 0, 0, True
            for _ in range(40):
                step = rng.randrange(7)
                if step == 0 and adapter is None:
                    adapter, scale = LoraAdapter(model, sys.argv[2]), rng.choice([0.5, 1.0])
                    context.set_adapters({adapter: scale})
                elif step == 1 and adapter is not None:
                    adapter.close()
                    adapter, scale = None, 0
                elif step == 2:
                    steered = 1 - steered
                    context.set_control_vector(vector if steered else None)
                elif step == 3:
                    causal = not causal
                    context.set_causal_attn(causal)
                elif step == 4:
                    context.abort_flag.set()
                    try:
                        logits(context, rng.choice([1, 3]))
                    except DecodeAbortedError:
                        context.abort_flag.clear()
                else:
                    n = rng.choice([1, 1, 3])
                    other.close()
                    other = Context(model, n_ctx=64, n_threads=1)
                    other.set_adapters({keeper: scale} if scale else {})
                    other.set_control_vector(vector if steered else None)
                    other.set_causal_attn(causal)
                    assert np.allclose(logits(context, n), logits(other, n), atol=1e-4)
        print("same")
    """
    result = child(code, tiny_model, lora, LLAMA_CFFI_BUILD=build, MALLOC_PERTURB_="165")
    assert (result.returncode, result.stdout) == (0, "same\n"), result.stderr


def test_control_vectors_that_are_refused(model: Model, tmp_path: Path) -> None:
    context = Context(model, n_ctx=64, n_threads=1)
    good = np.zeros((1, N_EMBD), np.float32)
    for vector in (
        good[0],
        np.zeros((2, N_EMBD)),
        np.zeros((1, N_EMBD + 1)),
        np.full((1, N_EMBD), np.nan),
        np.full((1, N_EMBD), np.inf),
        np.zeros((0, N_EMBD)),
    ):
        with pytest.raises(ValidationError, match="finite"):
            context.set_control_vector(vector)
    for layers in ((0, 1), (2, 2), (1, 2), (1, 0), (1.5, 1)):
        with pytest.raises(ValidationError, match="layer"):
            context.set_control_vector(good, *layers)  # type: ignore[arg-type]
    files = {
        "none": {"other": good[0]},
        "narrow": {"direction.1": good[0][:8].copy()},
        "deep": {"direction.2": good[0]},
        "zeroth": {"direction.0": good[0]},
        "no number": {"direction.1": good[0], "direction.": good[0]},
        "zeros before": {"direction.1": good[0], "direction.01": good[0]},
        "another digit": {"direction.1": good[0], "direction.\u0661": good[0]},
        "5,000 digits": {"direction.1": good[0], "direction." + "9" * 5000: good[0]},
        "half": {"direction.1": good[0].astype(np.float16)},
    }
    for name, rows in files.items():
        with pytest.raises(ModelLoadError, match="control vector"):
            load_control_vector(model, write_directions(tmp_path / name, rows))  # type: ignore[arg-type]
    context.close()
    with pytest.raises(ValidationError, match="closed"):
        context.set_control_vector(good)

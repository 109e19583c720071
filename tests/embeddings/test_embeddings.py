from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.odd_models import write_recurrent
from support.tiny_encoders import (
    N_POSITIONS,
    bert_embeddings,
    t5_encoded,
    t5_logits,
    write_bert,
    write_t5,
)

from llama_cffi.binding import Batch, Context, Model
from llama_cffi.errors import DecodeAbortedError, ValidationError

TOKENS = [5, 9, 101, 3, 7]
CLOSE = 2e-2  # C computes GELU and the cache in half precision


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    write_bert(folder / "bert.gguf")
    write_bert(folder / "rank.gguf", pooling=gguf.PoolingType.RANK, head=True)
    write_bert(folder / "odd.gguf", pooling=gguf.PoolingType(4))
    write_t5(folder / "t5.gguf")
    write_t5(folder / "t5encoder.gguf", decoder=False)
    write_recurrent(folder / "mamba.gguf")
    return folder


@pytest.fixture(scope="module")
def llama(tiny_model: Path) -> Iterator[Model]:
    with Model(tiny_model) as model:
        yield model


def batch_of(*sequences: list[int], capacity: int = 64) -> Batch:
    batch = Batch(capacity)
    for seq_id, tokens in enumerate(sequences):
        for pos, token in enumerate(tokens):
            batch.add(token, pos, [seq_id])
    return batch


def test_bert_is_what_numpy_computes(tmp_path: Path) -> None:
    path, weights = write_bert(tmp_path / "bert.gguf")
    expected = [bert_embeddings(weights, tokens) for tokens in (TOKENS, TOKENS[:2])]
    with Model(path) as model:
        context = Context(model, n_threads=1, n_seq_max=2)
        assert (context.embeddings, context.pooling) == (True, "none")
        context.decode(batch_of(TOKENS, TOKENS[:2]))
        got = [context.embedding(i).copy() for i in range(7)]
        assert np.allclose(got, np.concatenate(expected), atol=CLOSE)
        assert np.array_equal(context.embedding(), got[6])
        assert np.array_equal(context.embedding(-7), got[0])
        for pooling, pick in (
            ("mean", lambda e: e.mean(0)),
            ("cls", lambda e: e[0]),
            ("last", lambda e: e[-1]),
        ):
            pooled = Context(model, n_threads=1, n_seq_max=2, pooling=pooling)
            pooled.decode(batch_of(TOKENS, TOKENS[:2]))
            for seq_id in (0, 1):
                result = pooled.sequence_embedding(seq_id)
                assert result.shape == (model.n_embd,)
                assert np.allclose(result, pick(expected[seq_id]), atol=CLOSE)


def test_rank(tmp_path: Path) -> None:
    path, w = write_bert(tmp_path / "rank.gguf", pooling=gguf.PoolingType.RANK, head=True)
    with Model(path) as model:
        context = Context(model, n_threads=1)
        assert context.pooling == "rank"
        context.decode(batch_of(TOKENS))
        first = bert_embeddings(w, TOKENS)[0]
        hidden = np.tanh(w["cls.weight"] @ first + w["cls.bias"])
        score = w["cls.output.weight"] @ hidden + w["cls.output.bias"]
        assert context.sequence_embedding().shape == (1,)
        assert np.allclose(context.sequence_embedding(), score, atol=CLOSE)


def test_t5_is_what_numpy_computes(tmp_path: Path) -> None:
    path, weights = write_t5(tmp_path / "t5.gguf")
    with Model(path) as model:
        context = Context(model, n_threads=1, n_seq_max=2)
        for source in ([1, 2, 3, 4, 5, 6], [9, 8, 7]):
            context.memory.clear()
            context.encode(batch_of(source))
            batch = batch_of([0, 7, 8])
            batch.want_all()
            context.decode(batch)
            expected = t5_logits(weights, source, [0, 7, 8])
            assert np.allclose([context.logits(i) for i in range(3)], expected, atol=CLOSE)
        with pytest.raises(ValidationError, match=r"\[1\] were not encoded"):
            context.decode(batch_of([0], [0]))
        context.abort_flag.set()
        with pytest.raises(DecodeAbortedError):
            context.encode(batch_of([1, 2]))
        context.abort_flag.clear()
        context.memory.clear()
        with pytest.raises(ValidationError, match="encode first"):
            context.decode(batch_of([0]))


def test_encoder_only(tmp_path: Path) -> None:
    path, weights = write_t5(tmp_path / "encoder.gguf", decoder=False)
    expected = t5_encoded(weights, [1, 2, 3])
    with Model(path) as model:
        context = Context(model, n_threads=1)
        context.encode(batch_of([1, 2, 3]))
        assert np.allclose([context.embedding(i) for i in range(3)], expected, atol=CLOSE)
        pooled = Context(model, n_threads=1, pooling="mean")
        pooled.encode(batch_of([1, 2, 3]))
        assert np.allclose(pooled.sequence_embedding(), expected.mean(0), atol=CLOSE)


def test_embeddings_of_a_decoder(llama: Model) -> None:
    plain = Context(llama, n_ctx=256, n_threads=1, flash_attn=False)
    batch = batch_of(TOKENS)
    batch.want_all()
    plain.decode(batch)
    logits = plain.logits().copy()
    with pytest.raises(ValidationError, match="embeddings=True"):
        plain.embedding()
    plain.set_embeddings(True)
    with pytest.raises(ValidationError, match="embeddings=True"):
        plain.embedding()
    plain.memory.clear()
    plain.decode(batch_of(TOKENS))
    rows = [plain.embedding(i).copy() for i in range(5)]  # every token has one, flags or not
    assert np.allclose(plain.logits(4), logits, atol=1e-4)
    pooled = Context(
        llama, n_ctx=256, n_threads=1, embeddings=True, pooling="mean", flash_attn=False
    )
    pooled.decode(batch_of(TOKENS))
    assert np.allclose(pooled.sequence_embedding(), np.mean(rows, 0), atol=1e-4)
    plain.set_embeddings(False)
    with pytest.raises(ValidationError, match="embeddings=True"):
        plain.embedding()


def test_non_causal_attention(llama: Model) -> None:
    context = Context(llama, n_ctx=256, n_ubatch=8, n_threads=1)
    batch = batch_of(TOKENS)
    batch.want_all()
    context.decode(batch)
    causal = context.logits(0).copy()
    context.set_causal_attn(False)
    context.memory.clear()
    context.decode(batch)
    assert not np.allclose(context.logits(0), causal, atol=1e-2)  # it attends to the others now
    with pytest.raises(ValidationError, match="n_ubatch is 8"):
        context.decode(batch_of([1] * 9))
    made_so = Context(llama, n_ctx=256, n_ubatch=8, n_threads=1, attention="non_causal")
    made_so.decode(batch)
    assert np.allclose(made_so.logits(0), context.logits(0), atol=1e-4)


def test_available_outputs(models: Path, llama: Model) -> None:
    with Model(models / "bert.gguf") as bert:
        context = Context(bert, n_threads=1)
        for call in (context.embedding, context.sequence_embedding, context.logits):
            with pytest.raises(ValidationError):
                call()
        context.decode(batch_of(TOKENS))
        with pytest.raises(ValidationError, match="no logits"):
            context.logits()
        with pytest.raises(ValidationError, match="use embedding"):
            context.sequence_embedding()
        for i in (5, -6, 1.0, None):
            with pytest.raises(ValidationError):
                context.embedding(i)  # type: ignore[arg-type]
        pooled = Context(bert, n_threads=1, pooling="cls", n_seq_max=3)
        pooled.decode(batch_of(TOKENS, TOKENS))
        with pytest.raises(ValidationError, match="sequence_embedding"):
            pooled.embedding()
        with pytest.raises(ValidationError, match="sequence 2 had no token"):
            pooled.sequence_embedding(2)
        for seq_id in (3, -1, 0.5):
            with pytest.raises(ValidationError):
                pooled.sequence_embedding(seq_id)  # type: ignore[arg-type]
        context.close()
        for call in (context.embedding, context.sequence_embedding, context.logits):
            with pytest.raises(ValidationError):
                call()


def test_sequences_are_not_split(llama: Model) -> None:
    """Without a shared cache C splits the sequences, and the mean would be of a part."""
    for options in ({"pooling": "mean"}, {"attention": "non_causal"}):
        how = {"n_ctx": 512, "n_seq_max": 2, "n_threads": 1, "embeddings": True, **options}
        context = Context(llama, kv_unified=False, **how)  # type: ignore[arg-type]
        with pytest.raises(ValidationError, match="kv_unified=True"):
            context.decode(batch_of([1, 2, 3], [4, 5, 6, 7]))
        context.decode(batch_of([1, 2, 3]))
        Context(llama, kv_unified=True, **how).decode(batch_of([1, 2, 3], [4, 5]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        ("bert.gguf", {"embeddings": False}, "encoder"),
        ("bert.gguf", {"attention": "causal"}, "causal"),
        ("bert.gguf", {"pooling": "rank"}, "classification head"),
        ("odd.gguf", {}, "classification head"),
        ("bert.gguf", {"pooling": "max"}, "none, mean, cls, last, rank"),
        ("bert.gguf", {"pooling": "mean", "n_ubatch": 14, "n_seq_max": 4}, "multiple of"),
        ("rank.gguf", {"n_ubatch": 14, "n_seq_max": 4}, "multiple of"),
        ("t5.gguf", {"embeddings": True}, "decoder"),
        ("t5.gguf", {"n_seq_max": 2, "kv_unified": False}, "kv_unified"),
        ("t5encoder.gguf", {"embeddings": False}, "encoder"),
    ],
)
def test_contexts_that_are_refused(
    models: Path, name: str, options: dict[str, object], what: str
) -> None:
    with Model(models / name) as model, pytest.raises(ValidationError, match=what):
        Context(model, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("build", [OLD, "npm:3.10.0", MIDDLE, NEWEST])
def test_every_build_survives(child: Child, models: Path, tiny_model: Path, build: str) -> None:
    """What C aborts on in some build is refused in all; the rest works."""
    code = f"""
        import itertools, sys
        from pathlib import Path
        from llama_cffi import LlamaError
        from llama_cffi.binding import Batch, Context, Model
        done = refused = 0
        def attempt(f):
            global done, refused
            try:
                f()
                done += 1
            except LlamaError:
                refused += 1
        def batch(*sequences):
            made = Batch(64)
            for seq_id, n in sequences:
                for pos in range(n):
                    made.add(pos + 1, pos, [seq_id])
            return made
        for path in (*map(Path(sys.argv[1]).joinpath, ("bert.gguf", "rank.gguf", "odd.gguf",
                     "t5.gguf", "t5encoder.gguf", "mamba.gguf")), Path(sys.argv[2])):
            model = Model(path)
            for pooling, attention, embeddings in itertools.product(
                (None, "none", "mean", "cls", "last", "rank"),
                (None, "causal", "non_causal"), (None, True, False)):
                try:
                    context = Context(
                        model, n_ctx=64, n_ubatch=32, n_seq_max=4, n_threads=1, pooling=pooling,
                        attention=attention, embeddings=embeddings)
                except LlamaError:
                    refused += 1
                    continue
                for work in (lambda: context.encode(batch((0, 5))),
                             lambda: context.decode(batch((0, 5))),
                             lambda: context.decode(batch((3, 1))),
                             lambda: context.decode(batch((1, 3), (2, 7))),
                             lambda: context.decode(batch((3, 3), (0, 4))),
                             lambda: context.decode(batch((1, 33))),
                             lambda: context.encode(batch((0, 33))),
                             lambda: context.encode(batch((3, 1), (1, 2))),
                             lambda: context.set_embeddings(True),
                             lambda: context.decode(batch((0, 2))),
                             lambda: context.set_causal_attn(False),
                             lambda: context.decode(batch((0, 2))),
                             lambda: context.set_causal_attn(True),
                             lambda: context.set_embeddings(False)):
                    attempt(context.memory.clear)
                    attempt(work)
                    attempt(lambda: context.logits(0))
                    attempt(lambda: context.embedding(0))
                    attempt(lambda: [context.sequence_embedding(s) for s in range(4)])
                if model.n_ctx_train == {N_POSITIONS}:
                    last = Batch(1)
                    last.fill([1], {N_POSITIONS})
                    attempt(lambda: context.decode(last))
                context.close()
            model.close()
        assert done > 1000 and refused > 1000, (done, refused)
    """
    result = child(code, models, tiny_model, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr

"""Embedder: every kind of model against numpy; all-MiniLM-L6-v2 against PyTorch's vectors."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.minilm import minilm_model, references
from support.odd_models import write_recurrent, write_windowed
from support.tiny_encoders import (
    N_POSITIONS,
    Weights,
    bert_embeddings,
    t5_encoded,
    write_bert,
    write_t5,
)
from support.tiny_gguf import write_tiny

from llama_cffi import (
    ClosedError,
    ContextOverflowError,
    DecodeAbortedError,
    LlamaError,
    Model,
    ValidationError,
)
from llama_cffi.embeddings.embedder import Embedder, RerankResult, similarity

CLOSE = 2e-2  # C computes GELU in half precision
CLS, SEP = 101, 102
TOKENS = [[5, 9, 101, 3, 7], [5, 9], [1], [5, 9], list(range(104, 118))]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Model, Weights]]:
    path, weights = write_bert(tmp_path_factory.mktemp("bert") / "bert.gguf")
    with Model(path) as model:
        yield model, weights


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Model, Weights]]:
    path = tmp_path_factory.mktemp("rank") / "rank.gguf"
    _, weights = write_bert(path, pooling=gguf.PoolingType.RANK, head=True)
    with Model(path) as model:
        yield model, weights


@pytest.fixture(scope="module")
def llama(tiny_model: Path) -> Iterator[Model]:
    with Model(tiny_model) as model:
        yield model


def unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)  # type: ignore[no-any-return]


def embedder(model: Model, **options: object) -> Embedder:
    return Embedder(model, **{"n_threads": 1, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("n_ctx", [1, 6, 512])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_bert_is_what_numpy_computes(bert: tuple[Model, Weights], pooling: str, n_ctx: int) -> None:
    model, w = bert
    pick = {"mean": lambda e: e.mean(0), "cls": lambda e: e[0], "last": lambda e: e[-1]}[pooling]
    expected = np.stack([pick(bert_embeddings(w, tokens)) for tokens in TOKENS])
    with embedder(model, pooling=pooling, n_ctx=n_ctx) as made:
        got = np.asarray(made.embed_tokens(TOKENS, normalize=False))
        assert (got.shape, got.dtype) == ((5, model.n_embd), np.float32)
        assert np.allclose(got, expected, atol=CLOSE)
        assert np.allclose(made.embed_tokens(TOKENS), unit(got), atol=1e-5)
        single = np.concatenate([made.embed_tokens([t], normalize=False) for t in TOKENS])
        assert np.allclose(got, single, atol=1e-4)


def test_no_pooling_gives_each_token(bert: tuple[Model, Weights]) -> None:
    model, w = bert
    made = embedder(model)
    assert made.pooling == "none"
    got = made.embed_tokens(TOKENS, normalize=False)
    assert isinstance(got, list)
    for rows, tokens in zip(got, TOKENS, strict=True):
        assert rows.shape == (len(tokens), model.n_embd)
        assert np.allclose(rows, bert_embeddings(w, tokens), atol=CLOSE)
    got[1][0] = 7  # each is a copy, even for an input that occurs twice
    assert not np.allclose(got[1], got[3])
    assert made.embed_tokens([]) == []
    assert np.allclose(np.linalg.norm(made.embed_tokens(TOKENS)[0], axis=1), 1, atol=1e-5)


def test_t5_encoder(tmp_path: Path) -> None:
    path, w = write_t5(tmp_path / "t5.gguf", decoder=False)
    expected = np.stack([t5_encoded(w, tokens).mean(0) for tokens in TOKENS])
    with Model(path) as model:
        got = embedder(model, pooling="mean").embed_tokens(TOKENS, normalize=False)
        assert np.allclose(got, expected, atol=CLOSE)


@pytest.mark.parametrize("kind", ["llama", "windowed", "recurrent"])
def test_decoders(tmp_path: Path, kind: str) -> None:
    write = {"llama": write_tiny, "windowed": write_windowed, "recurrent": write_recurrent}[kind]
    texts = ["Hello", "a longer text, of more tokens than the sliding window has", "x", "Hello"]
    with Model(write(tmp_path / "model.gguf")) as model:
        each = embedder(model).embed(texts, normalize=False)
        for pooling in ("last", "mean"):
            made = embedder(model, pooling=pooling, n_ctx=70)
            got = made.embed(texts, normalize=False)
            expected = [e[-1] if pooling == "last" else e.mean(0) for e in each]
            assert np.allclose(got, expected, atol=1e-3)


def test_many_texts_in_order(llama: Model) -> None:
    texts = [f"text {i} {'x' * (i % 17)}" for i in range(200)]
    made = embedder(llama, pooling="mean", n_ctx=128)
    seen: list[float] = []
    got = np.asarray(made.embed(texts, progress=seen.append))
    alone = np.concatenate([made.embed([text]) for text in texts[::20]])
    assert np.allclose(got[::20], alone, atol=1e-4)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    with pytest.raises(DecodeAbortedError, match=r"stopped it after \d+ of 200"):
        made.embed(texts, progress=lambda done: done < 0.3)


def test_the_context_grows_to_the_longest_input(llama: Model) -> None:
    made = embedder(llama, pooling="mean", n_ctx=8)
    whole = embedder(llama, pooling="mean").embed(["x" * 200])
    assert np.allclose(made.embed(["ab", "x" * 200, "cd"])[1], whole[0], atol=1e-4)


def test_after_a_failed_allocation_the_embedder_still_works(tmp_path: Path) -> None:
    with Model(write_tiny(tmp_path / "long.gguf", n_ctx=2**21)) as model:
        made = embedder(model, pooling="mean")
        before = made.embed(["a", "b"])
        with pytest.raises(LlamaError, match="GiB"):
            made.embed_tokens([[1] * 1_000_000])
        assert np.array_equal(made.embed(["a", "b"]), before)


def test_too_long(bert: tuple[Model, Weights]) -> None:
    model, _ = bert
    made = embedder(model, pooling="mean")
    long = [CLS, *[104 + i % 10 for i in range(N_POSITIONS)], SEP]
    with pytest.raises(ContextOverflowError, match=r"text 1 has 66 tokens .* supports 64"):
        made.embed_tokens([[CLS], long])
    cut = made.embed_tokens([long], truncate=True)
    assert np.allclose(cut, made.embed_tokens([[*long[: N_POSITIONS - 1], SEP]]), atol=1e-6)
    with pytest.raises(ContextOverflowError):
        made.embed(["a " * 80])
    assert np.asarray(made.embed(["a " * 80], truncate=True)).shape == (1, model.n_embd)


def test_empty_texts(bert: tuple[Model, Weights], llama: Model) -> None:
    model, _ = bert
    made = embedder(model, pooling="mean")
    assert np.allclose(made.embed(["", " "])[0], made.embed_tokens([[CLS, SEP]])[0], atol=1e-4)
    assert np.asarray(made.embed([])).shape == (0, model.n_embd)
    of_llama = embedder(llama, pooling="last")
    assert np.array_equal(of_llama.embed([""]), of_llama.embed_tokens([[llama.vocab.bos]]))
    with pytest.raises(ValidationError, match="text 1 has no token"):
        made.embed_tokens([[1], []])


def test_bad_input(bert: tuple[Model, Weights], llama: Model, tmp_path: Path) -> None:
    model, _ = bert
    made = embedder(model, pooling="mean")
    for texts in ("one text", b"one", None, 1, [None], [1], ["\ud800"]):
        with pytest.raises(ValidationError):
            made.embed(texts)  # type: ignore[arg-type]
    for tokens in ([[120]], [[-1]], [[1.5]], [["a"]], [1, 2], ["ab"], None):
        with pytest.raises(ValidationError):
            made.embed_tokens(tokens)  # type: ignore[arg-type]
    for options in ({"pooling": "max"}, {"pooling": "rank"}, {"n_ctx": 0}, {"n_threads": -1}):
        with pytest.raises(ValidationError):
            embedder(model, **options)
    with pytest.raises(ValidationError, match=r"head \(cls.*pooling='rank'"):
        made.rerank("q", ["d"])
    path, _ = write_t5(tmp_path / "t5.gguf")
    with Model(path) as both, pytest.raises(ValidationError, match="an encoder and a decoder"):
        embedder(both)
    made.close()
    made.close()
    with pytest.raises(ValidationError, match="closed"):
        made.embed(["a"])


def test_concurrent_calls(llama: Model) -> None:
    made = embedder(llama, pooling="mean", n_ctx=16)
    texts = [["a"], ["b" * 40], ["c", "dd"]]
    expected = [np.asarray(made.embed(t)) for t in texts]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(5):
            if not np.allclose(made.embed(texts[i]), expected[i], atol=1e-5):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_close_ends_running_and_waiting_calls(llama: Model) -> None:
    made, started = embedder(llama, pooling="mean"), threading.Event()
    texts = [f"{i} letters" for i in range(3_000)]

    def work() -> None:
        with pytest.raises(ClosedError):
            made.embed(texts, progress=lambda _: started.set())

    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(work) for _ in range(2)]
        assert started.wait(60)
        made.close()
        for call in calls:
            call.result(60)


def test_progress_may_close_it_but_not_call_it(llama: Model) -> None:
    made = embedder(llama, pooling="mean", n_ctx=16)
    texts = ["a" * 12, "b" * 12]
    expected = made.embed(texts)
    refused = pytest.raises(ValidationError, match="busy in this thread")

    def calls(_: float) -> None:
        with refused:
            made.embed(["c"])

    assert np.allclose(made.embed(texts, progress=calls), expected, atol=1e-5)
    with pytest.raises(ClosedError):
        made.embed(texts, progress=lambda _: made.close())


def score(w: Weights, tokens: list[int]) -> float:
    hidden = np.tanh(w["cls.weight"] @ bert_embeddings(w, tokens)[0] + w["cls.bias"])
    return float((w["cls.output.weight"] @ hidden + w["cls.output.bias"])[0])


def letters(text: str) -> list[int]:
    """The tokens of single letters in the tiny BERT."""
    return [104 + ord(c) - ord("a") for c in text.split()]


def test_rerank_is_what_numpy_computes(ranker: tuple[Model, Weights]) -> None:
    model, w = ranker
    made = embedder(model)
    documents = ["a b c", "", "d", "e f g h i j", "d"]
    got = made.rerank("k l", documents)
    expected = [score(w, [CLS, *letters("k l"), SEP, *letters(d), SEP]) for d in documents]
    assert sorted(r.index for r in got) == [0, 1, 2, 3, 4]
    assert [r.score for r in got] == sorted((r.score for r in got), reverse=True)
    for result in got:
        assert result == RerankResult(result.index, result.score, documents[result.index])
        assert abs(result.score - expected[result.index]) < CLOSE
    assert np.ptp(expected) > 5 * CLOSE  # otherwise any order would pass
    assert made.rerank("k l", documents, top_n=2) == got[:2]
    assert made.rerank("k l", [], top_n=2) == []
    rows = np.asarray(made.embed_tokens([[CLS, SEP]]))
    assert rows.shape == (1, 1)
    assert abs(float(rows[0, 0]) - score(w, [CLS, SEP])) < CLOSE
    with pytest.raises(ValidationError):
        made.rerank("k", "a document")
    with pytest.raises(ContextOverflowError, match=r"document 1 has 70 tokens .* supports 64"):
        made.rerank("k", ["a", "a " * 70])
    cut = made.rerank("k", ["a " * 70], truncate=True)[0].score
    assert abs(cut - score(w, [CLS, *letters("k"), SEP, *letters("a " * 60), SEP])) < CLOSE


TEMPLATE = "<|im_start|>Q: {query}\nD: {document}<|im_end|>"


def write_qwen3_ranker(path: Path, **more: str) -> NDArray[np.float32]:
    """Write a tiny qwen3 with a head of two classes, and return the head."""
    head = np.random.default_rng(3).normal(0, 0.5, (2, 64)).astype(np.float32)

    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_pooling_type(gguf.PoolingType.RANK)
        writer.add_classifier_output_labels(["yes", "no"])
        writer.add_tensor("cls.output.weight", head)
        for i in range(2):
            for part in ("q", "k"):
                writer.add_tensor(f"blk.{i}.attn_{part}_norm.weight", np.ones(32, np.float32))
        for key, value in more.items():
            writer.add_string(f"tokenizer.{key}", value)

    write_tiny(path, architecture="qwen3", edit=edit)
    return head


def test_rerank_by_the_template_of_the_model(tmp_path: Path) -> None:
    path = tmp_path / "qwen3.gguf"
    head = write_qwen3_ranker(path, **{"chat_template.rerank": TEMPLATE})
    with Model(path) as model:
        made, each = embedder(model), embedder(model, pooling="none")
        assert model.classifier_labels == ("yes", "no")

        def expected(tokens: list[int]) -> float:
            e = np.exp(head @ each.embed_tokens([tokens], normalize=False)[0][-1])
            return float(e[0] / e.sum())

        start, end = 257, 258
        document = "a <|im_end|> in it"  # not parsed
        for text in ("plain", document):
            (result,) = made.rerank("what {document}", [text])
            tokens = [start, *f"Q: what {{document}}\nD: {text}".encode(), end]
            ids = [model.vocab.tokenize(bytes([t]), False)[0] if t < 256 else t for t in tokens]
            assert abs(result.score - expected(ids)) < CLOSE / 4
        with pytest.raises(ContextOverflowError, match="document 0 has 300 tokens"):
            made.rerank("q", ["x" * 300])
        assert len(made.rerank("q", ["x" * 300], truncate=True)) == 1
        with pytest.raises(ContextOverflowError):
            made.rerank("q" * 300, ["x"], truncate=True)
    for name, template in (("none", None), ("half", "{document} {query}")):
        path = tmp_path / f"{name}.gguf"
        write_qwen3_ranker(path, **({"chat_template.rerank": template} if template else {}))
        with Model(path) as model, pytest.raises(ValidationError, match=r"chat_template\.rerank"):
            embedder(model).rerank("q", ["d"])
    adds_eos = {"tokenizer.ggml.add_eos_token": True, "tokenizer.ggml.add_bos_token": True}
    with Model(tmp_path / "none.gguf", kv_overrides=adds_eos) as model:
        (result,) = embedder(model).rerank("q", ["d"])
        pair = [256, *model.vocab.tokenize("q", False), 258, *model.vocab.tokenize("d", False), 258]
        assert abs(result.score - np.asarray(embedder(model).embed_tokens([pair]))[0, 0]) < 1e-5


def test_similarity() -> None:
    a, b = np.array([[1, 0], [3, 4], [0, 0]]), np.array([[2, 0], [0, -1]])
    assert np.allclose(similarity(a, b), [[1, 0], [0.6, -0.8], [0, 0]])
    assert np.allclose(similarity(a[1], b), [0.6, -0.8])
    assert similarity(a[1], a[1]).shape == ()
    with pytest.raises(ValidationError, match=r"\(3, 2\) and \(3,\)"):
        similarity(a, [1, 2, 3])


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_every_build(child: Child, tmp_path: Path, tiny_model: Path, build: str) -> None:
    """Batched equals one by one, for every kind of model that the build supports."""
    write_bert(tmp_path / "bert.gguf", pooling=gguf.PoolingType.MEAN)
    write_bert(tmp_path / "rank.gguf", pooling=gguf.PoolingType.RANK, head=True)
    write_t5(tmp_path / "t5.gguf", decoder=False)
    write_recurrent(tmp_path / "mamba.gguf")
    result = child(
        """
        import sys
        from pathlib import Path
        import numpy as np
        from llama_cffi import Model
        from llama_cffi.embeddings.embedder import Embedder
        texts = ["a b c", "", "d e", "f g h i j k l m n o p", "a", "d e"] * 12
        names = ["bert", "rank", "t5", "mamba"]
        for path in [*(Path(sys.argv[1]) / f"{n}.gguf" for n in names), Path(sys.argv[2])]:
            for pooling in ("none", "last", "rank" if path.stem == "rank" else "mean"):
                if path.stem == "t5" and pooling != "none":
                    continue  # the oldest build cannot pool encoder outputs
                made = Embedder(Model(path), pooling=pooling, n_threads=1, n_ctx=100)
                got = made.embed(texts)
                for i in range(6):
                    assert np.allclose(got[i], made.embed(texts[i : i + 1])[0], atol=1e-4)
                    assert np.allclose(got[i], got[i + 6], atol=1e-4)
        print("done")
        """,
        tmp_path,
        tiny_model,
        LLAMA_CFFI_BUILD=build,
    )
    assert (result.stdout, result.stderr) == ("done\n", "")


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_a_real_model_is_what_pytorch_computes(
    child: Child, shared_cache: Path, tmp_path: Path, build: str
) -> None:
    texts, _, vectors = references()
    source, target = tmp_path / "texts.json", tmp_path / "vectors.npy"
    source.write_text(json.dumps(texts), encoding="utf-8")
    result = child(
        """
        import json, sys
        import numpy as np
        from llama_cffi import Model
        from llama_cffi.embeddings.embedder import Embedder
        texts = json.load(open(sys.argv[2], encoding="utf-8"))
        made = Embedder(Model(sys.argv[1]), n_threads=1)
        assert (made.pooling, made.n_tokens_max) == ("mean", 512)
        np.save(sys.argv[3], made.embed(texts))
        """,
        minilm_model(shared_cache),
        source,
        target,
        timeout=900,  # with the kernels of an old processor, on a busy machine
        LLAMA_CFFI_BUILD=build,
    )
    assert (result.returncode, result.stderr) == (0, "")
    unrounded = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = (np.load(target) * unrounded).sum(1)
    assert cosines.min() > 0.9999, cosines

"""Scorer against one decode per token through the low-level API."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.odd_models import WINDOW, write_recurrent, write_windowed
from support.tiny_encoders import write_bert, write_t5
from support.tiny_gguf import write_tiny

from llama_cffi import Batch, Context, ContextOverflowError, Model, ValidationError
from llama_cffi.embeddings.scorer import Scorer, _groups
from llama_cffi.generation.logprobs import log_softmax
from llama_cffi.generation.prompt import common_prefix_length

CLOSE = 2e-2  # the cache is in half precision; batches of other sizes round otherwise
WRITE = {"llama": write_tiny, "windowed": write_windowed, "recurrent": write_recurrent}


@pytest.fixture(scope="module", params=list(WRITE))
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    path = tmp_path_factory.mktemp(request.param) / "model.gguf"
    with Model(WRITE[request.param](path)) as made:
        yield made


@pytest.fixture(scope="module")
def llama(tiny_model: Path) -> Iterator[Model]:
    with Model(tiny_model) as made:
        yield made


def plain(model: Model, tokens: Sequence[int]) -> list[float]:
    """Log-probabilities of `tokens[1:]`, one decode for each token."""
    found = []
    with Context(model, n_ctx=512, n_threads=1) as context:
        batch = Batch(1)
        for pos, token in enumerate(tokens[:-1]):
            batch.fill([token], pos)
            context.decode(batch)
            logits = context.logits().astype(np.float64)
            logits -= logits.max()
            found.append(float(logits[tokens[pos + 1]] - np.log(np.exp(logits).sum())))
    return found


def scorer(model: Model, **options: object) -> Scorer:
    return Scorer(model, **{"n_threads": 1, **options})  # type: ignore[arg-type]


def tokens_of(n: int, seed: int = 1) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, 259, n)]


@pytest.mark.parametrize("n", [1, 2, 7, 150])
def test_logprobs(model: Model, n: int) -> None:
    tokens = tokens_of(n)
    with scorer(model) as made:
        got = made.logprobs(tokens)
        assert (got.shape, got.dtype) == ((n - 1,), np.float64)
        assert np.allclose(got, plain(model, tokens), atol=CLOSE)
        assert np.array_equal(made.logprobs(tokens), got)  # nothing remains of the last call


def test_continuations_share_the_prompt(model: Model) -> None:
    prompt = tokens_of(WINDOW + 5)
    continuations = [tokens_of(n, seed) for seed, n in enumerate([1, 5, 40, 2, 40, 1, 3] * 4)]
    got = scorer(model).score_continuations(prompt, continuations)
    for score, tokens in zip(got, continuations, strict=True):
        expected = plain(model, prompt + tokens)[len(prompt) - 1 :]
        assert score.n_tokens == len(tokens) == len(score.per_token)
        assert np.allclose(score.per_token, expected, atol=CLOSE)
        assert math.isclose(score.logprob, sum(expected), abs_tol=CLOSE * len(tokens))


def test_batch_borders(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch has 32 tokens: prompt and continuations are split at odd places."""
    monkeypatch.setattr("llama_cffi.embeddings.scorer._LOGITS_BYTES", 1)
    tokens, continuations = tokens_of(100), [tokens_of(n, n) for n in (31, 33, 1, 64, 17)]
    made = scorer(model)
    assert np.allclose(made.logprobs(tokens), plain(model, tokens), atol=CLOSE)
    for score, more in zip(
        made.score_continuations(tokens, continuations), continuations, strict=True
    ):
        assert np.allclose(score.per_token, plain(model, tokens + more)[99:], atol=CLOSE)


def test_sequences_are_freed_for_the_next_group(llama: Model) -> None:
    prompt = tokens_of(250)
    continuations = [tokens_of(n, n) for n in (*[35] * 15, 500)]
    made = scorer(llama, n_ctx=1024)
    last = made.score_continuations(prompt, continuations)[-1]
    assert np.allclose(last.per_token, made.logprobs(prompt + continuations[-1])[249:], atol=CLOSE)


def test_perplexity_in_windows(model: Model) -> None:
    tokens = tokens_of(150)
    whole = math.exp(-np.mean(plain(model, tokens)))
    assert math.isclose(scorer(model).perplexity(tokens), whole, rel_tol=CLOSE)
    for n_ctx, stride in ((64, None), (64, 10), (64, 63), (150, 1), (149, None), (2, 1)):
        step = stride or n_ctx // 2
        logprobs, begin, done = [], 0, 1
        while done < len(tokens):  # each window starts empty
            logprobs += plain(model, tokens[begin : begin + n_ctx])[done - begin - 1 :]
            done, begin = min(begin + n_ctx, len(tokens)), begin + step
        assert len(logprobs) == 149
        got = scorer(model, n_ctx=n_ctx).perplexity(tokens, stride=stride)
        assert math.isclose(got, math.exp(-np.mean(logprobs)), rel_tol=CLOSE), (n_ctx, stride)


def test_every_window_starts_with_bos(tiny_model: Path) -> None:
    with Model(tiny_model, kv_overrides={"tokenizer.ggml.add_bos_token": True}) as model:
        bos, text = model.vocab.bos, "abcdefghijkl"
        assert bos is not None
        body = model.vocab.tokenize(text, add_special=False)
        assert model.vocab.tokenize(text) == [bos, *body]
        expected = plain(model, [bos, *body[:8]]) + plain(model, [bos, *body[4:]])[4:]
        got = scorer(model, n_ctx=9).perplexity(text)
        assert math.isclose(got, math.exp(-np.mean(expected)), rel_tol=CLOSE)
        assert scorer(model).perplexity("a") > 1  # BOS precedes it


def test_choices(llama: Model) -> None:
    made = scorer(llama)
    scores = made.score_continuations("The sky is", [" blue", " green", " no"])
    p = made.choice_probabilities("The sky is", [" blue", " green", " no"])
    assert math.isclose(sum(p), 1)
    assert np.allclose(np.log(p[0]) - np.log(p[1]), scores[0].logprob - scores[1].logprob)
    assert made.choice_probabilities("x", ["y"]) == [1.0]
    assert len(set(made.choice_probabilities("x", ["y", "y"]))) == 1
    assert made.score_continuations("x", []) == []


def write_merging(path: Path) -> Path:
    """A tiny llama with the tokens `lo`, `low` and their merges."""

    def edit(writer: gguf.GGUFWriter) -> None:
        fields = writer.kv_data[0]
        fields["tokenizer.ggml.tokens"].value[1:3] = ["lo", "low"]  # in place of the bytes " and #
        fields["tokenizer.ggml.merges"].value = ["l o", "lo w"]

    return write_tiny(path, edit=edit)


def test_tokens_across_the_end_of_the_prompt(tmp_path: Path) -> None:
    with Model(write_merging(tmp_path / "merging.gguf")) as model:
        vocab, made = model.vocab, scorer(model)
        lo, low, a = vocab.tokenize("lo"), vocab.tokenize("low"), vocab.tokenize("a")
        assert (len(lo), len(low)) == (1, 1)
        # " x" alone does not change the tokens of the prompt.
        (score,) = made.score_continuations("alo", [" x"])
        assert score.n_tokens == 2
        # "w" joins the last token of the prompt, which is then scored for both.
        joined, other = made.score_continuations("alo", ["w", " x"])
        assert np.allclose(joined.per_token, plain(model, a + low), atol=CLOSE)
        expected = plain(model, a + lo + vocab.tokenize(" x"))
        assert np.allclose(other.per_token, expected, atol=CLOSE)
        with pytest.raises(ValidationError, match="no token before"):
            made.score_continuations("lo", ["w"])
        # Token ids are not changed.
        (score,) = made.score_continuations("alo", [vocab.tokenize("w")])
        assert score.n_tokens == 1


def test_characters_of_several_tokens(llama: Model) -> None:
    prompt, text = "ö→", "é🙂"
    (score,) = scorer(llama).score_continuations(prompt, [text])
    assert score.n_tokens == len(text.encode())
    expected = plain(llama, llama.vocab.tokenize(prompt + text))[len(prompt.encode()) - 1 :]
    assert np.allclose(score.per_token, expected, atol=CLOSE)


def test_bad_input(llama: Model, tmp_path: Path) -> None:
    made = scorer(llama, n_ctx=64)
    for call in (
        lambda: made.logprobs([]),
        lambda: made.logprobs([259]),
        lambda: made.logprobs(["a"]),  # type: ignore[list-item]
        lambda: made.logprobs(None),  # type: ignore[arg-type]
        lambda: made.logprobs(b"ab"),
        lambda: made.perplexity(b"abc"),
        lambda: made.score_continuations(None, ["a"]),  # type: ignore[arg-type]
        lambda: made.score_continuations("a", None),  # type: ignore[arg-type]
        lambda: made.score_continuations("a", [b"b"]),
        lambda: made.score_continuations("a", [5]),  # type: ignore[list-item]
        lambda: made.score_continuations("a", "text"),
        lambda: made.score_continuations("a", ["b", ""]),
        lambda: made.score_continuations("a", [[]]),
        lambda: made.score_continuations("", ["b"]),
        lambda: made.score_continuations([], [[1]]),
        lambda: made.score_continuations("a", [[-1]]),
        lambda: made.score_continuations("a", ["\ud800"]),
        lambda: made.choice_probabilities("a", []),
        lambda: made.perplexity(""),
        lambda: made.perplexity("a"),
        lambda: made.perplexity("abc", stride=0),
        lambda: made.perplexity("abc", stride=64),
        lambda: scorer(llama, n_ctx=1).perplexity("abc"),
        lambda: scorer(llama, n_ctx=-1),
    ):
        with pytest.raises(ValidationError):
            call()
    with pytest.raises(ContextOverflowError, match="has 65 tokens; n_ctx is 64"):
        made.logprobs([1] * 65)
    with pytest.raises(ContextOverflowError, match="continuation 1 have 65 tokens"):
        made.score_continuations("a" * 60, ["b", "c" * 5])
    write_bert(tmp_path / "bert.gguf")
    write_t5(tmp_path / "t5.gguf")
    for name in ("bert", "t5"):
        with (
            Model(tmp_path / f"{name}.gguf") as other,
            pytest.raises(ValidationError, match="scores need a causal decoder"),
        ):
            scorer(other)
    made.close()
    made.close()
    with pytest.raises(ValidationError, match="closed"):
        made.logprobs([1, 2])


def test_concurrent_calls(llama: Model) -> None:
    made = scorer(llama)
    texts = [tokens_of(n, n) for n in (5, 50, 90)]
    expected = [made.logprobs(t) for t in texts]
    wrong: list[int] = []

    def work(i: int) -> None:
        wrong.extend(i for _ in range(5) if not np.allclose(made.logprobs(texts[i]), expected[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=50))
def test_log_softmax(values: list[float]) -> None:
    got = log_softmax(np.array(values, np.float32), range(len(values)))
    exact = np.array(values, np.float64)
    exact -= exact.max()
    assert np.allclose(got, exact - np.log(np.exp(exact).sum()), rtol=1e-5, atol=1e-3)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 20), min_size=1), st.integers(1, 5))
def test_groups(sizes: list[int], n_seqs: int) -> None:
    groups = list(_groups(sizes, 20, n_seqs))
    assert [i for group in groups for i in group] == list(range(len(sizes)))
    assert all(len(g) <= n_seqs and sum(sizes[i] for i in g) <= 20 for g in groups)


def test_common_prefix_length() -> None:
    assert [common_prefix_length([1, 2, 3], b) for b in ([], [1], [1, 3], [1, 2, 3, 4], [2])] == [
        0,
        1,
        1,
        3,
        0,
    ]


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_every_build(child: Child, tmp_path: Path, tiny_model: Path, build: str) -> None:
    write_recurrent(tmp_path / "mamba.gguf")
    result = child(
        """
        import sys
        import numpy as np
        from llama_cffi import Model
        from llama_cffi.embeddings.scorer import Scorer
        prompt = "A prompt that they share: "
        texts = ["one", "two and more", "x", "a much longer one, to be sure", "z" * 90] * 5
        for path in sys.argv[1:]:
            made = Scorer(Model(path), n_threads=1)
            together = made.score_continuations(prompt, texts)
            for text, score in zip(texts[:5], together):
                alone = made.score_continuations(prompt, [text])[0]
                assert np.allclose(score.per_token, alone.per_token, atol=2e-2)
                tokens = made.model.vocab.tokenize(prompt + text)
                whole = made.logprobs(tokens)[-len(text):]
                assert np.allclose(score.per_token, whole, atol=2e-2)
            assert made.perplexity(prompt) > 1
        print("done")
        """,
        tiny_model,
        tmp_path / "mamba.gguf",
        LLAMA_CFFI_BUILD=build,
    )
    assert (result.stdout, result.stderr) == ("done\n", "")


def test_alternatives_are_the_most_probable_tokens(llama: Model) -> None:
    tokens = tokens_of(40)
    with scorer(llama) as made:
        expected = made.logprobs(tokens)
        found = made.alternatives(tokens, 3)
        assert [score.token for score in found] == tokens[1:]
        assert [score.logprob for score in found] == pytest.approx(expected, abs=1e-6)
        for score in found:
            values = [value for _, value in score.top]
            assert len(values) == 3
            assert values == sorted(values, reverse=True)
            assert score.logprob <= values[0]
        assert [score.top for score in made.alternatives(tokens[:5], 0)] == [[]] * 4
        assert made.alternatives(tokens[:1], 2) == []
        with pytest.raises(ValidationError, match="no token"):
            made.alternatives([], 1)
        with pytest.raises(ValidationError, match="n=-1"):
            made.alternatives(tokens, -1)


def test_logits_are_those_behind_the_log_probabilities(llama: Model) -> None:
    tokens = tokens_of(40)
    with scorer(llama) as made:
        rows = [row.copy() for row in made.logits(tokens)]
        assert (len(rows), rows[0].shape, rows[0].dtype) == (40, (259,), np.float32)
        found = [log_softmax(row, [t])[0] for row, t in zip(rows[:-1], tokens[1:], strict=True)]
        assert np.allclose(found, made.logprobs(tokens), atol=CLOSE)
        later = [row.copy() for row in made.logits(tokens, 30)]
        assert len(later) == 10
        assert np.allclose(later[0], rows[30], atol=CLOSE)
        for wrong in (40, -1):
            with pytest.raises(ValidationError, match="first"):
                next(made.logits(tokens, wrong))
        with pytest.raises(ValidationError, match="no token"):
            next(made.logits([]))

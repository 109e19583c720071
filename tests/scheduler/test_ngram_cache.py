"""NgramCache: learned from earlier answers, saved, loaded and merged."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rounding import EXACT

from llama_cffi import Engine, InferenceEngine, NgramCache, PromptLookup, ValidationError

TOKENS = st.lists(st.integers(0, 5), max_size=40)


def followers(
    texts: list[list[int]], n_min: int, n_max: int
) -> dict[tuple[int, ...], Counter[int]]:
    """Return what followed each n-gram, counted from the definition."""
    found: dict[tuple[int, ...], Counter[int]] = {}
    for text in texts:
        for n in range(n_min, n_max + 1):
            for at in range(len(text) - n):
                found.setdefault(tuple(text[at : at + n]), Counter())[text[at + n]] += 1
    return found


def expected_draft(
    known: dict[tuple[int, ...], Counter[int]], n_min: int, n_max: int, text: list[int], n: int
) -> list[int]:
    drafted: list[int] = []
    while len(drafted) < n:
        whole = text + drafted
        for size in range(min(n_max, len(whole)), n_min - 1, -1):
            counts = known.get(tuple(whole[-size:]), Counter())
            token, count = max(counts.items(), key=lambda pair: pair[1], default=(0, 0))
            if 2 * count > sum(counts.values()):
                drafted.append(token)
                break
        else:
            break
    return drafted


@settings(deadline=None, max_examples=60)
@given(
    st.lists(TOKENS, max_size=4), TOKENS, st.integers(1, 3), st.integers(0, 3), st.integers(0, 9)
)
def test_drafts_are_what_followed_most_often(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[list[int]],
    query: list[int],
    n_min: int,
    more: int,
    n_draft: int,
) -> None:
    n_max = n_min + more
    known = followers(texts, n_min, n_max)
    expected = expected_draft(known, n_min, n_max, query, n_draft)
    cache, half = NgramCache(n_max, n_min), NgramCache(n_max, n_min)
    for i, text in enumerate(texts):
        (half if i % 2 else cache).update(text)
    cache.merge(half)
    assert len(cache) == len(known)
    assert cache.draft(query, n_draft) == expected
    path = tmp_path_factory.mktemp("ngrams") / "cache"
    cache.save(path)
    again = NgramCache.load(path)
    assert (again.n_gram_min, again.n_gram, len(again)) == (n_min, n_max, len(known))
    assert again.draft(query, n_draft) == expected
    again.merge(again)  # doubled counts mean the same
    assert again.draft(query, n_draft) == expected


def test_a_text_can_be_learned_as_it_grows() -> None:
    text = [1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3, 5]
    whole, grown = NgramCache(), NgramCache()
    whole.update(text)
    for n in range(0, len(text), 3):
        grown.update(text[: n + 3], n_new=3)
    for query in ([1, 2], [2, 3], [3, 5], [9], []):
        assert grown.draft(query, 4) == whole.draft(query, 4)
    assert whole.draft([2, 3], 2) == [5, 1]
    assert NgramCache().draft([1, 2, 3], 5) == []
    whole.update([], n_new=5)
    whole.update([7])
    assert whole.draft([7], 1) == []


def test_parts_of_images_are_left_out() -> None:
    cache = NgramCache(2, 1)
    cache.update([1, -3, -3, 2, 5])
    assert len(cache) == 1
    assert cache.draft([2], 3) == [5]


def test_the_oldest_n_grams_are_dropped() -> None:
    cache = NgramCache(2, 2, max_ngrams=3)
    cache.update([0, 1, 2, 3, 4, 5, 6])
    assert len(cache) == 3
    assert cache.draft([0, 1], 1) == []
    assert cache.draft([4, 5], 1) == [6]
    large = NgramCache(2, 2)
    large.update(range(100, 150))
    cache.merge(large)
    assert len(cache) == 3
    assert cache.draft([147, 148], 1) == [149]


def test_merging_keeps_the_lengths_of_the_cache() -> None:
    small, large = NgramCache(2, 2), NgramCache(4, 1)
    large.update([1, 2, 3, 4, 5])
    small.merge(large)
    assert small.draft([1, 2], 3) == [3, 4, 5]
    assert small.draft([2], 1) == []


def test_wrong_arguments_are_refused() -> None:
    for arguments in ((0, 1), (2, 3), (17, 1), (4, 2, 0), (2.5, 1), ("4", 2)):
        with pytest.raises(ValidationError):
            NgramCache(*arguments)  # type: ignore[arg-type]
    cache = NgramCache()
    for wrong in ([1.5], ["a"], [2**40]):
        with pytest.raises(ValidationError):
            cache.update(wrong)  # type: ignore[arg-type]
    for other in ("not a cache", [1, 2, 3], None):
        with pytest.raises(ValidationError, match="another NgramCache"):
            cache.merge(other)  # type: ignore[arg-type]
        if other is not None:
            with pytest.raises(ValidationError, match="must be an NgramCache"):
                PromptLookup(cache=other)  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        cache.draft([1], -1)


def test_files_that_are_no_cache_are_refused(tmp_path: Path) -> None:
    cache, path = NgramCache(), tmp_path / "cache"
    cache.update([1, 2, 3, 4, 1, 2, 3, 4])
    cache.save(path)
    data = path.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]  # nothing unfinished is left
    with pytest.raises(OSError, match="missing"):
        NgramCache.load(tmp_path / "missing")
    with pytest.raises(OSError, match="nowhere"):
        cache.save(tmp_path / "nowhere" / "cache")
    with np.load(path) as good:
        arrays = dict(good)
    wrongs: list[dict[str, Any]] = [
        {"tokens": arrays["tokens"][:-1]},
        {"tokens": -arrays["tokens"] - 1},
        {"tokens": arrays["tokens"].astype(np.float32)},
        {"counts": arrays["counts"] * 0},
        {"ngrams": arrays["ngrams"] * 0 - 1},
        {"ngrams": arrays["ngrams"][:, 0]},
        {"limits": arrays["limits"][:2]},
        {"limits": np.array([5, 2, 9])},
        {"limits": np.array([2, 10**9, 9])},
        {"format": np.int64(99)},
        {"tokens": np.array(["a", None], object)},
    ]
    contents = [b"", b"PK", data[:-30], data[:40], data[30:], b"not a cache" * 99]
    for i, wrong in enumerate(wrongs):
        np.savez(tmp_path / f"{i}.npz", **{**arrays, **wrong}, allow_pickle=True)
        contents.append((tmp_path / f"{i}.npz").read_bytes())
    without = {name: array for name, array in arrays.items() if name != "counts"}
    np.savez(tmp_path / "without.npz", **without)
    contents.append((tmp_path / "without.npz").read_bytes())
    np.save(tmp_path / "one.npy", arrays["tokens"])
    contents.append((tmp_path / "one.npy").read_bytes())
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(ValidationError):
            NgramCache.load(path)


def test_any_flipped_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    cache, path = NgramCache(), tmp_path / "cache"
    cache.update([1, 2, 3, 4, 1, 2, 3, 4])
    cache.save(path)
    data = path.read_bytes()
    for at in range(0, len(data), 7):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        with contextlib.suppress(ValidationError):
            assert NgramCache.load(path).draft([1, 2], 3) == cache.draft([1, 2], 3)


def test_answers_are_learned_and_drafted_and_stay_the_same(demo_f32: Path, tmp_path: Path) -> None:
    config: dict[str, Any] = {"n_ctx": 256, "n_threads": 1, **EXACT}
    with Engine(demo_f32, **config) as engine:
        prompt = engine.tokenize("Once upon a time")
        expected = engine.generate_tokens(prompt, 40, temperature=0)
    cache, n_accepted = NgramCache(), []
    for learn in (True, False):
        drafter = PromptLookup(n_gram=16, n_gram_min=16, cache=cache, learn=learn)
        with InferenceEngine(demo_f32, 2, draft=drafter, **config) as shared:
            for _ in range(2):
                handle = shared.submit(prompt, 40, temperature=0)
                handle.result()
                assert handle.request.generated_tokens == expected
                n_accepted.append(handle.stats.n_accepted)
            known = len(cache)
            cache.save(tmp_path / "cache")
            cache = NgramCache.load(tmp_path / "cache")
            assert len(cache) == known
    assert min(n_accepted[1:]) > n_accepted[0]  # at first it knew only the answer itself
    with InferenceEngine(
        demo_f32, 2, draft=PromptLookup(cache=cache, learn=False), **config
    ) as shared:
        shared.generate("Something else, quite different", 20, temperature=0)
    assert len(cache) == known


def test_tokens_that_a_model_lacks_never_reach_it(demo_f32: Path) -> None:
    cache = NgramCache(2, 1)
    config: dict[str, Any] = {"n_ctx": 256, "n_threads": 1, **EXACT}
    with InferenceEngine(demo_f32, 2, draft=PromptLookup(cache=cache), **config) as engine:
        n_vocab = engine.model.vocab.n_tokens
        expected = engine.generate("Once upon a time", 20, temperature=0)
        for token in range(n_vocab):
            cache.update([token, n_vocab + 7] * 50)
        assert engine.generate("Once upon a time", 20, temperature=0) == expected


def test_threads_may_share_a_cache(tmp_path: Path) -> None:
    cache = NgramCache(3, 1)
    texts = [[i, i + 1, i + 2, i + 3] * 30 for i in range(0, 80, 10)]

    def work(text: list[int]) -> None:
        for _ in range(5):
            cache.update(text)
            cache.draft(text[:3], 8)
            cache.save(tmp_path / f"cache-{text[0]}")
            cache.merge(NgramCache())

    threads = [threading.Thread(target=work, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = NgramCache(3, 1)
    for text in texts * 5:
        alone.update(text)
    assert len(cache) == len(alone)
    for text in texts:
        assert cache.draft(text[:3], 8) == alone.draft(text[:3], 8)

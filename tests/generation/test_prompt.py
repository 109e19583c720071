from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_cffi import ValidationError
from llama_cffi.binding import Batch, Context, Model
from llama_cffi.generation.cancellation import CancelToken
from llama_cffi.generation.context_policy import fit_prompt
from llama_cffi.generation.prompt import (
    Prompt,
    SavedMedia,
    block_hashes,
    check_prompt,
    common_prefix_length,
    media_cells,
)
from llama_cffi.generation.slot import Slot
from llama_cffi.generation.stats import GenerationStats
from llama_cffi.scheduler.kv_cache import KVCache
from llama_cffi.scheduler.request import Request


@dataclass
class Picture:
    """Stands for a picture: tokens that only its own decode knows."""

    tokens: list[int]
    n_positions: int = 0
    decoded: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.key = hashlib.sha256(bytes(self.tokens)).digest()
        self.n_cells = len(self.tokens)
        self.n_positions = self.n_positions or self.n_cells
        self.last_offset = self.n_cells - 1  # this one's cells have positions of their own
        self.is_encoded = True

    def encode(self) -> None:
        """There is nothing to encode."""

    def decode(self, context: Context, seq_id: int, position: int) -> None:
        self.decoded.append(position)
        batch = Batch(self.n_cells, library=context.library)
        batch.fill(self.tokens, position, seq_id, logits=False)
        context.decode(batch)


CAT, DOG = Picture([7, 8, 9, 10]), Picture([11, 12, 13], n_positions=1)


def build(*parts: list[int] | Picture) -> Prompt:
    prompt = Prompt()
    for part in parts:
        if isinstance(part, Picture):
            prompt.add_media(part)
        else:
            prompt.add(part)
    return prompt


def test_a_prompt_of_text_is_the_list_of_its_tokens() -> None:
    prompt = Prompt([1, 2, 3])
    assert prompt == [1, 2, 3]
    assert [*prompt.spans()] == []
    assert [prompt.position(i) for i in range(4)] == [0, 1, 2, 3]
    assert prompt.part(1) == [2, 3]
    assert prompt.without(0, 2) == [3]


def test_media_have_cells_of_their_content() -> None:
    same = Picture([7, 8, 9, 10])
    assert media_cells(CAT) == media_cells(same)
    assert not set(media_cells(CAT)) & set(media_cells(DOG))
    assert all(cell < 0 for cell in media_cells(CAT))
    a, b = build([1], CAT, [2], DOG), build([1], same, [2], CAT)
    assert common_prefix_length(a, b) == 6
    assert [(s.start, s.end, s.media) for s in a.spans()] == [(1, 5, CAT), (6, 9, DOG)]


def test_positions_behind_media_that_share_some() -> None:
    prompt = build([1, 2], DOG, [3, 4], DOG, [5])
    assert len(prompt) == 11
    assert prompt.position(2) == 2
    assert prompt.position(5) == 3  # after three cells with one position
    assert prompt.position(11) == 7
    request = Request(prompt, 4)
    assert request.positions(5, 7) == range(3, 5)
    assert Request([1, 2, 3], 4).positions(0, 3) == range(3)


def test_the_last_position_in_the_memory() -> None:
    prompt = build([1, 2], DOG, [3], DOG)
    assert [prompt.last_position(n) for n in (0, 1, 2, 5, 6, 9)] == [-1, 0, 1, 4, 3, 6]


def test_spans_follow_every_change() -> None:
    prompt = build([1], CAT, [2], DOG)
    assert [(s.start, s.end) for s in prompt.spans()] == [(1, 5), (6, 9)]
    del prompt[7:]
    assert [(s.start, s.end) for s in prompt.spans()] == [(1, 5)]
    assert prompt.position(7) == 7
    del prompt[5:]
    prompt.add_media(DOG)
    prompt.append(3)
    assert [(s.start, s.end) for s in prompt.spans()] == [(1, 5), (5, 8)]
    assert prompt.position(9) == 7
    prompt.clear()
    assert ([*prompt.spans()], prompt.position(0)) == ([], 0)


def test_runs_are_text_or_one_media() -> None:
    prompt = build([1, 2], CAT, DOG, [3, 4, 5])
    assert prompt.run(0, 9) == [1, 2]
    assert prompt.run(0, 1) == [1]
    assert prompt.run(2, 3) == prompt[2:6]  # whole, beyond the end that was asked for
    assert prompt.run(6, 12) == prompt[6:9]
    assert prompt.run(9, 11) == [3, 4]


def test_a_prompt_does_not_end_with_media() -> None:
    check_prompt(build(CAT, [1]))
    with pytest.raises(ValidationError, match="cannot end with a picture"):
        check_prompt(build([1], CAT))


def test_cuts_leave_media_whole() -> None:
    prompt = build([1, 2], CAT, [3])
    assert [prompt.boundary(i) for i in range(8)] == [0, 1, 2, 2, 2, 2, 6, 7]
    assert prompt.without(3, 5) == [1, 2, 3]
    assert Request(prompt, 4).part(0, 4) == [1, 2]
    fitted = fit_prompt(build([1, 2, 3], CAT, [4, 5]), 2, 7, 0, "truncate_left", n_first=1)
    assert (fitted.prompt, fitted.n_truncated) == ([1, 4, 5], 6)


@given(st.lists(st.sampled_from([1, 2, 3, "cat", "dog"]), max_size=12), st.data())
def test_parts_and_cuts_keep_whole_media(parts: list[int | str], data: st.DataObject) -> None:
    pictures = {"cat": CAT, "dog": DOG}
    prompt = build(*(pictures[p] if isinstance(p, str) else [p] for p in parts))
    start = data.draw(st.integers(0, len(prompt)))
    end = data.draw(st.integers(start, len(prompt)))
    rest = prompt.without(start, end)
    covered = sum(span.end - span.start for span in rest.spans())
    assert covered == sum(cell < 0 for cell in rest)  # no part of a picture is left
    assert rest.position(len(rest)) == len(rest) - sum(
        2 for span in rest.spans() if span.media is DOG
    )


def test_a_slot_decodes_and_reuses_media(tiny_model: Path) -> None:
    cat = Picture([7, 8, 9, 10])
    with Model(tiny_model) as model, Context(model, n_ctx=64, n_threads=1) as context:
        slot, stats = Slot(context, Batch(16)), GenerationStats()
        stop = CancelToken(context.abort_flag)
        slot.feed([1, 2, *cat.tokens, 3, 4], stop, stats)
        expected = context.logits().copy()
        slot.clear()
        prompt = build([1, 2], cat, [3, 4])
        assert slot.reuse(prompt) == 0
        slot.feed(prompt, stop, stats)
        assert slot.tokens == prompt
        assert cat.decoded == [2]
        assert abs(context.logits() - expected).max() < 1e-3
        # The same picture again is not decoded again; another one in its place is.
        assert slot.reuse(build([1, 2], Picture([7, 8, 9, 10]), [5])) == 6
        assert slot.reuse(build([1, 2], Picture([7, 8, 9, 11]), [5])) == 2


def test_the_kv_cache_finds_prefixes_with_media() -> None:
    cache = KVCache(2, 64, block_size=4)
    prompt = build([1, 2], CAT, [3, 4])
    allocation = cache.acquire(prompt)
    assert allocation is not None
    cache.append(allocation.seq_id, prompt)
    cache.release(allocation.seq_id)
    assert cache.n_matched(build([1, 2], Picture([7, 8, 9, 10]), [9, 9])) == 6
    assert cache.n_matched(build([1, 2], DOG, [3, 4])) == 2


@pytest.mark.parametrize("index", [3, 4, 5])
def test_a_cell_within_media_is_no_place_to_continue(index: int) -> None:
    cache = KVCache(1, 64, block_size=4)
    prompt = build([1, 2], CAT, [3])
    allocation = cache.acquire(prompt)
    assert allocation is not None
    cache.append(allocation.seq_id, prompt)
    cache.release(allocation.seq_id)
    assert cache.n_matched([*prompt[:index], 99]) == 2


def test_a_block_is_known_by_its_tokens_and_all_before_them() -> None:
    tokens = [*range(10)]
    whole = [*block_hashes(tokens, 3, 0)]
    assert len(whole) == 3  # the last block is not whole
    assert [*block_hashes([*tokens[:6], 99, 99, 99], 3, 0)][:2] == whole[:2]
    assert not {*whole} & {*block_hashes([99, *tokens[1:]], 3, 0)}
    assert not {*whole} & {*block_hashes(tokens, 3, 1)}
    # Going on from a block is the same as from the beginning.
    assert [*block_hashes(tokens, 3, whole[0], 3)] == whole[1:]
    assert [*block_hashes(tokens, 3, 0, end=8)] == whole[:2]
    assert [*block_hashes([], 3, 0)] == []


_part = st.one_of(st.lists(st.integers(0, 9), max_size=5), st.sampled_from([CAT, DOG]))


@given(st.lists(st.tuples(_part, st.one_of(st.none(), st.floats(0, 1))), max_size=8))
def test_spans_after_cuts_are_those_of_a_new_prompt(
    steps: list[tuple[list[int] | Picture, float | None]],
) -> None:
    prompt = Prompt()
    for part, share in steps:
        prompt.add(build(part))
        if share is not None:
            prompt.spans()
            del prompt[prompt.boundary(int(share * len(prompt))) :]
        expected = Prompt([*prompt], {**build(CAT, DOG).media}).spans()
        assert [*prompt.spans()] == [*expected]


# Saved prompts

_media = st.builds(
    lambda tokens, share: Picture(tokens, n_positions=max(1, len(tokens) // share)),
    st.lists(st.integers(0, 255), min_size=1, max_size=6),
    st.integers(1, 4),
)


@given(st.lists(st.one_of(st.lists(st.integers(0, 2**31 - 1), max_size=5), _media), max_size=8))
def test_packed_prompts_come_back(parts: list[list[int] | Picture]) -> None:
    # The same content has the same cells and positions.
    known = {p.key: p for p in parts if isinstance(p, Picture)}
    prompt = build(*(known[p.key] if isinstance(p, Picture) else p for p in parts))
    numbers = prompt.packed()
    assert len(numbers) - sum(n >= 0 for n in numbers) == 4 * len(prompt.spans())
    found = Prompt.unpacked(numbers)
    assert found == prompt
    assert found.packed() == numbers
    assert [s[:2] for s in found.spans()] == [s[:2] for s in prompt.spans()]
    for i in range(len(prompt) + 1):
        assert found.position(i) == prompt.position(i)
        assert found.boundary(i) == prompt.boundary(i)
    n = len(prompt)
    assert found.last_position(n) == prompt.last_position(n)
    assert common_prefix_length(found, prompt) == n
    cut = found.boundary(n // 2)
    assert found.part(0, cut).packed() == prompt.part(0, cut).packed()


@given(st.lists(st.integers(-(2**70), 2**70), max_size=12))
def test_damaged_numbers_are_refused_or_are_a_prompt(numbers: list[int]) -> None:
    try:
        prompt = Prompt.unpacked(numbers)
    except ValidationError:
        return
    assert prompt.packed() == numbers


@pytest.mark.parametrize(
    "numbers",
    [[-1], [5, -5, -5, -4], [-1, -1, -1, -1], [-5, -5, -5, -(2**41)], [-5, -7, -4, -1],
     [-5, -5, -9, -1], [-(2**40), -2, -1, -1], [-5, -5, -4, 3]],
)  # fmt: skip
def test_damaged_numbers(numbers: list[int]) -> None:
    with pytest.raises(ValidationError, match="damaged picture or sound"):
        Prompt.unpacked(numbers)


def test_a_prompt_of_text_packs_to_its_tokens() -> None:
    assert Prompt([1, 2, 3]).packed() == [1, 2, 3]
    assert Prompt.unpacked([1, 2, 3]).media == {}


def test_a_part_of_a_picture_is_not_packed() -> None:
    with pytest.raises(ValidationError, match="a part of a picture"):
        build([1], CAT, [2]).part(0, 3).packed()


def test_saved_media_cannot_be_decoded() -> None:
    (span,) = Prompt.unpacked(build([1], CAT, [2]).packed()).spans()
    saved = span.media
    assert isinstance(saved, SavedMedia)
    assert (saved.n_cells, saved.n_positions, saved.last_offset) == (4, 4, 3)
    assert not saved.is_encoded
    for call in (saved.encode, lambda: saved.decode(None, 0, 0)):  # type: ignore[arg-type]
        with pytest.raises(ValidationError, match="cannot be computed again"):
            call()


def test_media_that_are_cut_off_are_not_kept() -> None:
    prompt = build([1], CAT, [2], DOG, [3])
    assert len(prompt.spans()) == len(prompt.media) == 2
    del prompt[6:]
    assert [*prompt.media.values()] == [CAT]
    prompt.clear()
    assert prompt.media == {}
    prompt = build([1], CAT, [2])
    del prompt[0:]
    assert prompt.media == {}

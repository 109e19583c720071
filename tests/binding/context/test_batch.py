from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llama_cffi.binding import Batch
from llama_cffi.errors import ValidationError


def content(batch: Batch) -> list[tuple[int, int, list[int], int]]:
    s = batch.struct
    return [
        (s.token[i], s.pos[i], [s.seq_id[i][k] for k in range(s.n_seq_id[i])], s.logits[i])
        for i in range(len(batch))
    ]


@given(
    tokens=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20),
    pos=st.integers(0, 2**31 - 100),
    seq_id=st.integers(0, 63),
    logits=st.booleans(),
    n_seq_max=st.integers(1, 3),
)
def test_fill_is_add_for_each(
    tokens: list[int], pos: int, seq_id: int, logits: bool, n_seq_max: int
) -> None:
    filled, added = (Batch(20, n_seq_max=n_seq_max) for _ in range(2))
    for i in range(20):  # earlier content must not remain
        filled.add(9, i, range(n_seq_max), logits=True)
    filled.fill(tokens, pos, seq_id, logits=logits)
    for i, token in enumerate(tokens):
        added.add(token, pos + i, [seq_id], logits=logits and i == len(tokens) - 1)
    assert content(filled) == content(added)
    assert filled.wanted == added.wanted == bytes(len(tokens) - 1) + bytes([logits])
    for batch in (filled, added):
        batch.check(max(tokens) + 1, seq_id + 1)
        with pytest.raises(ValidationError):
            batch.check(max(tokens), seq_id + 1)
        with pytest.raises(ValidationError):
            batch.check(max(tokens) + 1, seq_id)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["clear", "add", "fill", "advance", "want_all"]),
            st.integers(-1, 2),
            st.lists(st.integers(0, 2), min_size=1, max_size=2),
            st.booleans(),
            st.integers(1, 2),
        ),
        max_size=8,
    )
)
@example([("add", 0, [0, 1], False, 1), ("fill", -1, [0], False, 1), ("add", 0, [0], True, 1)])
def test_what_decode_relies_on(steps: list[tuple[str, int, list[int], bool, int]]) -> None:
    batch = Batch(2, n_seq_max=2)
    for name, token, seq_ids, logits, n in steps:
        try:
            if name == "add":
                batch.add(token, 0, seq_ids, logits)
            elif name == "fill":
                batch.fill([1, token][-n:], 0, seq_ids[0], logits=logits)
            elif name == "advance":
                batch.advance(token, 1)
            else:
                getattr(batch, name)()
        except ValidationError:
            pass
        rows = content(batch)
        single = len(rows) == 1 and len(rows[0][2]) == 1 and bool(rows[0][3])
        assert batch.single is single
        assert batch.wanted == bytes(row[3] for row in rows)
        assert batch.value.n_tokens == len(rows)
        for row_token, _, ids, _ in rows:
            assert batch.token_max >= row_token
            assert batch.seq_max >= max(ids)


def test_other_integer_types() -> None:
    batch = Batch(4)
    batch.fill(np.array([1, 2, 3]), np.int64(5))
    assert [(t, p) for t, p, _, _ in content(batch)] == [(1, 5), (2, 6), (3, 7)]
    batch.fill([True], 0)
    batch.fill(np.array([7], dtype=np.uint16), 0)
    assert content(batch) == [(7, 0, [0], 1)]


@pytest.mark.parametrize("token", [1.0, "a", None, -1, 2**31, 2**40, np.float32(1)])
def test_invalid_tokens(token: object) -> None:
    batch = Batch(4)
    batch.fill([1, 2], 0)
    with pytest.raises(ValidationError):
        batch.add(token, 2)  # type: ignore[arg-type]
    assert len(batch) == 2
    for tokens in ([token], [1, token]):
        with pytest.raises(ValidationError):
            batch.fill(tokens, 0)  # type: ignore[arg-type]
        assert len(batch) == 0


@pytest.mark.parametrize(
    ("pos", "seq_ids"),
    [
        (-1, [0]),
        (2**31, [0]),
        (0.5, [0]),
        (0, []),
        (0, [-1]),
        (0, [0, 1, 2]),
        (0, [1, 1]),
        (0, ["a"]),
    ],
)
def test_invalid_positions_and_sequences(pos: int, seq_ids: list[int]) -> None:
    with pytest.raises(ValidationError):
        Batch(4, n_seq_max=2).add(1, pos, seq_ids)


def test_capacity() -> None:
    for size in (0, -1, 1.5, 2**40):
        with pytest.raises(ValidationError):
            Batch(size)  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        Batch(1, n_seq_max=2**40)
    batch = Batch(2)
    for tokens in ([], [1, 2, 3]):
        with pytest.raises(ValidationError):
            batch.fill(tokens, 0)
    batch.fill([1, 2], 0)
    with pytest.raises(ValidationError, match="full"):
        batch.add(3, 2)
    batch.clear()
    assert len(batch) == 0
    with pytest.raises(ValidationError, match="empty"):
        batch.check(10, 1)


def test_shared_tokens_need_a_shared_cache() -> None:
    batch = Batch(2, n_seq_max=2)
    batch.add(1, 0, [0, 1])
    batch.check(10, 2)
    with pytest.raises(ValidationError, match="kv_unified"):
        batch.check(10, 2, kv_unified=False)
    batch.fill([1], 0)
    batch.check(10, 2, kv_unified=False)


class Odd:
    """A number that runs a function when it is converted."""

    def __init__(self, run: Callable[[], object]) -> None:
        self.run = run

    def __index__(self) -> int:
        self.run()
        return 1

    def __bool__(self) -> bool:
        return bool(self.__index__())


@pytest.mark.parametrize("where", ["token", "pos", "seq", "logits", "fill", "last"])
def test_numbers_that_change_the_batch(where: str) -> None:
    """No unchecked token gets into the batch."""

    def change() -> None:
        batch.clear()
        batch.add(99, 0)

    batch, odd = Batch(4, n_seq_max=2), Odd(change)
    if where in ("fill", "last"):
        tokens: list[Any] = [1, odd if where == "fill" else 1]
        batch.fill(tokens, 0, logits=cast(Any, odd if where == "last" else True))
        assert [len(batch), *batch._token[0:2]] == [2, 1, 1]
        batch.check(10, 2)
        with pytest.raises(ValidationError):
            batch.fill([cast(Any, odd), -1], 0)
        assert len(batch) == 1
    else:
        new: dict[str, Any] = {"token": 1, "pos": 1, "seq": 0, "logits": True, where: odd}
        batch.add(new["token"], new["pos"], [new["seq"]], new["logits"])
        assert [len(batch), *batch._token[0:2]] == [2, 99, 1]
    with pytest.raises(ValidationError, match="token 99"):
        batch.check(10, 2)

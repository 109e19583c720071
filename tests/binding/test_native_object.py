from __future__ import annotations

import gc
import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_cffi.binding import NativeObject
from llama_cffi.errors import ValidationError


def test_children_first() -> None:
    log: list[str] = []
    model = NativeObject("model", log.append)
    pool = NativeObject("pool", log.append)
    context = NativeObject("context", log.append, parent=model, keeps=[pool])
    pool.close()
    assert log == []  # the context still uses it
    model.close()
    assert log == ["context", "pool", "model"]
    assert context.closed
    model.close()
    assert log == ["context", "pool", "model"]


def test_closed() -> None:
    model = NativeObject("model", lambda _: None)
    with model:
        assert model.ptr == "model"
    for use in (lambda: model.ptr, model.__enter__, lambda: NativeObject("x", print, parent=model)):
        with pytest.raises(ValidationError, match="closed"):
            use()


def test_closed_while_held() -> None:
    log: list[str] = []
    model = NativeObject("model", log.append)
    context = NativeObject("context", log.append, parent=model)
    held = context.hold()
    model.close()
    assert (context.closed, model.closed, log) == (True, True, [])
    with pytest.raises(ValidationError, match="closed"):
        context.hold()
    del held
    assert log == ["context", "model"]


@pytest.fixture
def small_heap() -> Iterator[None]:
    """Let the garbage collector pass by what earlier tests left: collecting is quick then."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("small_heap")
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 100), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_any_tree_collected_in_any_order(parents: list[int], rng: random.Random) -> None:
    """Objects in cycles, dropped or closed in random order: each freed once, after its children."""
    log: list[int] = []
    handles: list[NativeObject] = []
    above: dict[int, int] = {}
    for i, choice in enumerate(parents):
        parent = choice % i if i and choice % 4 else None
        handle = NativeObject(i, log.append, parent=None if parent is None else handles[parent])
        if parent is not None:
            above[i] = parent
        handle.cycle = handle  # type: ignore[attr-defined]
        handles.append(handle)
    del handle
    while handles:
        taken = handles.pop(rng.randrange(len(handles)))
        if rng.random() < 0.4:
            taken.close()
        del taken
        if rng.random() < 0.3:
            gc.collect()
    gc.collect()
    assert sorted(log) == list(range(len(parents)))
    order = {i: log.index(i) for i in log}
    assert all(order[child] < order[parent] for child, parent in above.items())

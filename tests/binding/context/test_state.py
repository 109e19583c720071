from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.odd_models import write_recurrent, write_windowed
from support.tiny_gguf import write_tiny

from llama_cffi.binding import Batch, Context, Model
from llama_cffi.binding.context.state import _PREFIX
from llama_cffi.errors import LlamaError, ValidationError

TOKENS = list(range(40))


@pytest.fixture(params=[True, False], ids=["unified", "separate"])
def context(model: Model, request: pytest.FixtureRequest) -> Iterator[Context]:
    with make(model, kv_unified=request.param) as context:
        feed(context, TOKENS)
        yield context


def make(model: Model, **how: Any) -> Context:
    return Context(model, **{"n_ctx": 512, "n_seq_max": 2, "n_threads": 1, **how})


def feed(context: Context, tokens: list[int], pos: int = 0, seq_id: int = 0) -> Any:
    batch = Batch(len(tokens))
    batch.fill(tokens, pos, seq_id)
    context.decode(batch)
    return context.logits().copy()


def last(context: Context) -> list[int]:
    return [context.memory.seq_pos_max(s) for s in range(context.n_seq_max)]


def with_header(data: bytes, header: Any) -> bytes:
    """Replace the header, with a valid checksum."""
    magic, version, _, n = _PREFIX.unpack_from(data)
    text = json.dumps(header).encode()
    body = text + data[_PREFIX.size + n :]
    return _PREFIX.pack(magic, version, zlib.crc32(body), len(text)) + body


def forged(data: bytes, edit: Callable[[Any], object]) -> bytes:
    """Change the header."""
    n = _PREFIX.unpack_from(data)[3]
    header = json.loads(data[_PREFIX.size : _PREFIX.size + n])
    edit(header)
    return with_header(data, header)


def test_whole(context: Context) -> None:
    feed(context, [7, 8], 0, 1)
    data = context.save_state(TOKENS)
    expected = feed(context, [9], 40), feed(context, [9], 2, 1)
    context.memory.clear()
    assert context.load_state(data) == TOKENS
    assert last(context) == [39, 1]
    assert np.allclose(feed(context, [9], 40), expected[0], atol=1e-3)
    assert np.allclose(feed(context, [9], 2, 1), expected[1], atol=1e-3)


def test_one_sequence(context: Context) -> None:
    data = context.save_state(TOKENS, seq_id=0)
    expected = feed(context, [9], 40)
    feed(context, [1, 2, 3], 0, 1)
    assert context.load_state(data, seq_id=1) == TOKENS
    assert last(context) == [40, 39]
    assert np.allclose(feed(context, [9], 40, 1), expected, atol=1e-3)


def test_an_empty_sequence_replaces_a_full_one(context: Context) -> None:
    """b6673 would keep the old sequence."""
    nothing = context.save_state(seq_id=1)
    assert context.load_state(nothing, seq_id=0) == []
    assert last(context) == [-1, -1]
    nothing = context.save_state()
    feed(context, TOKENS)
    context.load_state(nothing)
    assert last(context) == [-1, -1]


def test_shared_cells(model: Model) -> None:
    with make(model, kv_unified=True) as context:
        feed(context, TOKENS)
        context.memory.seq_cp(0, 1)
        data = context.save_state()
        context.load_state(data)
        assert last(context) == [39, 39]
        assert np.allclose(feed(context, [9], 40), feed(context, [9], 40, 1), atol=1e-3)


def test_another_context_size(model: Model, context: Context) -> None:
    data = context.save_state(seq_id=0)
    for n_ctx in (128, 1024):
        with make(model, n_ctx=n_ctx, kv_unified=context.kv_unified) as other:
            other.load_state(data, seq_id=1)
            assert last(other) == [-1, 39]


def test_a_cache_that_is_too_small(model: Model, context: Context) -> None:
    unified = context.kv_unified
    with make(model, n_ctx=1024, kv_unified=unified) as large:
        feed(large, [1] * 300)
        data = large.save_state(seq_id=0)
    with make(model, n_ctx=64, kv_unified=unified) as small:  # C makes 256 of it
        for tokens in ([1, 2], [3]):
            feed(small, tokens, 0, 1)
            feed(small, tokens)
            with pytest.raises(LlamaError, match="empty now"):
                small.load_state(data, seq_id=0)
            assert last(small) == [-1, len(tokens) - 1]
            small.memory.clear()


def test_outputs_are_dropped(context: Context) -> None:
    data = context.save_state()
    assert context.logits().shape
    context.load_state(data)
    with pytest.raises(ValidationError, match="no output"):
        context.logits()


def test_files(context: Context, tmp_path: Path) -> None:
    path = tmp_path / "some.state"
    path.write_bytes(b"old")
    context.save_state_file(path, TOKENS)
    assert path.read_bytes() == context.save_state(TOKENS)
    context.memory.clear()
    assert context.load_state_file(str(path)) == TOKENS
    assert last(context) == [39, -1]
    context.save_state_file(path, [5], seq_id=0)
    assert context.load_state_file(path, seq_id=1) == [5]
    for bad in (tmp_path / "no" / "where", tmp_path):
        for call in (context.save_state_file, context.load_state_file):
            with pytest.raises(OSError, match=re.escape(str(tmp_path))):
                call(bad)
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_written_atomically(context: Context, tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        context.save_state_file(tmp_path / "some.state", [259])
    assert not list(tmp_path.iterdir())


def test_damage(context: Context) -> None:
    data = context.save_state(TOKENS)
    step = max(1, len(data) // 300)
    for i in [*range(300), *range(300, len(data), step)]:
        damaged = bytearray(data)
        damaged[i] ^= 1 << i % 8
        with pytest.raises(ValidationError):
            context.load_state(bytes(damaged))
    for cut in [*range(60), len(data) // 2, len(data) - 1]:
        with pytest.raises(ValidationError):
            context.load_state(data[:cut])
    with pytest.raises(ValidationError, match="damaged"):
        context.load_state(data + b"\0")
    assert last(context) == [39, -1]


@given(st.binary(max_size=200))
def test_bytes_that_are_not_a_state(model: Model, data: bytes) -> None:
    from llama_cffi.binding.context.state import _parse

    with pytest.raises(ValidationError, match="not a state"):
        _parse(data)


@pytest.mark.parametrize("data", [None, "text", 5, [1], object()])
def test_objects_that_are_not_bytes(context: Context, data: Any) -> None:
    with pytest.raises(ValidationError, match="bytes"):
        context.load_state(data)


def test_any_bytes_like_object(context: Context) -> None:
    data = context.save_state([1])
    assert context.load_state(bytearray(data)) == [1]  # type: ignore[arg-type]
    assert context.load_state(memoryview(data)) == [1]  # type: ignore[arg-type]


def test_whole_context_or_one_sequence(context: Context) -> None:
    whole, one = context.save_state(), context.save_state(seq_id=0)
    with pytest.raises(ValidationError, match="without seq_id"):
        context.load_state(whole, seq_id=0)
    with pytest.raises(ValidationError, match="seq_id"):
        context.load_state(one)
    for seq_id in (-1, 2, 2**40, 0.5):
        with pytest.raises(ValidationError):
            context.load_state(one, seq_id=seq_id)  # type: ignore[arg-type]
        with pytest.raises(ValidationError):
            context.save_state(seq_id=seq_id)  # type: ignore[arg-type]
    assert last(context) == [39, -1]


@pytest.mark.parametrize("tokens", [[-1], [259], [2**40], [0.5], ["a"], [None]])
def test_tokens_that_do_not_exist(context: Context, tokens: Any) -> None:
    with pytest.raises(ValidationError):
        context.save_state(tokens)


def test_other_contexts(model: Model, context: Context, tmp_path: Path) -> None:
    """What does not fit is refused with both values, before anything is lost."""
    data = context.save_state()
    unified = context.kv_unified
    with Model(write_tiny(tmp_path / "other.gguf", seed=1)) as other_model:
        cases = [
            (make(other_model, kv_unified=unified), "model llama"),
            (make(model, kv_unified=not unified), "caches"),
            (make(model, kv_unified=unified, type_k="f32"), "type_k"),
        ]
        for other, why in cases:
            with other:
                feed(other, [1, 2])
                with pytest.raises(ValidationError, match=why):
                    other.load_state(data)
                assert last(other)[0] == 1


def test_flash_attention(model: Model) -> None:
    with make(model, flash_attn=True) as on, make(model, flash_attn=False) as off:
        feed(on, TOKENS)
        with pytest.raises(ValidationError, match=r"flash_attn on.*off"):
            off.load_state(on.save_state())


def test_fewer_sequences(model: Model) -> None:
    with make(model, n_seq_max=3, kv_unified=True) as three, make(model, kv_unified=True) as two:
        feed(three, TOKENS, 0, 1)
        two.load_state(three.save_state())
        assert last(two) == [-1, 39]
        feed(three, TOKENS, 0, 2)
        with pytest.raises(ValidationError, match=r"3 sequences.*n_seq_max=2"):
            two.load_state(three.save_state())
        assert last(two) == [-1, 39]


def test_nothing_is_saved_during_a_pending_update(context: Context) -> None:
    """C would save keys that are not rotated yet, and copy over what was loaded."""
    data = context.save_state()
    memory = context.memory
    memory.seq_rm(0, 0, 10)
    for move in (
        lambda: memory.seq_add(0, 10, -1, -10),
        lambda: memory.seq_div(0, 0, -1, 2),
        lambda: memory.seq_cp(0, 1) if not context.kv_unified else memory.seq_add(0, 0, -1, 1),
    ):
        move()
        with pytest.raises(ValidationError, match="decode a token"):
            context.save_state()
        with pytest.raises(ValidationError, match="decode a token"):
            context.load_state(data)
        feed(context, [1], memory.seq_pos_max(0) + 1)
        context.save_state()
    context.load_state(data)
    assert last(context) == [39, -1]


def test_state_of_shifted_positions(model: Model) -> None:
    with make(model) as context:
        feed(context, TOKENS)
        context.memory.seq_add(0, 0, -1, 20)
        feed(context, [5], 60)
        data = context.save_state(seq_id=0)
        expected = feed(context, [9], 61)
        context.load_state(data, seq_id=0)
        assert np.allclose(feed(context, [9], 61), expected, atol=1e-3)


def test_forged_headers(context: Context) -> None:
    data = context.save_state([1, 2])
    edits: list[Callable[[Any], object]] = [
        lambda h: h.clear(),
        lambda h: h.pop("build"),
        lambda h: h.pop("parts"),
        lambda h: h.update(build="b1"),
        lambda h: h.update(model=None),
        lambda h: h.update(tokens=None),
        lambda h: h.update(tokens=["a"]),
        lambda h: h.update(tokens=[-1]),
        lambda h: h.update(parts=[[0, 39]]),
        lambda h: h.update(parts=[[0, 39, 5]]),
        lambda h: h.update(parts=[]),
        lambda h: h.update(parts={"a": 1}),
        lambda h: h["parts"][0].__setitem__(0, -1),
        lambda h: h["parts"][0].__setitem__(0, 2),
        lambda h: h["parts"][0].__setitem__(0, True),
        lambda h: h["parts"][0].__setitem__(1, "a"),
        lambda h: h["parts"].append([1, 0, 0]),
    ]
    for edit in edits:
        with pytest.raises(LlamaError):
            context.load_state(forged(data, edit))
    headers: list[Any] = [None, 5, "text", [], {}, [1]]
    for header in headers:
        with pytest.raises(ValidationError):
            context.load_state(with_header(data, header))
    context.load_state(data)


def test_every_field_of_the_header_is_needed(context: Context) -> None:
    data = context.save_state([1, 2])
    n = _PREFIX.unpack_from(data)[3]
    for name in json.loads(data[_PREFIX.size : _PREFIX.size + n]):
        if name == "n_ctx":  # for people
            continue
        for edit in (
            lambda h, name=name: h.pop(name),
            lambda h, name=name: h.update({name: 2**70}),
        ):
            with pytest.raises(ValidationError):
                context.load_state(forged(data, edit))
    assert last(context) == [39, -1]


_CELLS = """
    import json, sys, zlib
    from llama_cffi import LlamaError
    from llama_cffi.binding import Batch, Context, Model
    from llama_cffi.binding.context.state import _PREFIX
    n_loaded = n_refused = 0
    for path in sys.argv[1:]:
        with Model(path) as model:
            with Context(model, n_ctx=256, n_seq_max=2, n_threads=1, kv_unified=True) as context:
                batch = Batch(40)
                batch.fill(list(range(40)), 0)
                context.decode(batch)
                data = context.save_state()
                n = _PREFIX.unpack_from(data)[3]
                begin = _PREFIX.size + n
                for at in range(begin, begin + 16, 4):
                    for number in (0, 2, 41, 257, 2**15, 2**31, 2**32 - 1):
                        changed = bytearray(data)
                        changed[at : at + 4] = number.to_bytes(4, "little")
                        changed[:_PREFIX.size] = _PREFIX.pack(
                            b"llmcffi\\0", 1, zlib.crc32(changed[_PREFIX.size :]), n
                        )
                        try:
                            context.load_state(bytes(changed))
                            n_loaded += 1
                        except LlamaError:
                            n_refused += 1
                            assert context.memory.seq_pos_max(0) == -1
                assert context.load_state(data) == []
                assert context.memory.seq_pos_max(0) == 39
                batch.fill(list(range(40)), 40)
                context.decode(batch)
    print(n_loaded + n_refused, n_refused > n_loaded)
"""


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_the_number_of_cells_is_checked_before_c(
    child: Child, tiny_model: Path, tmp_path: Path, build: str
) -> None:
    """C aborts on 0 cells, reads past the end, or fills memory for 2^31 of them."""
    recurrent = write_recurrent(tmp_path / "recurrent.gguf")
    result = child(_CELLS, tiny_model, recurrent, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stdout, result.stderr) == (0, "56 True\n", "")


def test_a_state_that_ends_elsewhere_is_dropped(context: Context) -> None:
    data = context.save_state()
    with pytest.raises(LlamaError, match="last position 39 instead of 41"):
        context.load_state(forged(data, lambda h: h["parts"][0].__setitem__(1, 41)))
    assert last(context) == [-1, -1]
    feed(context, TOKENS)


@pytest.mark.parametrize("write", [write_recurrent, write_windowed])
def test_other_memories(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    with Model(write(tmp_path / "m.gguf")) as model, make(model) as context, make(model) as other:
        tokens = TOKENS * 3
        feed(context, tokens)
        whole, one = context.save_state(), context.save_state(seq_id=0)
        expected = feed(context, [9], 120)
        other.load_state(whole)
        assert np.allclose(feed(other, [9], 120), expected, atol=1e-2)
        other.load_state(one, seq_id=1)
        assert last(other) == [120, 119]
        assert np.allclose(feed(other, [9], 120, 1), expected, atol=1e-2)


def test_closed(tiny_model: Path) -> None:
    with Model(tiny_model) as model:
        context = make(model)
        data = context.save_state()
        context.close()
        for call in (context.save_state, lambda: context.load_state(data)):
            with pytest.raises(ValidationError, match="closed"):
                call()


_STORY = """
    import sys
    from pathlib import Path
    from llama_cffi import LlamaError
    from llama_cffi.binding import Batch, Context, Model
    def feed(context, tokens, pos=0, seq_id=0):
        batch = Batch(len(tokens))
        batch.fill(tokens, pos, seq_id)
        context.decode(batch)
        return context.logits().copy()
    def make(unified):
        return Context(model, n_ctx=512, n_seq_max=3, n_threads=1, kv_unified=unified)
    tokens = list(range(30))
    for path in sys.argv[2:]:
        model = Model(path)
        for unified in (True, False):
            with make(unified) as context, make(unified) as other:
                feed(context, tokens)
                feed(context, tokens[::-1], 0, 2)
                whole = context.save_state(tokens)
                one = context.save_state(tokens, seq_id=0)
                expected = feed(context, [9], 30)
                assert other.load_state(whole) == tokens
                assert [other.memory.seq_pos_max(s) for s in range(3)] == [29, -1, 29]
                assert abs(feed(other, [9], 30) - expected).max() < 1e-3
                assert other.load_state(one, seq_id=1) == tokens
                assert abs(feed(other, [9], 30, 1) - expected).max() < 1e-3
                nothing = make(unified).save_state()
                other.load_state(nothing)
                assert [other.memory.seq_pos_max(s) for s in range(3)] == [-1, -1, -1]
    foreign = Path(sys.argv[1])
    if foreign.exists():
        try:
            other = make(True)
            other.load_state_file(foreign)
        except LlamaError as e:
            assert "saved with build" in str(e), e
        else:
            raise SystemExit("a state of another build was taken")
    make(True).save_state_file(foreign)
    print("alive")
"""


def test_every_build(child: Child, tiny_model: Path, tmp_path: Path) -> None:
    """Each build restores its own states and refuses those of the build before."""
    recurrent = write_recurrent(tmp_path / "recurrent.gguf")
    for build in (OLD, MIDDLE, NEWEST):
        result = child(
            _STORY, tmp_path / "some.state", tiny_model, recurrent, LLAMA_CFFI_BUILD=build
        )
        assert (result.returncode, result.stdout, result.stderr) == (0, "alive\n", ""), build

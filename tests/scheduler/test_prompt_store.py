"""Stored prompts: restored, they give the answers that computed ones give."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import struct
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.builds import MIDDLE, OLD
from support.children import Child
from support.odd_models import write_hybrid, write_recurrent, write_windowed
from support.rounding import EXACT

from llama_cffi import InferenceEngine, Llama, LlamaPool, Model, ValidationError
from llama_cffi.binding import Batch, Context
from llama_cffi.generation.prompt import Prompt
from llama_cffi.scheduler import prompt_files
from llama_cffi.scheduler.prompt_files import PromptFile, PromptFiles
from llama_cffi.scheduler.prompt_store import PromptStore

N_PROMPT = 120
_random = random.Random(5)
PROMPTS = [[_random.randrange(3, 250) for _ in range(N_PROMPT)] for _ in range(4)]
FIRST, SECOND, THIRD, OTHER = PROMPTS
OPTIONS: dict[str, Any] = {"n_ctx": 256, "n_threads": 1, "n_batch": 64, **EXACT}


def open_engine(model: Model, n_parallel: int = 1, **options: Any) -> InferenceEngine:
    return InferenceEngine(model, n_parallel, **{**OPTIONS, **options})


def ask(engine: InferenceEngine, prompt: list[int], **options: Any) -> tuple[list[int], int]:
    """Return the tokens of the answer, and how many of the prompt were not computed."""
    handle = engine.submit(prompt, 8, temperature=0, json_stop=(), **options)
    handle.result()
    return handle.request.generated_tokens, handle.stats.n_reused


def computed(engine: InferenceEngine, prompt: list[int]) -> list[int]:
    return ask(engine, prompt, cache_prompt=False)[0]


@pytest.fixture(scope="module")
def odd_models(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("odd")
    paths = {
        "plain": tiny_model,
        "windowed": write_windowed(folder / "windowed.gguf"),
        "recurrent": write_recurrent(folder / "recurrent.gguf"),
        "hybrid": write_hybrid(folder / "hybrid.gguf"),
    }
    models = {name: Model(path) for name, path in paths.items()}
    yield models
    for model in models.values():
        model.close()


@pytest.mark.parametrize("cells", [{}, {"n_kv_tokens": 256}], ids=["own cells", "shared cells"])
@pytest.mark.parametrize("kind", ["plain", "windowed", "recurrent", "hybrid"])
def test_the_next_turn_computes_only_its_tail(
    odd_models: dict[str, Model], kind: str, cells: dict[str, int]
) -> None:
    """Also where the template ends the prompt of the next turn differently."""
    with open_engine(odd_models[kind], swa_full=False, **cells) as engine:
        answer, _ = ask(engine, FIRST)
        turn = [*FIRST[:-3], *answer, *THIRD[:60]]
        for prompt in (SECOND, OTHER) if cells else (SECOND,):  # there are two sequences then
            ask(engine, prompt)
        found, n_reused = ask(engine, turn)
        assert n_reused >= (N_PROMPT - 16 if kind != "plain" else N_PROMPT - 3)
        assert engine.stats.cache.n_restored_tokens == n_reused
        assert engine.stats.requests.n_reused == n_reused
        assert found == computed(engine, turn)


def test_a_beginning_that_prompts_share_is_kept_for_models_that_continue_at_the_end_only(
    odd_models: dict[str, Model],
) -> None:
    prompts = [[*FIRST[:80], *other[:100]] for other in PROMPTS[1:]]
    with open_engine(odd_models["recurrent"]) as engine:
        assert [ask(engine, prompt)[1] for prompt in prompts] == [0, 0, 80]
        assert ask(engine, prompts[2])[0] == computed(engine, prompts[2])


def test_bursts_on_few_sequences_get_the_answers_that_each_gets_alone(model: Model) -> None:
    wanted = [[*PROMPTS[i % 3][: 90 + i], *OTHER[: 10 + i]] for i in range(12)]
    with open_engine(model, 3) as engine:
        expected = [computed(engine, prompt) for prompt in wanted]
        for _ in range(2):
            handles = [engine.submit(p, 8, temperature=0, json_stop=()) for p in wanted]
            for handle in handles:
                handle.result()
            assert [handle.request.generated_tokens for handle in handles] == expected
        assert engine.stats.cache.n_restored_tokens > 0


def test_a_prompt_that_asked_for_no_cache_is_not_stored(model: Model) -> None:
    with open_engine(model) as engine:
        computed(engine, FIRST)
        ask(engine, SECOND)
        assert engine.stats.cache.n_stored == 0
        ask(engine, THIRD)
        assert engine.stats.cache.n_stored == 1


def test_without_ram_and_disk_nothing_is_stored(model: Model) -> None:
    with open_engine(model, cache_ram=0) as engine:
        ask(engine, FIRST)
        ask(engine, SECOND)
        assert ask(engine, FIRST)[1] == 0
        assert engine.stats.cache.n_stored == 0


def test_clearing_the_cache_drops_what_is_in_ram(model: Model) -> None:
    with open_engine(model) as engine:
        ask(engine, FIRST)
        ask(engine, SECOND)
        assert engine.stats.cache.n_stored_bytes > 0
        engine.cache_clear()
        assert ask(engine, FIRST)[1] == 0
        assert engine.stats.cache.n_stored_bytes == 0


def store(context: Context, kept: PromptStore, prompt: list[int], lora: Any = None) -> None:
    batch = Batch(len(prompt))
    batch.fill(prompt, 0, 0)
    context.memory.seq_rm(0)
    context.decode(batch)
    kept.save(0, Prompt(prompt), lora)


def test_ram_holds_the_most_recently_used_prompts(model: Model) -> None:
    with Context(model, n_ctx=256, n_threads=1) as context:
        probe = PromptStore(context, 2**30)
        store(context, probe, FIRST)
        most = 2 * probe.n_bytes + 100  # their tokens have more or fewer digits
        kept = PromptStore(context, most)
        for prompt in (FIRST, SECOND):
            store(context, kept, prompt)
        first = kept.find([*FIRST, 1], None, 64)
        assert first is not None
        state = kept.read(first)
        assert state is not None
        assert kept.restore(first, state, 0)
        store(context, kept, THIRD)
        assert len(kept) == 2
        assert kept.n_bytes <= most
        held = [p for p in PROMPTS if kept.find([*p, 1], None, 64) is not None]
        assert held == [FIRST, THIRD]
        store(context, kept, OTHER[:64])
        assert kept.n_bytes <= most


def test_other_adapters_have_other_prompts(model: Model, tiny_model: Path) -> None:
    with Context(model, n_ctx=256, n_threads=1) as context:
        kept = PromptStore(context, 2**30)
        adapted = frozenset({(str(tiny_model), 1.0)})
        store(context, kept, FIRST, adapted)
        for key, found in [
            (adapted, True),
            (None, False),
            (frozenset({(str(tiny_model), 0.5)}), False),
            (frozenset({("missing.gguf", 1.0)}), False),
        ]:
            assert (kept.find([*FIRST, 1], key, 64) is not None) is found


_STORY = """
    import sys
    from llama_cffi import InferenceEngine
    path, folder, prompts, options = sys.argv[1], sys.argv[2], eval(sys.argv[3]), eval(sys.argv[4])
    for prompt in prompts:
        with InferenceEngine(path, 1, cache_dir=folder, **options) as engine:
            handle = engine.submit(prompt, 8, temperature=0, json_stop=())
            handle.result()
            print(handle.stats.n_reused, handle.request.generated_tokens)
"""


def test_disk_survives_the_process(
    child: Child, model: Model, tiny_model: Path, tmp_path: Path
) -> None:
    result = child(_STORY, tiny_model, tmp_path, [FIRST], OPTIONS)
    assert (result.returncode, result.stderr) == (0, "")
    with open_engine(model, cache_dir=tmp_path, cache_ram=0) as engine:
        answer, n_reused = ask(engine, FIRST)
        assert n_reused == N_PROMPT - 1
        assert answer == computed(engine, FIRST)
        assert result.stdout == f"0 {answer}\n"


def test_old_builds_restore_and_other_builds_have_files_of_their_own(
    child: Child, tmp_path: Path
) -> None:
    path = write_recurrent(tmp_path / "recurrent.gguf")
    options = {"n_ctx": 256, "n_threads": 1}
    prompts = [FIRST, [*FIRST, *SECOND[:20]]]
    for build in (OLD, MIDDLE):
        result = child(_STORY, path, tmp_path / "cache", prompts, options, LLAMA_CFFI_BUILD=build)
        assert (result.returncode, result.stderr) == (0, ""), build
        n_reused = [int(line.split()[0]) for line in result.stdout.splitlines()]
        assert [n >= N_PROMPT - 16 for n in n_reused] == [False, True], build


def resealed(data: bytes, edit: Callable[[dict[str, Any]], object]) -> bytes:
    """Change the header of a file, with a valid checksum."""
    magic, version, _, n = struct.unpack_from("<8sIIQ", data)
    header = json.loads(data[24 : 24 + n])
    edit(header)
    text = json.dumps(header).encode()
    return (
        struct.pack("<8sIIQ", magic, version, zlib.crc32(text), len(text)) + text + data[24 + n :]
    )


def of_another_build(data: bytes) -> bytes:
    """Change the build in the state within a file, with a valid checksum of the same length."""
    body = bytearray(data)
    at = data.index(b"llmcffi\0")
    where = data.index(b'"build":', at) + len(b'"build":') + 2
    body[where] = ord("9") if body[where] != ord("9") else ord("8")
    struct.pack_into("<I", body, at + 12, zlib.crc32(body[at + 24 :]))
    return bytes(body)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda d: b"",
    "garbage": lambda d: bytes(reversed(d)),
    "truncated in the header": lambda d: d[:60],
    "truncated in the state": lambda d: d[:-1],
    "longer": lambda d: d + b"\0",
    "a flipped bit of the header": lambda d: d[:40] + bytes([d[40] ^ 1]) + d[41:],
    "a flipped bit of the state": lambda d: d[:-9] + bytes([d[-9] ^ 16]) + d[-8:],
    "an older format": lambda d: d[:8] + struct.pack("<I", 0) + d[12:],
    "of another model": lambda d: resealed(d, lambda h: h.update(key="0" * 64)),
    "of another prompt": lambda d: resealed(d, lambda h: h["tokens"].__setitem__(70, 7)),
    "tokens that are none": lambda d: resealed(d, lambda h: h.update(tokens=["a"])),
    "without a field": lambda d: resealed(d, lambda h: h.pop("first_cut")),
    "of another build": of_another_build,
}


@pytest.fixture(scope="module")
def written(model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    """A file of the first prompt, and its path in the cache."""
    folder = tmp_path_factory.mktemp("written")
    with open_engine(model, cache_dir=folder) as engine:
        ask(engine, FIRST)
    (path,) = folder.glob("*/*")
    return path.read_bytes(), path.relative_to(folder)


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_and_foreign_files_are_dropped(
    model: Model, written: tuple[bytes, Path], tmp_path: Path, kind: str
) -> None:
    data, name = written
    path = tmp_path / name
    path.parent.mkdir(mode=0o700)
    path.write_bytes(damaged := DAMAGE[kind](data))
    assert damaged != data
    with open_engine(model, cache_dir=tmp_path) as engine:
        prompt = [*FIRST[:70], 7, *FIRST[71:]] if kind == "of another prompt" else FIRST
        answer, n_reused = ask(engine, prompt)
        assert n_reused < 64
        assert answer == computed(engine, prompt)
    assert not path.exists() or path.read_bytes() != damaged
    assert len([*tmp_path.glob("*/*")]) >= 1


@pytest.mark.parametrize("place", ["full", "no folder"])
def test_a_disk_that_takes_nothing_is_logged_once(
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    place: str,
) -> None:
    folder = tmp_path / "cache"
    if place == "full":

        def full(*_: Any, **__: Any) -> Any:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(tempfile, "mkstemp", full)
    else:
        (tmp_path / "file").write_bytes(b"")
        folder = tmp_path / "file" / "cache"
    caplog.set_level(logging.INFO, "llama_cffi.scheduler")
    with open_engine(model, cache_dir=folder) as engine:
        for prompt in (*PROMPTS, FIRST):
            answer, n_reused = ask(engine, prompt)
        assert n_reused == N_PROMPT - 1  # from RAM
        assert answer == computed(engine, FIRST)
    lines = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert [("no longer written" in r.getMessage()) for r in lines] == [True]


def test_the_least_recently_used_files_make_place(tmp_path: Path) -> None:
    other = PromptFiles(tmp_path, "other", 2**20)
    first = other.write([1] * 64, "", 1, bytes(1000))
    other.close()
    assert first is not None
    os.utime(tmp_path / "other" / first.name, (1, 1))
    files = PromptFiles(tmp_path, "key", 3000)
    written = [files.write([n] * 64, "", 1, bytes([n]) * 900) for n in (2, 3)]
    files.close()
    assert not (tmp_path / "other" / first.name).exists()
    again = PromptFiles(tmp_path, "key", 3000)
    assert sorted(f.tokens[0] for f in again.scan()) == [2, 3]
    assert [again.read(f) for f in written if f] == [b"\2" * 900, b"\3" * 900]
    assert again.write([4] * 64, "", 1, bytes(4000)) is None  # more than fits
    assert again.read(PromptFile("missing", [], "", 1, 0)) is None
    again.close()


def test_files_are_read_before_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = PromptFiles(tmp_path, "key", 2**20)
    monkeypatch.setattr(prompt_files, "_MAX_PENDING_BYTES", 1500)
    disk = threading.Event()
    files._writer.submit(disk.wait)
    first = files.write([1] * 64, "", 1, bytes(1000))
    assert first is not None
    assert files.read(first) == bytes(1000)
    assert files.write([2] * 64, "", 1, bytes(1000)) is None  # too much waits
    disk.set()
    assert files.write([3] * 64, "", 1, bytes(1000), wait=True) is not None
    files.close()
    assert len([*tmp_path.glob("*/*.prompt")]) == 2


@pytest.mark.parametrize("n_parallel", [1, 2])
def test_llama_and_pools_take_the_options(model: Model, tmp_path: Path, n_parallel: int) -> None:
    options: dict[str, Any] = {"n_parallel": n_parallel, "cache_dir": tmp_path, **OPTIONS}
    for n_reused in (0, N_PROMPT - 1):
        with Llama(model, **options) if n_parallel == 1 else LlamaPool(model, **options).llm as llm:
            found = llm.create_completion(FIRST, max_tokens=1)["usage"]["prompt_tokens_details"]
        assert found == {"cached_tokens": n_reused}
    with Llama(model, n_ctx=256, n_threads=1, cache_ram=1) as llm:
        assert isinstance(llm.engine, InferenceEngine)
    with Llama(model, n_ctx=256, n_threads=1, cache_ram=0) as llm:
        assert not isinstance(llm.engine, InferenceEngine)


def test_wrong_options_are_refused(model: Model, tmp_path: Path) -> None:
    (file := tmp_path / "file").write_bytes(b"")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"cache_ram": -2}, "cache_ram"),
        ({"cache_ram": "1G"}, "cache_ram"),
        ({"cache_disk": -2}, "cache_disk"),
        ({"cache_dir": file}, "is a file"),
        ({"cache_dir": 5}, "cache_dir"),
    ]
    for options, message in wrong:
        with pytest.raises(ValidationError, match=message):
            open_engine(model, **options)

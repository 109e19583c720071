"""POST /slots/{id}: what a slot holds is saved, restored and erased."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from support.http_requests import Reply, connect, post, request_bytes, send
from support.loras import make_pairs, write_lora
from support.server_state import engine_of, wait_for

from llama_cffi import LlamaPool, ValidationError
from llama_cffi.server.http_server import HttpServer

PROMPT = [3 + i * 7 % 240 for i in range(100)]
OTHER = [3 + i * 11 % 240 for i in range(100)]


def open_pool(model: Path, n_ctx: int = 128, **options: Any) -> LlamaPool:
    return LlamaPool(model, n_parallel=2, n_ctx=n_ctx, n_threads=1, **options)


def ask(server: HttpServer, prompt: list[int], **fields: Any) -> tuple[int, int, str]:
    """Return the slot, how many tokens were evaluated, and the text."""
    fields = {"n_predict": 4, "temperature": 0, "ignore_eos": True, **fields}
    reply = post(f"{server.url}/completion", {"prompt": prompt, **fields})
    assert reply.status == 200, reply.body
    found = reply.json
    return found["id_slot"], found["timings"]["prompt_n"], found["content"]


def act(server: HttpServer, action: str, slot: object, **body: Any) -> Reply:
    return post(f"{server.url}/slots/{slot}?action={action}", body)


def done(server: HttpServer, action: str, slot: int, **body: Any) -> Any:
    reply = act(server, action, slot, **body)
    assert reply.status == 200, reply.body
    return reply.json


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slots")


@pytest.fixture(scope="module")
def saving_pool(tiny_model: Path) -> Iterator[LlamaPool]:
    with open_pool(tiny_model) as pool:
        yield pool


@pytest.fixture
def saving(saving_pool: LlamaPool, folder: Path) -> Iterator[HttpServer]:
    """A server whose slots are empty."""
    saving_pool.llm.reset()
    with saving_pool.serve(slot_save_path=folder) as server:
        yield server


def test_without_a_folder_or_a_scheduler_slots_are_501(
    saving_pool: LlamaPool, folder: Path, tiny_model: Path
) -> None:
    with (
        LlamaPool(tiny_model, 1, n_ctx=64, n_threads=1) as single,
        single.serve(slot_save_path=folder) as one_slot,
        saving_pool.serve() as server,
    ):
        for action in ("save", "restore", "erase"):
            for url, words in ((server, "--slot-save-path"), (one_slot, "scheduler")):
                reply = act(url, action, 0, filename="a")
                assert (reply.status, reply.error["type"]) == (501, "not_supported_error")
                assert words in reply.error["message"]


def test_the_folder_must_be_there(saving_pool: LlamaPool, folder: Path) -> None:
    with pytest.raises(ValidationError, match=r"slot_save_path=.* is not a folder"):
        saving_pool.serve(slot_save_path=folder / "missing")


def test_wrong_actions_slots_and_files_are_told(saving: HttpServer) -> None:
    for action in ("", "keep"):
        reply = act(saving, action, 0, filename="a")
        assert (reply.status, "save, restore, erase" in reply.error["message"]) == (400, True)
    for slot in (2, -1, 10**30, "x", "²"):
        reply = act(saving, "erase", quote(str(slot)))
        assert (reply.status, "ids: 0 to 1" in reply.error["message"]) == (400, True)
    reply = act(saving, "restore", 0, filename="never saved")
    assert (reply.status, reply.error["param"]) == (404, "filename")


@pytest.mark.behaviour(
    "slot files: saved and restored tokens are counted, and only the tail is evaluated again"
)
def test_a_restored_prompt_is_counted_and_only_its_tail_is_evaluated(
    saving: HttpServer, folder: Path
) -> None:
    slot, n_evaluated, text = ask(saving, PROMPT)
    assert n_evaluated == len(PROMPT)
    saved = done(saving, "save", slot, filename="a prompt.bin")
    path = folder / "a prompt.bin"
    assert saved.pop("timings").keys() == {"save_ms"}
    n_cells = len(PROMPT) + 3  # the last token of an answer is not decoded
    expected = {"id_slot": slot, "filename": path.name, "n_saved": n_cells}
    assert saved == {**expected, "n_written": path.stat().st_size}
    for i in range(2):
        done(saving, "erase", i)
    restored = done(saving, "restore", 1, filename=path.name)
    assert restored.pop("timings").keys() == {"restore_ms"}
    expected = {"id_slot": 1, "filename": path.name, "n_restored": n_cells}
    assert restored == {**expected, "n_read": path.stat().st_size}
    assert ask(saving, [*PROMPT, 9, 10])[1] <= 2  # an answer may have begun with 9
    assert ask(saving, PROMPT)[2] == text


@pytest.mark.behaviour("slot files: after erase the whole prompt is evaluated again")
def test_an_erased_prompt_is_evaluated_again(saving: HttpServer) -> None:
    slot = ask(saving, PROMPT)[0]
    assert ask(saving, PROMPT)[1] < len(PROMPT)
    other = ask(saving, OTHER)[0]
    assert other != slot
    assert done(saving, "erase", slot) == {"id_slot": slot, "n_erased": len(PROMPT) + 3}
    empty = send("POST", f"{saving.url}/slots/{slot}?action=erase")  # without a body
    assert (empty.status, empty.json) == (200, {"id_slot": slot, "n_erased": 0})
    assert ask(saving, OTHER)[1] == 1
    assert ask(saving, PROMPT)[1] == len(PROMPT)


@pytest.mark.behaviour("slot files: a file survives a restart")
def test_a_file_is_restored_by_another_server(
    saving: HttpServer, folder: Path, tiny_model: Path
) -> None:
    slot, _, text = ask(saving, PROMPT)
    done(saving, "save", slot, filename="kept")
    with (
        open_pool(tiny_model, cache_ram=0) as pool,
        pool.serve(slot_save_path=folder) as server,
    ):
        assert done(server, "restore", 0, filename="kept")["n_restored"] == len(PROMPT) + 3
        assert ask(server, PROMPT) == (0, 1, text)


@pytest.mark.behaviour(
    "slot files: a file that does not fit the context is refused, and the slot stays usable"
)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(
    saving: HttpServer, folder: Path, tiny_model: Path
) -> None:
    done(saving, "save", ask(saving, PROMPT)[0], filename="long")
    done(saving, "save", ask(saving, OTHER[:20])[0], filename="short")
    with (
        open_pool(tiny_model, n_ctx=64, type_k="f32") as pool,
        pool.serve(slot_save_path=folder) as server,
    ):
        slot = ask(server, PROMPT[:40])[0]
        reply = act(server, "restore", slot, filename="long")
        assert (reply.status, reply.error["type"]) == (400, "exceed_context_size_error")
        assert (reply.error["n_prompt_tokens"], reply.error["n_ctx"]) == (len(PROMPT) + 3, 64)
        reply = act(server, "restore", slot, filename="short")
        assert reply.status == 400
        assert "type of cache" in reply.error["message"]
        assert done(server, "save", slot, filename="unchanged")["n_saved"] == 40 + 3
        assert ask(server, PROMPT[:40])[0] in (0, 1)
    data = (folder / "long").read_bytes()
    slot = ask(saving, PROMPT)[0]
    for name, damaged in {"cut": data[:-9], "none": b"", "bits": data[:-9] + bytes(9)}.items():
        (folder / name).write_bytes(damaged)
        reply = act(saving, "restore", slot, filename=name)
        assert (reply.status, "damaged" in reply.error["message"]) == (400, True)
    assert ask(saving, PROMPT)[1] == 1  # what the slot held went to RAM


def test_an_empty_slot_is_not_saved(saving: HttpServer) -> None:
    reply = act(saving, "save", 0, filename="nothing")
    assert (reply.status, "empty" in reply.error["message"]) == (400, True)


@pytest.mark.behaviour("slot files: what is asked of a busy slot waits until it is idle")
def test_a_busy_slot_is_waited_for(
    saving: HttpServer, saving_pool: LlamaPool, folder: Path
) -> None:
    engine, seen = engine_of(saving_pool), list[str]()
    done(saving, "save", ask(saving, OTHER)[0], filename="other")
    file = (folder / "other").read_bytes()

    def pause_once(text: str) -> None:
        seen.append(text)
        if len(seen) == 1:
            engine.pause()

    handle = engine.submit(PROMPT, 20, temperature=0, ignore_eos=True, callback=pause_once)
    n_cells, deferred = len(PROMPT) + 19, engine._queue._deferred
    try:
        wait_for(lambda: engine.paused)
        slot = handle.request.seq_id
        for call in (partial(engine.save_prompt, slot, folder / "x"),
                     partial(engine.erase_prompt, slot)):  # fmt: skip
            with pytest.raises(ValidationError, match="in use"):
                call()
        with saving_pool.serve(slot_save_path=folder, max_request_s=0.05) as late:
            for action in ("save", "restore", "erase"):
                assert act(late, action, slot, filename="other").status == 504
        with connect(saving.url) as leaving, ThreadPoolExecutor(1) as threads:
            leaving.sendall(request_bytes(f"/slots/{slot}?action=erase", {}))
            wait_for(lambda: len(deferred) == 1)  # those that are late were dropped
            (erase,) = deferred
            leaving.close()
            wait_for(lambda: not saving._state.calls)
            saved = threads.submit(act, saving, "save", slot, filename="kept")
            wait_for(lambda: len(deferred) == 1 and deferred[0] is not erase)
            assert not saved.done()
            engine.resume()
            assert saved.result().json["n_saved"] == n_cells
        assert handle.done
    finally:
        handle.cancel()
        engine.resume()
    assert not deferred
    assert (folder / "other").read_bytes() == file
    assert done(saving, "erase", slot)["n_erased"] == n_cells  # the first one was given up
    assert done(saving, "restore", slot, filename="kept")["n_restored"] == n_cells


def test_who_waits_for_a_slot_is_told_that_the_engine_has_ended(tiny_model: Path) -> None:
    with open_pool(tiny_model) as pool, ThreadPoolExecutor(1) as threads:
        engine = engine_of(pool)
        handle = engine.submit(PROMPT, 20, ignore_eos=True, callback=lambda _: engine.pause())
        wait_for(lambda: engine.paused)
        erased = threads.submit(engine.erase_prompt, handle.request.seq_id, wait=True)
        wait_for(lambda: len(engine._queue._deferred) == 1)
        engine.shutdown(drain=False)
        assert erased.result(60) == handle.stats.n_prompt + handle.stats.n_generated - 1


def test_a_prompt_with_an_adapter_is_restored_for_requests_with_the_same(
    tiny_model: Path, folder: Path
) -> None:
    path = str(write_lora(folder / "lora.gguf", make_pairs(1)))
    options: dict[str, Any] = {"adapters": {path: 0.0}}
    scaled = {"lora": [{"id": 0, "scale": 0.5}]}
    for i in range(2):
        with (
            open_pool(tiny_model, **options) as pool,
            pool.serve(slot_save_path=folder) as server,
        ):
            if i == 0:
                slot, _, text = ask(server, PROMPT, **scaled)
                done(server, "save", slot, filename="adapted")
            else:
                done(server, "restore", 0, filename="adapted")
                assert ask(server, PROMPT)[1] == len(PROMPT)
                assert ask(server, PROMPT, **scaled) == (0, 1, text)
    with open_pool(tiny_model) as pool, pool.serve(slot_save_path=folder) as server:
        reply = act(server, "restore", 0, filename="adapted")
        assert (reply.status, "lora.gguf" in reply.error["message"]) == (400, True)


@pytest.mark.parametrize(
    "filename",
    ["", ".", "..", "../a", "/tmp/a", "a/b", "a\\b", ".a", "a\0", "a\n", "x" * 201, 3, None],
)
def test_a_file_name_is_one_plain_name(saving: HttpServer, filename: object) -> None:
    for action in ("save", "restore"):
        reply = act(saving, action, 0, filename=filename)
        assert (reply.status, reply.error["param"]) == (400, "filename")

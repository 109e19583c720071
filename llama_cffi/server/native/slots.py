"""Slots, the sequences of the KV cache: GET /slots lists, POST /slots/{id} saves and restores."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from starlette.routing import BaseRoute, Route

from ...errors import DeadlineExceededError
from ...scheduler import InferenceEngine, Request
from ..body import STRING, take
from ..call import Answer, Call, Endpoint, Json
from ..errors import ApiError, invalid, not_supported
from ..models import ServedModel

__all__ = ["routes"]

_Action: TypeAlias = Callable[[InferenceEngine, int, Call], dict[str, object]]
_MAX_NAME_BYTES = 200
_NOT_IN_NAMES = frozenset('/\\<>:"|?*')


def routes() -> list[BaseRoute]:
    """Return the routes of this module."""
    action = Endpoint(_act, needs_model=False, may_be_empty=True)
    return [
        Route("/slots", Endpoint(_list, reads_body=False), methods=["GET"]),
        Route("/slots/{id}", action, methods=["POST"]),
    ]


async def _list(call: Call) -> Answer:
    if not call.state.settings.slots:
        raise not_supported("this server does not tell its slots; start it with --slots")
    slots = _slots(call.state.models.find(call.query("model")))
    if call.query("fail_on_no_slot") == "1" and all(slot["is_processing"] for slot in slots):
        message, headers = f"all {len(slots)} slots are busy", {"Retry-After": "1"}
        raise ApiError(503, message, "unavailable_error", headers=headers)
    return Json(slots)


def _slots(model: ServedModel) -> list[dict[str, object]]:
    """Return the state of each slot, without prompts and answers."""
    llm = model.llm
    engine = llm.engine
    running: dict[int | None, Request] = {}
    if isinstance(engine, InferenceEngine):
        running = {request.seq_id: request for request in [*engine.scheduler.running]}
        is_busy = [i in running for i in range(llm.config.n_parallel)]
    else:
        is_busy = [model.n_requests > 0]
    common = {"n_ctx": int(llm.n_ctx), "speculative": llm.config.draft is not None}
    return [
        {"id": i, **common, "is_processing": busy, **_task(running.get(i))}
        for i, busy in enumerate(is_busy)
    ]


def _task(request: Request | None) -> dict[str, object]:
    if request is None:
        return {}
    n = request.n_generated
    n_remain = request.max_tokens - n
    return {
        "id_task": request.number,
        "n_prompt_tokens": len(request.prompt),
        "n_prompt_tokens_processed": min(request.num_computed_tokens, len(request.prompt)),
        "next_token": {"has_next_token": n_remain > 0, "n_decoded": n, "n_remain": n_remain},
    }


async def _act(call: Call) -> Answer:
    """Save, restore or erase what a slot holds."""
    if call.state.settings.slot_save_path is None:
        raise not_supported(
            "this server does not save, restore or erase slots; start it with --slot-save-path DIR"
        )
    name = call.query("action") or ""
    action = _ACTIONS.get(name)
    if action is None:
        raise invalid("action", f"?action= must be {', '.join(_ACTIONS)}, got {name!r:.60}")
    call.body.setdefault("model", call.query("model"))
    await call.hold_model()
    engine = call.model.llm.engine
    if not isinstance(engine, InferenceEngine):
        raise not_supported(
            "saving, restoring and erasing slots needs a scheduler; start the server with -np 2 or "
            "more, or with --cache-ram"
        )
    text, n_slots = call.path_params["id"], engine.cache.n_seqs
    slot = int(text) if text.isascii() and text.isdecimal() and len(text) <= 4 else n_slots
    if slot >= n_slots:
        raise invalid("id", f"there is no slot {text!r:.60}; ids: 0 to {n_slots - 1}")
    return Json({"id_slot": slot, **await asyncio.to_thread(action, engine, slot, call)})


def _save(engine: InferenceEngine, slot: int, call: Call) -> dict[str, object]:
    path, started = _file(call), time.perf_counter()
    try:
        n = engine.save_prompt(slot, path, wait=True)
        n_bytes = path.stat().st_size
    except DeadlineExceededError:  # a TimeoutError, which is an OSError
        raise
    except OSError as e:
        reason = f"{path.name} was not written: {e.strerror}"
        raise ApiError(500, reason, "server_error") from e
    timings = {"save_ms": (time.perf_counter() - started) * 1000}
    return {"filename": path.name, "n_saved": n, "n_written": n_bytes, "timings": timings}


def _restore(engine: InferenceEngine, slot: int, call: Call) -> dict[str, object]:
    path, started = _file(call), time.perf_counter()
    try:
        n_bytes = path.stat().st_size
        n = engine.restore_prompt(slot, path, wait=True)
    except DeadlineExceededError:
        raise
    except FileNotFoundError:
        reason = f"there is no file {path.name!r} in the server's --slot-save-path"
        raise ApiError(404, reason, "not_found_error", param="filename") from None
    except OSError as e:
        raise ApiError(500, f"{path.name} was not read: {e.strerror}", "server_error") from e
    timings = {"restore_ms": (time.perf_counter() - started) * 1000}
    return {"filename": path.name, "n_restored": n, "n_read": n_bytes, "timings": timings}


def _erase(engine: InferenceEngine, slot: int, _call: Call) -> dict[str, object]:
    return {"n_erased": engine.erase_prompt(slot, wait=True)}


_ACTIONS: Mapping[str, _Action] = {"save": _save, "restore": _restore, "erase": _erase}


def _file(call: Call) -> Path:
    """Return the file that a request names.

    Raises:
        ApiError: The name is more than one.
    """
    name: str = take(call.body, {"filename": STRING}, "filename")["filename"]
    is_plain = name == name.strip() and name.isprintable() and name[:1] not in ("", ".")
    if not is_plain or len(name.encode()) > _MAX_NAME_BYTES or _NOT_IN_NAMES & {*name}:
        raise invalid(
            "filename",
            f"filename must be the name of a file without a folder, of at most {_MAX_NAME_BYTES} "
            f"bytes and not beginning with a dot, got {name!r:.60}",
        )
    folder = call.state.settings.slot_save_path
    assert folder is not None
    return Path(folder) / name

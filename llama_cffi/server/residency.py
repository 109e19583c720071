"""Residency: which models are in memory. They come when they are asked for, and others make way."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from itertools import count
from typing import Any, TypeVar

from ..binding import get_library
from ..binding.context.memory_estimate import memory_bytes
from ..errors import CancelledError, OutOfMemoryError, QueueFullError
from .errors import ApiError
from .served_model import ModelState, ServedModel
from .settings import Settings

__all__ = ["Residency"]

_log = logging.getLogger("llama_cffi.server")
T = TypeVar("T")


class _Load:
    """A load that clients wait for.

    Attributes:
        model: The model.
        before: Its state before.
        waiters: Of requests; they are settled when it is loaded, or cannot be.
        is_kept: Whether it goes on without a waiter.
        is_ready: Whether the file is here.
        cancelled: Ends it.
    """

    def __init__(self, model: ServedModel) -> None:
        self.model, self.before = model, model.state
        self.waiters: list[asyncio.Future[None]] = []
        self.is_kept = False
        self.is_ready = not model.is_remote
        self.cancelled = threading.Event()

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still wants it."""
        return self.is_kept or any(not waiter.done() for waiter in self.waiters)


class Residency:
    """Holds models in memory while requests use them, within limits.

    Loads happen one after the other, first come, first served. Requests for one model share its
    load, which goes on when they leave. To make place, the model goes that has not been used for
    longest and is idle; if none is, new requests for the one with the oldest last request
    wait behind the load until it has gone. All methods but `stop` are for the event loop, so
    nothing here is locked.

    Args:
        models: The models; it may change.
        settings: The limits.
    """

    def __init__(self, models: Iterable[ServedModel], settings: Settings) -> None:
        self._models, self._settings = models, settings
        self._loads: dict[ServedModel, _Load] = {}  # in the order of arrival
        self._retired = set[ServedModel]()
        self._clock = count(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._worker: asyncio.Task[None] | None = None
        self._current: _Load | None = None
        self._closings = set[asyncio.Future[None]]()
        self._fetches = set[asyncio.Future[None]]()
        self._woken: asyncio.Future[None] | None = None
        self._machine_bytes: int | None = None
        self._is_stopping = False

    def start(self) -> None:
        """Begin to count the idle time of models that are loaded."""
        self._is_stopping = False
        for model in self._models:
            if not model.n_calls:
                self._count_idle(model)

    def try_hold(self, model: ServedModel) -> bool:
        """Keep a loaded model in memory until `release`; return whether it is loaded."""
        if model.state is not ModelState.LOADED or model.is_leaving:
            return False
        model.n_calls += 1
        model.last_used = next(self._clock)
        if model.timer is not None:
            model.timer.cancel()
            model.timer = None
        return True

    async def hold(self, model: ServedModel, autoload: bool = True) -> None:
        """Load a model unless it is loaded, and keep it in memory until `release`.

        Args:
            model: The model.
            autoload: Whether it may be loaded; one that sleeps is woken in any case.

        Raises:
            ApiError: It is not loaded, and may not be.
            LlamaError: It cannot be loaded.
            QueueFullError: Too many requests wait for it already.
            CancelledError: It was unloaded meanwhile, or the server stops.
        """
        if self.try_hold(model):
            return
        if model not in self._loads and model.state is not ModelState.SLEEPING and not autoload:
            raise ApiError(
                400, f"the model {model.name} is not loaded, and this server loads none by itself; "
                "load it with POST /models/load", code="model_not_loaded", param="model",
            )  # fmt: skip
        load = self._want(model)
        n_waiting = sum(not waiter.done() for waiter in load.waiters)
        if n_waiting >= model.max_requests:
            raise QueueFullError(
                f"{n_waiting} requests wait until {model.name} is loaded, of at most "
                f"{model.max_requests}; try again later"
            )
        waiter = asyncio.get_running_loop().create_future()
        load.waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(model)
            raise

    def release(self, model: ServedModel) -> None:
        """Take back `hold`."""
        model.n_calls -= 1
        model.last_used = next(self._clock)
        if model.n_calls:
            return
        if model.is_unloading:
            self._close(model, ModelState.UNLOADED)
        else:
            self._count_idle(model)
        self._wake()

    def load(self, model: ServedModel) -> None:
        """Begin to load a model.

        Raises:
            ApiError: It is loaded.
        """
        if model.state is ModelState.LOADED and not model.is_leaving:
            raise ApiError(400, f"the model {model.name} is already loaded", param="model")
        self._want(model).is_kept = True

    def unload(self, model: ServedModel) -> None:
        """Free a model when its last answer has ended; a load is cancelled.

        Raises:
            ApiError: It is not loaded, or was opened by the program that serves it.
        """
        if model.is_pinned:
            message = (
                f"the model {model.name} belongs to the program that serves it; close it there"
            )
            raise ApiError(400, message, param="model")
        if model in self._loads:
            self._cancel(model, f"loading the model {model.name} was cancelled")
        elif model.state is ModelState.UNLOADED:
            raise ApiError(400, f"the model {model.name} is not loaded", param="model")
        self._leave(model)

    def is_free(self, model: ServedModel) -> bool:
        """Return whether a model is neither in memory nor asked for."""
        return not (model.is_open or model.n_calls or model in self._loads)

    def retire(self, model: ServedModel) -> None:
        """Free a model that is no longer one of the server's when its last answer has ended."""
        self._cancel(model, f"the model {model.name} is no longer there")
        if not model.is_pinned:
            self._retired.add(model)
            self._leave(model)
            self._forget(model)

    def stop(self) -> None:
        """Cancel all loads; those who wait get an error. May be called from any thread."""
        self._is_stopping = True
        for load in [*self._loads.values()]:
            load.cancelled.set()
        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(self._cancel_all)

    async def join(self) -> None:
        """Wait until nothing is loaded and freed any more, after `stop`."""
        self._cancel_all()
        for model in self._models:
            if model.timer is not None:
                model.timer.cancel()
                model.timer = None
        for fetch in self._fetches:
            fetch.cancel()
        if self._worker is not None:
            await asyncio.wait({self._worker})
        if self._closings:
            await asyncio.wait({*self._closings})

    @property
    def retired(self) -> Iterable[ServedModel]:
        """Models that are no longer the server's, but may be in memory."""
        return [*self._retired]

    # Loading

    def _want(self, model: ServedModel) -> _Load:
        if self._is_stopping:
            raise CancelledError("the server is shutting down")
        load = self._loads.get(model)
        if load is None or load.cancelled.is_set():  # that one ends, and this one follows
            load = self._loads[model] = _Load(model)
            if not model.is_open:
                model.state, model.progress = ModelState.LOADING, 0.0
            self._loop = asyncio.get_running_loop()
            if load.is_ready:
                self._start_worker()
            else:
                _spawn(self._fetch(load), self._fetches)
        return load

    async def _fetch(self, load: _Load) -> None:
        """Download a model; others are loaded meanwhile."""
        try:
            await _in_thread(load.model.fetch)
        except Exception as error:
            self._finish(load, error)
            return
        load.is_ready = True
        self._start_worker()

    def _start_worker(self) -> None:
        if self._worker is None or self._worker.done():
            self._worker = asyncio.ensure_future(self._work())

    async def _work(self) -> None:
        while load := next(filter(_can_begin, self._loads.values()), None):
            error: BaseException | None = CancelledError("nobody waits for it")
            self._current = load
            try:
                if load.is_wanted:
                    load.is_kept = True  # also when all who wait leave
                    await self._load(load)
                    error = None
            except Exception as e:
                error = e
            finally:
                self._current = None
                self._finish(load, error)

    async def _load(self, load: _Load) -> None:
        model = load.model
        if model.state is ModelState.LOADED and not model.is_leaving:
            return
        while model.is_open:  # until it is freed
            await self._change(load)
        model.state = ModelState.LOADING
        need = await _in_thread(model.estimate)
        await self._make_place(load, need)
        await _in_thread(lambda: model.open(load.cancelled))
        if load.cancelled.is_set():  # too late to stop it
            await _in_thread(model.close)
            raise CancelledError(f"loading the model {model.name} was cancelled")
        model.state = ModelState.LOADED
        model.last_used = next(self._clock)

    def _finish(self, load: _Load, error: BaseException | None) -> None:
        """Tell all who wait for a load how it ended; calling it again does nothing."""
        model = load.model
        if self._loads.get(model) is not load:
            return
        del self._loads[model]
        if error is None:
            model.failure = None
        elif model.state is ModelState.LOADING:
            is_asleep = load.before is ModelState.SLEEPING
            model.state = ModelState.SLEEPING if is_asleep else ModelState.UNLOADED
            if not isinstance(error, CancelledError):
                model.failure = str(error)
                if all(waiter.done() for waiter in load.waiters):  # else their answers log it
                    _log.warning("the model %s was not loaded: %s", model.name, error)
        self._settle(load, error)
        if error is None and not model.n_calls:
            self._count_idle(model)
        self._forget(model)
        self._wake()

    def _settle(self, load: _Load, error: BaseException | None) -> None:
        for waiter in load.waiters:
            if waiter.done():
                continue
            if error is not None:
                waiter.set_exception(error)
            else:
                # Before anything else runs, so that nobody takes it away from them.
                self.try_hold(load.model)
                waiter.set_result(None)

    def _cancel(self, model: ServedModel, message: str) -> None:
        """End the load of a model, if there is one."""
        load = self._loads.get(model)
        if load is None:
            return
        load.before = ModelState.UNLOADED
        load.cancelled.set()
        load.is_kept = False
        if load is self._current:
            self._settle(load, CancelledError(message))  # the worker ends it
        else:
            self._finish(load, CancelledError(message))
        self._wake()

    def _cancel_all(self) -> None:
        for model in [*self._loads]:
            self._cancel(model, "the server is shutting down")

    # Making place

    async def _make_place(self, load: _Load, need: int) -> None:
        """Free other models until the limits have place for one more, of *need* bytes.

        Raises:
            OutOfMemoryError: It is too large for the limit.
        """
        leaving: ServedModel | None = None
        most, limit = self._settings.models_max, await self._limit_bytes()
        for_good = sum(m.memory_bytes for m in self._models if m.is_open and m.is_pinned)
        if self._settings.models_memory and need + for_good > limit:
            raise OutOfMemoryError(
                f"the model {load.model.name} takes about {need / 2**20:,.1f} MiB, and there "
                f"are {(limit - for_good) / 2**20:,.1f} MiB for it; increase models_memory, or use "
                "a smaller n_ctx"
            )
        try:
            while True:
                own = [m for m in (*self._models, *self._retired) if m.is_open and not m.is_pinned]
                n_bytes = need + for_good + sum(m.memory_bytes for m in own)
                if (not most or len(own) < most) and n_bytes <= limit:
                    return
                if not own:
                    return  # more than this machine has: loading it tells that more exactly
                loaded = [m for m in own if m.state is ModelState.LOADED]
                idle = [m for m in loaded if not m.n_calls]
                if idle:
                    await self._close(min(idle, key=_age), ModelState.UNLOADED)
                    continue
                oldest = min(loaded, key=_age, default=None)
                if oldest is not leaving:
                    self._keep(leaving)
                    leaving = oldest
                    if oldest is not None:
                        oldest.is_leaving = True
                await self._change(load)
        finally:
            self._keep(leaving)

    def _keep(self, model: ServedModel | None) -> None:
        """Serve a model again that was to leave, if it has not."""
        if model is None or model.is_unloading:
            return
        model.is_leaving = False
        load = self._loads.get(model)
        if load is not None and model.state is ModelState.LOADED:
            self._finish(load, None)

    async def _limit_bytes(self) -> int:
        if self._settings.models_memory:
            return self._settings.models_memory
        if self._machine_bytes is None:
            self._machine_bytes = await _in_thread(lambda: memory_bytes(get_library()))
        return self._machine_bytes

    async def _change(self, load: _Load) -> None:
        """Wait until a model became idle or was freed.

        Raises:
            CancelledError: The load was cancelled.
        """
        if not load.cancelled.is_set():
            self._woken = asyncio.get_running_loop().create_future()
            await self._woken
        if load.cancelled.is_set():
            raise CancelledError(f"loading the model {load.model.name} was cancelled")

    def _wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    # Freeing

    def _leave(self, model: ServedModel) -> None:
        if model.state is ModelState.SLEEPING:
            model.state = ModelState.UNLOADED
        elif model.state is not ModelState.LOADED:
            return
        elif model.n_calls:
            model.is_leaving = model.is_unloading = True
        else:
            self._close(model, ModelState.UNLOADED)

    def _close(self, model: ServedModel, state: ModelState) -> asyncio.Future[None]:
        """Free a model, which has *state* from now on."""
        model.state = state
        model.is_leaving = model.is_unloading = False
        if model.timer is not None:
            model.timer.cancel()
            model.timer = None
        return _spawn(self._freed(model), self._closings)

    async def _freed(self, model: ServedModel) -> None:
        try:
            await _in_thread(model.close)
        except Exception:
            _log.exception("the model %s was not freed", model.name)
        self._forget(model)
        self._wake()
        if self._loads:  # of this model
            self._start_worker()

    def _forget(self, model: ServedModel) -> None:
        if not model.is_open and model not in self._loads:
            self._retired.discard(model)

    def _count_idle(self, model: ServedModel) -> None:
        idle_s = self._settings.sleep_idle_s
        if idle_s is None or model.is_pinned or model.state is not ModelState.LOADED:
            return
        if model.timer is not None:
            model.timer.cancel()
        loop = asyncio.get_running_loop()
        model.timer = loop.call_later(idle_s, self._sleep, model)

    def _sleep(self, model: ServedModel) -> None:
        model.timer = None
        if model.state is ModelState.LOADED and not model.n_calls:
            self._close(model, ModelState.SLEEPING)


def _spawn(
    work: Coroutine[Any, Any, None], tasks: set[asyncio.Future[None]]
) -> asyncio.Future[None]:
    task: asyncio.Future[None] = asyncio.ensure_future(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


def _can_begin(load: _Load) -> bool:
    """Whether the file is here, and the model need not end answers first."""
    return load.is_ready and not load.model.is_unloading


def _age(model: ServedModel) -> int:
    return model.last_used


async def _in_thread(call: Callable[[], T]) -> T:
    """Return the result of *call* in a thread that the end of the program does not wait for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def put(value: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def work() -> None:
        value, error = None, None
        try:
            value = call()
        except BaseException as e:
            error = e
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(put, value, error)

    threading.Thread(target=work, name="llama_cffi-models", daemon=True).start()
    return await future

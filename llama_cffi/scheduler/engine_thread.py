"""EngineThread: runs an engine core, in its own thread or the caller's, until it is shut down."""

from __future__ import annotations

import atexit
import logging
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import TypeVar

from ..context_managers import contextmanager
from ..errors import ClosedError, EngineDeadError, ValidationError
from ..generation.cancellation import CANCEL, CLOSE, DEADLINE, aborted, on_cancel
from ..generation.request_scope import current_scope
from .engine_core import EngineCore
from .media_encoder import MediaEncoder
from .request_handle import RequestHandle
from .request_queue import RequestQueue

__all__ = ["EngineThread"]

T = TypeVar("T")

_log = logging.getLogger("llama_cffi.scheduler")
_EXIT_S = 10.0  # at exit, a longer callback is not waited for


class EngineThread:
    """Runs the steps of an engine core for the requests of its queue.

    Args:
        core: Closed at the end.

    Attributes:
        core: The same.
        queue: Passes requests from other threads.
    """

    def __init__(self, core: EngineCore) -> None:
        self.core, self.queue = core, RequestQueue()
        core.encoder = MediaEncoder(self.queue.put_encoded)
        self._closed = self._is_dropped = False
        self._cause: BaseException | None = None  # of death
        self._running, self._starting = threading.Lock(), threading.Lock()
        self._ident: int | None = None  # the thread that runs the core now
        self._thread: threading.Thread | None = None
        _alive.add(self)

    def start(self) -> None:
        """Run in a new thread, unless the engine is already running.

        Raises:
            ClosedError: The engine is closed.
            EngineDeadError: It has stopped on an error.
        """
        self.check_open()
        with self._starting:
            if self._thread is None and not self._running.locked():
                self._thread = threading.Thread(
                    target=self._run_quietly, name="llama_cffi-engine", daemon=True
                )
                self._thread.start()

    def run(self) -> None:
        """Run in this thread until `shutdown`.

        Raises:
            ValidationError: The engine is already running.
            EngineDeadError: It has stopped on an error.
        """
        with self._runs():
            core, scheduler, queue = self.core, self.core.scheduler, self.queue
            while (scheduler.has_work and not queue.paused) or queue.wait(
                scheduler.has_work, core.time_to_deadline_s, core.n_encoding
            ):
                self._step()

    def step(self) -> bool:
        """Do one step in this thread; return whether there is more to do now.

        Raises:
            ValidationError: The engine is already running.
            EngineDeadError: It has stopped on an error.
        """
        with self._runs():
            self._step()
            return self._has_work and not self.queue.paused

    def shutdown(self, drain: bool = True) -> None:
        """Refuse new requests, end all others, and close the core.

        Calling it again does nothing, or with drain=False cancels what another thread drains.

        Args:
            drain: Let the requests finish; otherwise cancel them.

        Raises:
            ValidationError: Called in the engine's own thread, which cannot wait for itself.
        """
        self.check_may_wait()
        self.queue.close(drain)
        if not drain:
            self.core.context.abort_flag.set()
        if self._thread is not None:
            self._thread.join()
        with self._running:
            if self._closed:
                return
            self._ident = threading.get_ident()
            try:
                while self._has_work and self._cause is None:
                    self._step()  # without a thread, the steps left are done here
            except BaseException as error:
                self._die(error)
                raise
            finally:
                self._ident = None
                self._closed = True
                self.core.close()

    def drop(self) -> None:
        """Close the core once all requests are answered; nobody can reach the engine any more.

        Does not wait. Requests that no thread would answer are cancelled.
        """
        if self.core.context.closed:  # also in a fork, where another thread may hold any lock
            return
        if self._thread is None:
            self.shutdown(drain=False)
        else:
            self._is_dropped = True
            self.queue.close()
            if self._cause is not None:  # its thread has ended
                self._cause = None  # its traceback refers to this object
                self.core.close()

    def leave(self) -> None:
        """Stop the thread soon and wait for it, without freeing anything."""
        self.queue.close(drain=False)
        if not self.core.context.closed:
            self.core.context.abort_flag.set()
        if self._thread is not None:
            self._thread.join(_EXIT_S)
        self.core.encoder.close()

    # For handles and the engine

    def cancel(self, handle: RequestHandle, reason: str = CANCEL) -> None:
        """End a request; see `RequestHandle.cancel`."""
        self.queue.cancel(handle, reason)

    def call(self, function: Callable[[], T], is_ready: Callable[[], bool] | None = None) -> T:
        """Return the result of a function that the engine's thread calls between two steps.

        Args:
            function: What to call.
            is_ready: Whether it can be called now; None: always. It waits for that until the
                deadline of the `RequestScope`, or the end of the `CancelScope`.

        Raises:
            CancelledError: The scope was cancelled.
            DeadlineExceededError: The deadline has passed.
            ValidationError: Called in the engine's own thread.
            ClosedError: The engine is closed.
            EngineDeadError: It has stopped on an error.
        """
        self.check_may_wait()
        self.check_open()
        future = self.queue.call(function, is_ready)
        while future is None:  # it was closed just now
            self.check_open()
        if is_ready is not None:
            self._await_ready(future)
        return future.result()

    def _await_ready(self, future: Future[T]) -> None:
        """Wait for a call that may have to wait, and give it up when its time is over."""

        def cancel(_reason: str) -> None:
            future.cancel()

        on_cancel(cancel)
        scope = current_scope()
        wait([future], None if scope is None else scope.timeout_s(None))
        if future.cancelled():
            raise aborted("the call was cancelled while its sequence was in use", CANCEL)
        if not future.done() and future.cancel():
            raise aborted("the deadline has passed while the sequence was in use", DEADLINE)

    def check_may_wait(self) -> None:
        """Refuse the thread that runs the core now, such as in a callback.

        Raises:
            ValidationError: It would wait for itself.
        """
        if self._ident == threading.get_ident():
            raise ValidationError(
                "a callback runs in the engine's thread and cannot wait for the engine; call this "
                "in another thread"
            )

    def check_open(self) -> None:
        """Refuse calls to an engine that takes no more requests.

        Raises:
            ClosedError: The engine is closed.
            EngineDeadError: It has stopped on an error.
        """
        if self._cause is not None:
            raise self._dead_error()
        if self.queue.closed:
            raise ClosedError("this InferenceEngine is closed; open a new one")

    # The engine's thread

    @property
    def _has_work(self) -> bool:
        core = self.core
        return core.scheduler.has_work or core.n_encoding > 0 or self.queue.has_requests

    @contextmanager
    def _runs(self) -> Iterator[None]:
        """Make this thread the engine's; an error that belongs to no request ends the engine."""
        if not self._running.acquire(blocking=False):
            raise ValidationError("this engine is already running, in another thread")
        try:
            if self._cause is not None:
                self.check_open()
            self._ident = threading.get_ident()
            yield
        except BaseException as error:
            if self._cause is None:
                self._die(error)
            raise
        finally:
            self._ident = None
            self._running.release()

    def _run_quietly(self) -> None:
        try:
            self.run()
        except BaseException as died:  # logged, and set in every handle
            error: BaseException | None = died
            while error is not None:  # their frames keep requests, and so the frames of readers
                traceback.clear_frames(error.__traceback__)
                error = error.__context__
        if self._is_dropped:
            self.core.close()

    def _step(self) -> None:
        """Apply the updates of the queue and, unless it is paused, do one step."""
        core = self.core
        if core.n_encoding and not core.scheduler.has_work:
            self.queue.wait(False, core.time_to_deadline_s, core.n_encoding)
        if self.queue.has_updates:
            self._update()
        n_before = len(core.handles)
        core.expire()
        if not self.queue.paused:
            core.step()
        if len(core.handles) < n_before:
            self.queue.retry_calls()
            self.queue.notify()

    def _update(self) -> None:
        """Apply the updates of the queue."""
        core = self.core
        with self.queue.take() as updates:
            if updates.clear_cache:  # first: new requests look for pictures in the cache
                core.cache.clear(stored=True)
            for handle in updates.submitted:
                core.add(handle)
        for handle, reason in updates.cancelled:
            core.abort(handle.request, reason)
        for request, error in updates.encoded:
            core.encoded(request, error)
        if updates.cancel_all:
            for request in [*core.handles]:
                core.abort(request, CLOSE)
        self.queue.run_calls()
        self.queue.notify()

    def _die(self, error: BaseException) -> None:
        """Fail every request: the engine cannot continue."""
        _log.error("the engine has stopped", exc_info=error)
        self._cause = error
        self.queue.close()
        with self.queue.take() as updates:
            self.core.fail_all(updates.submitted, self._dead_error)
        self.queue.run_calls(self._dead_error())
        self.queue.notify()

    def _dead_error(self) -> EngineDeadError:
        error = EngineDeadError(f"the engine has stopped: {self._cause!r}; open a new one")
        error.__cause__ = self._cause
        return error


_alive: weakref.WeakSet[EngineThread] = weakref.WeakSet()


def _end_all() -> None:
    """Stop the threads of all engines before the interpreter frees what they use."""
    for thread in [*_alive]:
        thread.leave()


atexit.register(_end_all)  # after llama.cpp's own end was registered, to run before it

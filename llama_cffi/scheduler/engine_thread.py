"""Runner: a worker's life: in a thread of its own or in the caller's, until it is shut down."""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from ..errors import ClosedError, EngineDeadError, ValidationError
from ..generation.cancellation import CANCEL, CLOSE
from .engine_core import Worker
from .request_handle import Handle
from .request_queue import Inbox

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Runner"]

_log = logging.getLogger("llama_cffi.scheduler")
_EXIT_S = 10.0  # a callback that takes longer is not waited for at exit


class Runner:
    """Runs the steps of a worker, for what comes through its inbox.

    Args:
        worker: Its context and its drafter are closed at the end.

    Attributes:
        owns_model: Whether the model is closed at the end, too.
    """

    owns_model = False

    def __init__(self, worker: Worker) -> None:
        self._worker, self._inbox = worker, Inbox()
        self._closed = False
        self._broken: BaseException | None = None
        self._running, self._starting = threading.Lock(), threading.Lock()
        self._runner: int | None = None  # the thread that runs it now
        self._thread: threading.Thread | None = None
        _end_at_exit(self)

    def start(self) -> None:
        """Run in a thread; nothing happens where it runs already.

        Raises:
            ValidationError: The engine is closed.
            EngineDeadError: It has stopped.
        """
        self._check_open()
        with self._starting:
            if self._thread is None and not self._running.locked():
                self._thread = threading.Thread(
                    target=self._run_quietly, name="llama_cffi-engine", daemon=True
                )
                self._thread.start()

    def run(self) -> None:
        """Answer requests in this thread until `shutdown`.

        Raises:
            ValidationError: It runs already.
            EngineDeadError: The engine has stopped.
        """
        with self._runs():
            while self._worker.scheduler.has_work or self._inbox.wait():
                self._step()

    def step(self) -> bool:
        """Do one step in this thread; return whether there is more to do.

        Raises:
            ValidationError: It runs already.
            EngineDeadError: The engine has stopped.
        """
        with self._runs():
            self._step()
            return self._has_work

    def shutdown(self, drain: bool = True) -> None:
        """Take no more requests, end those that there are, and free everything.

        Calling it again does nothing, or with drain=False ends what another thread drains.

        Args:
            drain: Let them finish; else they are cancelled.

        Raises:
            ValidationError: It was called in the engine's own thread, which cannot wait for itself.
        """
        self.check_may_wait()
        self._inbox.close(drain)
        if not drain:
            self._worker.context.abort_flag.set()
        if self._thread is not None:
            self._thread.join()
        with self._running:
            if self._closed:
                return
            self._runner = threading.get_ident()
            try:
                while self._has_work and self._broken is None:
                    self._step()  # it was driven by hand
            except BaseException as error:
                self._break(error)
                raise
            finally:
                self._runner = None
                self._closed = True
                self._worker.close()
                if self.owns_model:
                    self._worker.context.model.close()

    def close(self) -> None:
        """End what runs and free everything. Calling it again does nothing.

        Raises:
            ValidationError: As for `shutdown`.
        """
        self.shutdown(drain=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.shutdown(drain=error is None)

    def _leave(self) -> None:
        """Let the thread end soon, and wait for it; nothing is freed."""
        self._inbox.close(drain=False)
        if not self._worker.context.closed:
            self._worker.context.abort_flag.set()
        if self._thread is not None:
            self._thread.join(_EXIT_S)

    # For handles

    def cancel(self, handle: Handle, reason: str = CANCEL) -> None:
        """End a request; see `Handle.cancel`."""
        self._inbox.cancel(handle, reason)

    def check_may_wait(self) -> None:
        """Refuse the thread that runs the engine now, such as in a callback.

        Raises:
            ValidationError: It would wait for itself.
        """
        if self._runner == threading.get_ident():
            raise ValidationError(
                "a callback runs in the engine's thread and cannot wait for the engine; do this in "
                "another thread"
            )

    # The engine's thread

    @property
    def _has_work(self) -> bool:
        return self._worker.scheduler.has_work or self._inbox.has_mail

    @contextmanager
    def _runs(self) -> Iterator[None]:
        """Let this thread be the engine's; what no request is to blame for stops the engine."""
        if not self._running.acquire(blocking=False):
            raise ValidationError("this engine runs already, in another thread")
        try:
            if self._broken is not None:
                self._check_open()
            self._runner = threading.get_ident()
            yield
        except BaseException as error:
            if self._broken is None:
                self._break(error)
            raise
        finally:
            self._runner = None
            self._running.release()

    def _run_quietly(self) -> None:
        with suppress(BaseException):  # it was logged, and everybody who waits has been told
            self.run()

    def _step(self) -> None:
        """Take what was submitted and cancelled, and do one step."""
        worker = self._worker
        if self._inbox.has_any:
            with self._inbox.taking() as mail:
                for handle in mail.submitted:
                    worker.add(handle)
            for handle, reason in mail.cancelled:
                worker.abort(handle.request, reason)
            if mail.cancels_all:
                for request in [*worker.handles]:
                    worker.abort(request, CLOSE)
            if mail.clears:
                worker.cache.clear()
            self._inbox.notify()
        n_before = len(worker.handles)
        worker.step()
        if len(worker.handles) < n_before:
            self._inbox.notify()

    def _break(self, error: BaseException) -> None:
        """Fail every request: the engine cannot go on."""
        _log.error("the engine has stopped", exc_info=error)
        self._broken = error
        self._inbox.close()
        with self._inbox.taking() as mail:
            self._worker.fail_all(mail.submitted, self._stopped)
        self._inbox.notify()

    def _stopped(self) -> EngineDeadError:
        error = EngineDeadError(f"the engine has stopped: {self._broken!r}; open a new one")
        error.__cause__ = self._broken
        return error

    def _check_open(self) -> None:
        if self._broken is not None:
            raise self._stopped()
        if self._inbox.closed:
            raise ClosedError("this InferenceEngine is closed; open a new one")


_alive: weakref.WeakSet[Runner] = weakref.WeakSet()


def _end_at_exit(runner: Runner) -> None:
    """Stop the engine's thread before the interpreter frees what it uses."""
    if not _alive:  # after what weakref has registered, so that this runs first
        atexit.unregister(_end_all)
        atexit.register(_end_all)
    _alive.add(runner)


def _end_all() -> None:
    for runner in [*_alive]:
        runner._leave()

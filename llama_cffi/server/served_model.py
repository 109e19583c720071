"""ServedModel: one model of the server, and how much work it takes."""

from __future__ import annotations

import asyncio
import enum
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from ..api.config import fit_config
from ..api.llama import Llama
from ..api.pool import LlamaPool
from ..errors import (
    CancelledError,
    ClosedError,
    ContextOverflowError,
    LlamaError,
    QueueFullError,
)
from ..generation.model_source import open_model
from ..hub import resolve_model
from ..scheduler import EngineStats, InferenceEngine
from .errors import ApiError
from .model_card import ModelCard
from .model_entry import ModelEntry

if TYPE_CHECKING:
    from ..embeddings.embedder import EmbedderStats

__all__ = ["ModelState", "ServedModel"]


class ModelState(enum.Enum):
    """Where a model is; the values are llama-server's words."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"
    SLEEPING = "sleeping"


class _Loaded(NamedTuple):
    """What is in memory, and the numbers of what was; one object, so that both change together."""

    llm: Llama | None
    past: EngineStats | None


class ServedModel:
    """A model of the server.

    Args:
        entry: The model.
        max_waiting: Most requests that wait for others.

    Attributes:
        entry: The model, and how it is loaded.
        aliases: Its names; the first one is in responses.
        created: When it was added, Unix seconds.
        n_requests: Answers that are generated or wait now.
        state: Whether it is in memory; like all below, set by `Residency`.
        n_calls: HTTP requests that use it.
        last_used: Larger than that of models that were used before.
        is_leaving: Whether new requests wait until it has gone and come back.
        is_unloading: Whether it goes when it is idle.
        timer: Puts it to sleep.
        failure: Why the last load failed.
        progress: Part of the file that is loaded; 1 is all of it.
    """

    def __init__(self, entry: ModelEntry, max_waiting: int) -> None:
        self.entry, self._max_waiting = entry, max_waiting
        source = entry.source.llm if isinstance(entry.source, LlamaPool) else entry.source
        self._loaded = _Loaded(source if isinstance(source, Llama) else None, None)
        self._path = entry.path
        self._config = source.config if isinstance(source, Llama) else entry.config
        self.aliases = entry.aliases
        self.created = int(time.time())
        self.n_requests = 0
        self.state = ModelState.LOADED if entry.is_open else ModelState.UNLOADED
        self.n_calls = self.last_used = 0
        self.is_leaving = self.is_unloading = False
        self.timer: asyncio.TimerHandle | None = None
        self.failure: str | None = None
        self.progress = 0.0
        self._card: ModelCard | None = None
        self._lock = threading.Lock()  # of loading and freeing
        self._is_freeing = False

    @property
    def name(self) -> str:
        """Its name in responses."""
        return self.aliases[0]

    @property
    def llm(self) -> Llama:
        """The model.

        Raises:
            ClosedError: It is not open.
        """
        llm = self._loaded.llm
        if llm is None or llm.closed:
            raise ClosedError(f"the model {self.name} is not loaded")
        return llm

    @property
    def is_open(self) -> bool:
        """Whether it takes memory."""
        llm = self._loaded.llm
        return self._is_freeing or (llm is not None and not llm.closed)

    @property
    def is_pinned(self) -> bool:
        """Whether it belongs to the program that serves it, and is never freed here."""
        return self.entry.is_open

    @property
    def is_remote(self) -> bool:
        """Whether its file must be looked up on the hub, or fetched, first."""
        return self._path.startswith("hf:")

    @property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: the build of llama.cpp, which may change answers."""
        return f"fp_{self.llm.model.library.build.tag or 'unknown'}"

    @property
    def stats(self) -> EngineStats | None:
        """The numbers so far, of all the times that it was loaded; None: nothing counts them."""
        llm, past = self._loaded
        if llm is None or llm.closed or not isinstance(llm.engine, InferenceEngine):
            return past
        stats = _with_embeddings(llm.engine.stats, llm.embedding_stats)
        return stats if past is None else stats.after(past)

    @property
    def card(self) -> ModelCard | None:
        """What is known about it; None: nothing before its file is there."""
        llm = self._loaded.llm
        if self._card is not None:
            return self._card
        if llm is not None and not llm.closed:
            self._card = ModelCard.of(llm)
        elif not self.is_remote:
            try:
                self._card = ModelCard.of_file(self._path, self._config)
            except LlamaError:
                return None  # loading it tells why
        return self._card

    @property
    def memory_bytes(self) -> int:
        """Memory that it takes at least when it is loaded."""
        card = self.card if self.is_pinned else self._card
        return 0 if card is None else card.memory_bytes

    @property
    def max_requests(self) -> int:
        """Most answers that are generated or wait."""
        return self._config.n_parallel + self._max_waiting

    def check_open(self) -> None:
        """Raise unless requests are accepted; one that is not loaded here accepts them.

        Raises:
            ClosedError: The program that serves the model has closed it.
            EngineDeadError: Its engine has stopped on an error.
        """
        if self.is_pinned or self.state is ModelState.LOADED:
            engine = self.llm.engine
            if isinstance(engine, InferenceEngine):
                engine.check_open()

    def fetch(self) -> None:
        """Download the file if it is not here.

        Raises:
            LlamaError: It cannot be downloaded.
        """
        self._path = str(resolve_model(self._path))

    def estimate(self) -> int:
        """Return the bytes that it takes, about, from its file as it is now.

        Raises:
            ModelLoadError: It is missing or damaged.
        """
        path = str(resolve_model(self._path))
        self._card = ModelCard.of_file(path, self._config)
        return self._card.memory_bytes

    def open(self, cancelled: threading.Event) -> None:
        """Load the model, unless it is loaded.

        Args:
            cancelled: Ends it when it is set.

        Raises:
            LlamaError: It cannot be loaded.
            CancelledError: *cancelled* was set.
        """

        def advance(progress: float) -> None:
            self.progress = progress
            if cancelled.is_set():
                raise CancelledError(f"loading the model {self.name} was cancelled")

        with self._lock:
            if self._loaded.llm is not None:
                return
            advance(0.0)
            source, config = fit_config(self._path, self._config)
            options = config.model_options()
            options["progress"] = advance
            model, owned = open_model(source, **options)
            try:
                advance(1.0)
                llm = Llama(model, config)
            except BaseException:
                model.close()
                raise
            llm.engine.owns_model = owned
            self._card = ModelCard.of(llm)
            self._loaded = _Loaded(llm, self._loaded.past)

    def close(self) -> None:
        """Free the model if it was loaded here; its numbers stay."""
        with self._lock:
            llm = self._loaded.llm
            if self.is_pinned or llm is None:
                return
            self._is_freeing = True
            self._loaded = _Loaded(None, self.stats)
            try:
                llm.close()
            finally:
                self._is_freeing = False

    def admit(self, n: int) -> None:
        """Count *n* more answers.

        Raises:
            QueueFullError: Too many are waiting already.
            ApiError: It is more than may ever wait.
        """
        limit = self.max_requests
        if n > limit:
            raise ApiError(400, f"{n} answers in one request are too many; the limit is {limit}")
        if self.n_requests + n > limit:
            raise QueueFullError(
                f"{self.n_requests} requests are running or waiting, of at most {limit}; try again "
                "later, or start the server with a larger --max-waiting"
            )
        self.n_requests += n

    def check_length(self, n: int) -> None:
        """Refuse a prompt of *n* tokens if it leaves none for the answer.

        An engine that answers one request at a time would find that later than others do.

        Raises:
            ContextOverflowError: It does.
        """
        n_ctx = int(self.llm.n_ctx)
        if n >= n_ctx and self.llm.config.context_policy in ("error", "shift"):
            raise ContextOverflowError(
                f"the prompt has {n} tokens, but prompt and answer together may have at most "
                f"{n_ctx}; shorten the prompt or increase n_ctx",
                n_tokens=n,
                n_ctx=n_ctx,
            )

    def leave(self, n: int) -> None:
        """Take back `admit`."""
        self.n_requests -= n


def _with_embeddings(stats: EngineStats, more: EmbedderStats | None) -> EngineStats:
    """Return *stats* with each embedding counted as a request that generates nothing."""
    if more is None:
        return stats
    requests = stats.requests
    return stats._replace(
        n_finished=stats.n_finished + more.n_inputs,
        n_steps=stats.n_steps + more.n_steps,
        n_step_requests=stats.n_step_requests + more.n_step_inputs,
        requests=requests._replace(
            n_prompt=requests.n_prompt + more.n_tokens,
            n_reused=requests.n_reused + more.n_reused,
            prefill_s=requests.prefill_s + more.seconds,
        ),
    )

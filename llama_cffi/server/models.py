"""The models of a server: opening and closing them, and how much work each takes."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from ..api.config import LlamaConfig
from ..api.llama import Llama
from ..api.pool import LlamaPool
from ..errors import ClosedError, ContextOverflowError, QueueFullError, ValidationError
from ..scheduler import InferenceEngine
from .errors import ApiError
from .settings import Settings

__all__ = ["ModelInput", "Models", "ServedModel"]

ModelInput: TypeAlias = "str | os.PathLike[str] | Llama | LlamaPool"


class ServedModel:
    """A model of the server.

    Args:
        source: A GGUF file, `hf:owner/repo:file`, or an open `Llama` or `LlamaPool`.
        config: The settings of one that is opened here.
        aliases: Its names; none: its file's.
        max_waiting: Most requests that wait for others.

    Attributes:
        aliases: Its names; the first one is in responses.
        created: When it was added, Unix seconds.
        n_requests: Answers that are generated or wait now.
    """

    def __init__(
        self, source: ModelInput, config: LlamaConfig, aliases: Sequence[str], max_waiting: int
    ) -> None:
        self._llm: Llama | None = None
        self._source: str | os.PathLike[str] | None = None
        if isinstance(source, LlamaPool):
            source = source.llm
        if isinstance(source, Llama):
            self._llm, path = source, source.model_path
        else:
            self._source, path = source, os.fspath(source)
        self._config, self._max_waiting = config, max_waiting
        name = path if path.startswith("hf:") else Path(path).name.removesuffix(".gguf")
        self.aliases = tuple(aliases) or (name,)
        self.created = int(time.time())
        self.n_requests = 0

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
        if self._llm is None or self._llm.closed:
            raise ClosedError(f"the model {self.name} is not loaded")
        return self._llm

    @property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: the build of llama.cpp, which may change answers."""
        return f"fp_{self.llm.model.library.build.tag or 'unknown'}"

    def check_open(self) -> None:
        """Raise unless requests are accepted.

        Raises:
            ClosedError: The model is closed.
            EngineDeadError: Its engine has stopped on an error.
        """
        engine = self.llm.engine
        if isinstance(engine, InferenceEngine):
            engine.check_open()

    def open(self) -> None:
        """Load the model, unless it is loaded.

        Raises:
            LlamaError: It cannot be loaded.
        """
        if self._llm is None:
            self._llm = Llama(self._source, self._config)

    def close(self) -> None:
        """Free the model if it was loaded here."""
        if self._source is not None and self._llm is not None:
            llm, self._llm = self._llm, None
            llm.close()

    def admit(self, n: int) -> None:
        """Count *n* more answers.

        Raises:
            QueueFullError: Too many are waiting already.
            ApiError: It is more than may ever wait.
        """
        limit = self.llm.config.n_parallel + self._max_waiting
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


class Models:
    """All models of a server.

    Args:
        sources: One, or a list; see `ServedModel`.
        config: The settings of those that are opened here.
        settings: The server's.

    Raises:
        ValidationError: There is no model, or two have the same name.
    """

    def __init__(
        self,
        sources: ModelInput | Sequence[ModelInput],
        config: LlamaConfig,
        settings: Settings,
    ) -> None:
        one = isinstance(sources, (str, os.PathLike, Llama, LlamaPool))
        given: list[ModelInput] = [sources] if one else [*sources]  # type: ignore[list-item, misc]
        if not given:
            raise ValidationError("no model: give a GGUF file, hf:OWNER/REPO[:FILE] or a Llama")
        for source in given:
            if not isinstance(source, (str, os.PathLike, Llama, LlamaPool)):
                raise ValidationError(
                    f"a model must be a path, hf:OWNER/REPO[:FILE], Llama or LlamaPool, "
                    f"got {source!r}"
                )
        # Embeddings get a context of their own when they are first asked for.
        config = dataclasses.replace(config, embeddings=True)
        aliases = [settings.aliases, *[()] * (len(given) - 1)]
        self._models = [
            ServedModel(source, config, names, settings.max_waiting)
            for source, names in zip(given, aliases, strict=True)
        ]
        self._named: dict[str, ServedModel] = {}
        for model in self._models:
            for name in model.aliases:
                if name in self._named:
                    raise ValidationError(f"two models have the name {name!r}; give them aliases")
                self._named[name] = model
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)

    def find(self, name: str | None) -> ServedModel:
        """Return the model of this name; with only one model, any name means that one.

        Raises:
            ApiError: There is none.
        """
        if name in self._named:
            return self._named[name]
        if len(self._models) == 1:
            return self._models[0]
        known = ", ".join(model.name for model in self._models)
        what = "model is missing" if name is None else f"the model {name!r} does not exist"
        raise ApiError(
            404 if name is not None else 400, f"{what}; there are {known}",
            "not_found_error" if name is not None else "invalid_request_error",
            code="model_not_found", param="model",
        )  # fmt: skip

    def open(self) -> None:
        """Load all models.

        Raises:
            LlamaError: One cannot be loaded; the others are freed.
        """
        with self._lock:
            try:
                for model in self._models:
                    model.open()
            except BaseException:
                self._close()
                raise

    def close(self) -> None:
        """Free the models that were loaded here."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        for model in self._models:
            model.close()

"""The models of a server, by name."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ..api.config import LlamaConfig
from ..errors import ValidationError
from .errors import ApiError
from .model_entry import ModelEntry, ModelInput
from .residency import Residency
from .served_model import ModelState, ServedModel
from .settings import Settings
from .sources import files_to_delete, model_entries

__all__ = ["ModelInput", "ModelState", "Models", "ServedModel"]


class Models:
    """All models of a server.

    Args:
        sources: One, or a list; see `ServedModel`.
        config: The settings of those that are opened here.
        settings: The server's.

    Attributes:
        residency: Which of them are in memory.

    Raises:
        ValidationError: There is no model, or two have the same name.
    """

    def __init__(
        self,
        sources: ModelInput | Sequence[ModelInput],
        config: LlamaConfig,
        settings: Settings,
    ) -> None:
        is_list = isinstance(sources, (list, tuple))
        self._sources = [*sources] if is_list else sources  # type: ignore[misc]
        self._config, self._settings = config, settings
        self._models: list[ServedModel] = []
        self._named: dict[str, ServedModel] = {}
        self.residency = Residency(self, settings)
        self._take(self._entries())
        preloaded = [m for m in self if m.entry.preload and not m.is_pinned]
        most = settings.models_max
        if most and len(preloaded) > most:
            raise ValidationError(
                f"{len(preloaded)} models are to be loaded at the start, and models_max is {most}; "
                "increase it, or preload fewer"
            )
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

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

    def named(self, name: str) -> ServedModel:
        """Return the model that has this name among its aliases.

        Raises:
            ApiError: There is none.
        """
        if name not in self._named:
            raise ApiError(
                404, f"the model {name!r} does not exist", "not_found_error",
                code="model_not_found", param="model",
            )  # fmt: skip
        return self._named[name]

    async def reload(self) -> None:
        """Read presets and folder again.

        Models that are as before stay loaded. Those that are gone or changed are freed when their
        last answer has ended.

        Raises:
            ApiError: They cannot be read, or are wrong; all stays as it was.
        """
        try:
            entries = await asyncio.to_thread(self._entries)
        except ValidationError as e:
            raise ApiError(400, f"the models stay as they were: {e}") from None
        for model in self._take(entries):
            self.residency.retire(model)

    async def delete(self, model: ServedModel) -> None:
        """Delete the files of a model, which is no longer one of the server's.

        Raises:
            ApiError: It is in memory or about to be, or not in the folder of models; or a file
                could not be deleted.
        """
        if not self.residency.is_free(model):
            raise ApiError(
                400,
                f"the model {model.name} is {model.state.value}; send POST /models/unload, and "
                "wait until its status is unloaded",
                param="model",
            )
        files = files_to_delete(model.entry)
        self._set([other for other in self if other is not model])  # nobody can load it now
        self.residency.retire(model)
        try:
            await asyncio.to_thread(_unlink, files)
        except OSError as e:
            with suppress(ApiError):
                await self.reload()  # it is there again
            reason = f"{e.filename} was not deleted: {e.strerror}"
            raise ApiError(500, reason, "server_error") from e

    def open(self) -> None:
        """Load the models that are to be loaded at the start.

        Raises:
            LlamaError: One cannot be loaded; the others are freed.
        """
        with self._lock:
            try:
                for model in self._models:
                    if model.entry.preload and not model.is_pinned:
                        model.open(threading.Event())
                        model.state = ModelState.LOADED
            except BaseException:
                self._close()
                raise

    def close(self) -> None:
        """Free the models that were loaded here."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        self.residency.stop()
        for model in (*self._models, *self.residency.retired):
            model.close()
            if not model.is_pinned:
                model.state = ModelState.UNLOADED

    def _entries(self) -> list[ModelEntry]:
        return model_entries(self._sources, self._config, self._settings)

    def _take(self, entries: Sequence[ModelEntry]) -> list[ServedModel]:
        """Have a model for each entry; return those that have none any more."""
        kept = {model: dataclasses.replace(model.entry, preload=False) for model in self._models}
        models = []
        for entry in entries:
            plain = dataclasses.replace(entry, preload=False)
            same = next((model for model, known in kept.items() if known == plain), None)
            if same is not None:
                del kept[same]
            models.append(same or ServedModel(entry, self._settings.max_waiting))
        self._set(models)
        return [*kept]

    def _set(self, models: list[ServedModel]) -> None:
        self._models = models
        self._named = {name: model for model in models for name in model.aliases}


def _unlink(files: Sequence[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)

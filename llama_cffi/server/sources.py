"""The models that a server has: given ones, those of a file of presets, and those of a folder."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..api.config import LlamaConfig
from ..api.llama import Llama
from ..api.pool import LlamaPool
from ..errors import ValidationError
from ..hub import models_in
from .errors import ApiError
from .model_entry import ModelEntry, ModelInput
from .presets import read_presets
from .settings import Settings

__all__ = ["files_to_delete", "model_entries"]

_PART = re.compile(r"-\d{5}-of-\d{5}$")


def model_entries(
    sources: ModelInput | Sequence[ModelInput], config: LlamaConfig, settings: Settings
) -> list[ModelEntry]:
    """Return the models of a server.

    Of a folder, files that another entry has, and names that are taken, are left out.

    Raises:
        ValidationError: There is no model, one is something else, two have the same name, or
            several would have the same projector.
    """
    one = isinstance(sources, (str, os.PathLike, Llama, LlamaPool))
    given: list[ModelInput] = [sources] if one else [*sources]  # type: ignore[list-item, misc]
    for source in given:
        if not isinstance(source, (str, os.PathLike, Llama, LlamaPool)):
            raise ValidationError(
                f"a model must be a path, hf:OWNER/REPO[:FILE], Llama or LlamaPool, got {source!r}"
            )
    # Embeddings get a context of their own when they are first asked for.
    config = dataclasses.replace(config, embeddings=True)
    entries = [ModelEntry(source, config, ()) for source in given]
    entries = [dataclasses.replace(entry, aliases=(_name(entry.path),)) for entry in entries]
    if entries:
        aliases = tuple(settings.aliases) or entries[0].aliases
        entries[0] = dataclasses.replace(entries[0], aliases=aliases, tags=tuple(settings.tags))
    if settings.models_preset is not None:
        entries += read_presets(settings.models_preset, config)
    if settings.models_dir is not None:
        taken = {name for entry in entries for name in entry.aliases}
        paths = {_resolved(entry.path) for entry in entries}
        folder = Path(settings.models_dir).expanduser()
        entries += [
            ModelEntry(str(path), config, (name,), folder=folder)
            for name, path in _folder(folder)
            if name not in taken and _resolved(str(path)) not in paths
        ]
    if not entries:
        where = " in " + str(settings.models_dir) if settings.models_dir is not None else ""
        raise ValidationError(f"no model{where}: give a GGUF file, hf:OWNER/REPO[:FILE] or a Llama")
    if config.mmproj is not None and len(entries) > 1:
        raise ValidationError(
            f"mmproj={str(config.mmproj)!r} is for one model, and there are {len(entries)}; put "
            "each projector beside its model, or name it in a file of presets"
        )
    _check_names(entries)
    is_preloaded = settings.preload
    if is_preloaded is None:
        is_preloaded = len(entries) == len(given) == 1
    return [dataclasses.replace(e, preload=e.preload or is_preloaded) for e in entries]


def files_to_delete(entry: ModelEntry) -> list[Path]:
    """Return the files of a model, the first part last, if they are the server's to delete.

    Raises:
        ApiError: They are not in its folder of models.
    """
    path = Path(entry.path)
    if entry.folder is None or not path.parent.resolve().is_relative_to(entry.folder.resolve()):
        raise ApiError(
            403,
            f"the model {entry.aliases[0]} is not in the server's --models-dir, so the server does "
            "not delete it; delete its file on the server's machine",
            "permission_error", param="model",
        )  # fmt: skip
    inside = [file.name for file in path.parent.iterdir() if file.is_file()]
    parts = next((parts for parts in models_in(inside) if parts[0] == path.name), ())
    return [path.parent / part for part in reversed(parts)]


def _check_names(entries: Sequence[ModelEntry]) -> None:
    names = set[str]()
    for entry in entries:
        for name in set(entry.aliases):
            if name in names:
                raise ValidationError(f"two models have the name {name!r}; give them aliases")
            names.add(name)


def _name(path: str) -> str:
    return path if path.startswith("hf:") else Path(path).name.removesuffix(".gguf")


def _resolved(path: str) -> str:
    return path if path.startswith("hf:") else str(Path(path).expanduser().resolve())


def _folder(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the names and first files of the models in a folder and in the folders in it.

    Raises:
        ValidationError: It cannot be read.
    """
    try:
        inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        yield from ((name, path) for name, path in _models(folder, inside))
        for sub in inside:
            if sub.is_dir():
                found = [*_models(sub, [*sub.iterdir()])]
                for name, path in found:
                    yield (sub.name if len(found) == 1 else f"{sub.name}/{name}"), path
    except OSError as e:
        raise ValidationError(f"cannot read the folder of models {folder}: {e}") from e


def _models(folder: Path, inside: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    for parts in models_in(path.name for path in inside if path.is_file()):
        yield _PART.sub("", Path(parts[0]).stem), folder / parts[0]

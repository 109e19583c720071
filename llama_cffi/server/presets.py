"""Presets: a file that names the models of a server, and the settings of each."""

from __future__ import annotations

import configparser
import dataclasses
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..api.config import LlamaConfig
from ..errors import ValidationError
from ..validation import reject_unknown
from .model_entry import ModelEntry

__all__ = ["read_presets"]

_DEFAULTS = "*"
_VERSION = re.compile(r"^[ \t]*version[ \t]*=(.*?)([ \t][#;].*)?$", re.MULTILINE)
_SECTION = re.compile(r"^\s*\[", re.MULTILINE)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[^:\s]+)?(:.+)?")
_OWN = ("model", "aliases", "tags", "preload")
# Those that a file cannot say, or that do nothing.
_NOT_HERE = ("model_path", "draft", "logits_all", "verbose")
_FIELDS = {
    field.name: str(field.type)
    for field in dataclasses.fields(LlamaConfig)
    if field.name not in _NOT_HERE
}
# llama-server's names.
_ALIASES = {
    "m": "model",
    "hf": "hf_repo",
    "alias": "aliases",
    "load_on_startup": "preload",
    "c": "n_ctx",
    "ctx_size": "n_ctx",
    "np": "n_parallel",
    "parallel": "n_parallel",
    "b": "n_batch",
    "batch_size": "n_batch",
    "ub": "n_ubatch",
    "ubatch_size": "n_ubatch",
    "t": "n_threads",
    "threads": "n_threads",
    "threads_batch": "n_threads_batch",
    "ngl": "n_gpu_layers",
    "gpu_layers": "n_gpu_layers",
    "fa": "flash_attn",
    "cache_type_k": "type_k",
    "cache_type_v": "type_v",
    "chat_template": "chat_format",
    "mm": "mmproj",
    "lora": "lora_path",
    "mmap": "use_mmap",
    "mlock": "use_mlock",
    "embedding": "embeddings",
}
_WORDS = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
_NONE = ("none", "auto", "null", "")


def read_presets(path: str | os.PathLike[str], config: LlamaConfig) -> list[ModelEntry]:
    """Return the models of a file of presets.

    It is TOML if its name ends with .toml, else INI. Each section is a model, by its name; the
    section `*` has what holds for all. A section has `model` (a path, from the file's folder, or
    `hf:OWNER/REPO`), `aliases`, `tags`, `preload`, and fields of `LlamaConfig` under their own
    names or llama-server's, of which `mmproj` is a path as `model` is. Without `model`, the name of
    a section is a repository on the hub.

    Args:
        path: The file.
        config: The settings that no section has.

    Raises:
        ValidationError: The file cannot be read, or has a wrong section or value.
        UnknownOptionError: There is no option of this name; the message suggests the nearest one.
    """
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise ValidationError(f"cannot read the presets {file}: {e}") from e
    try:
        sections = _toml(text) if file.suffix.lower() == ".toml" else _ini(text)
    except ValueError as e:
        raise ValidationError(f"{file}: {e}") from None
    common = _named(_DEFAULTS, sections.pop(_DEFAULTS, {}))
    return [
        _entry(file, name, {**common, **_named(name, options)}, config)
        for name, options in sections.items()
    ]


def _ini(text: str) -> dict[str, dict[str, Any]]:
    """Return the sections of an INI file.

    Raises:
        ValueError: It is not one.
    """
    first = _SECTION.search(text)
    head = text[: first.start()] if first else text
    for version in _VERSION.finditer(head):
        _check_version(version[1].strip())
    parser = configparser.RawConfigParser(
        delimiters=("=",),
        inline_comment_prefixes=("#", ";"),
        default_section="\0",
        interpolation=None,
        empty_lines_in_values=False,
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        # An empty line in its place keeps the numbers of lines in messages.
        parser.read_string(_VERSION.sub("", head) + text[len(head) :])
    except configparser.DuplicateSectionError as e:
        raise ValueError(f"line {e.lineno}: the section [{e.section}] is there twice") from None
    except configparser.DuplicateOptionError as e:
        raise ValueError(f"line {e.lineno}: [{e.section}] has {e.option} twice") from None
    except configparser.MissingSectionHeaderError as e:
        shown = e.line.strip()
        raise ValueError(f"line {e.lineno}: {shown!r} is in no section; write [NAME]") from None
    except configparser.ParsingError as e:
        line = e.errors[0][0]
        raise ValueError(f"line {line} is neither a section nor NAME = VALUE") from None
    return {name: dict(parser[name]) for name in parser.sections()}


def _toml(text: str) -> dict[str, dict[str, Any]]:
    """Return the tables of a TOML file.

    Raises:
        ValueError: It is not one.
        ValidationError: This Python cannot read TOML.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ModuleNotFoundError:
            raise ValidationError(
                "presets in TOML need Python 3.11, or the package tomli; install it, or write INI"
            ) from None
    found = tomllib.loads(text)
    if "version" in found:
        _check_version(str(found.pop("version")))
    for name, table in found.items():
        if not isinstance(table, dict):
            raise ValueError(f"{name} is in no table; write [NAME] above it")
    return found


def _check_version(version: str) -> None:
    if version != "1":
        raise ValueError(f"version must be 1, got {version}; this is another format")


def _named(section: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a section under our names.

    Raises:
        ValidationError: Two names of one option are there, or a name is unknown.
    """
    found: dict[str, Any] = {}
    for given, value in options.items():
        plain = given.strip().lstrip("-").replace("-", "_")
        name = _ALIASES.get(plain, plain)
        if name == "hf_repo":
            name, value = "model", f"hf:{str(value).removeprefix('hf:')}"
        if name in found:
            raise ValidationError(f"the preset [{section}] has {name} twice, also as {given}")
        found[name] = value
    reject_unknown(found, [*_OWN, *_FIELDS], f"the preset [{section}]", _ALIASES)
    return found


def _entry(file: Path, name: str, options: dict[str, Any], config: LlamaConfig) -> ModelEntry:
    where = f"{file}, [{name}]"
    source = options.pop("model", None)
    if source is None and _REPOSITORY.fullmatch(name):
        source = f"hf:{name}"
    if not isinstance(source, str) or not source:
        raise ValidationError(
            f"{where} has no model; add model = FILE.gguf or model = hf:OWNER/REPO"
        )
    if not source.startswith("hf:"):
        source = str(file.parent / Path(source).expanduser())
    aliases, tags = (_texts(where, key, options.pop(key, ())) for key in ("aliases", "tags"))
    preload = options.pop("preload", False)
    if isinstance(preload, str):
        preload = _WORDS.get(preload.lower(), preload)
    if not isinstance(preload, bool):
        raise ValidationError(f"{where}: preload must be true or false, got {preload!r}")
    values = {key: _value(where, key, value) for key, value in options.items()}
    if isinstance(mmproj := values.get("mmproj"), str) and not mmproj.startswith("hf:"):
        values["mmproj"] = str(file.parent / Path(mmproj).expanduser())
    try:
        own = dataclasses.replace(config, **values)
    except ValidationError as e:
        raise ValidationError(f"{where}: {e}") from None
    names = tuple(dict.fromkeys((name, *aliases)))
    return ModelEntry(source, own, names, tags, preload)


def _texts(where: str, key: str, given: object) -> tuple[str, ...]:
    items = given.split(",") if isinstance(given, str) else given
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
        raise ValidationError(f"{where}: {key} must be names with commas, got {given!r:.60}")
    return tuple(item.strip() for item in items if item.strip())


def _value(where: str, key: str, given: Any) -> Any:
    """Return a value of the type that the field has; INI has only text."""
    if not isinstance(given, str):
        return given
    kinds, text = _FIELDS[key].split(" | "), given.strip()
    if "Literal['auto']" in kinds and text.lower() == "auto":
        return "auto"
    if "None" in kinds and text.lower() in _NONE:
        return None
    if "bool" in kinds and (found := _WORDS.get(text.lower())) is not None:
        return found
    try:
        if "Sequence[float]" in kinds:
            return [float(part) for part in text.split(",")]
        if "int" in kinds:
            return int(text)
        if "float" in kinds:
            return float(text)
    except ValueError:
        kind = "a number" if "float" in kinds else "an integer"
        kind = "numbers with commas" if "Sequence[float]" in kinds else kind
        raise ValidationError(f"{where}: {key} must be {kind}, got {text!r}") from None
    return text  # LlamaConfig refuses it where it must be something else

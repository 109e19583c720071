"""`llama-cffi models`: the models on this machine: list, pull, show, remove, disk use."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import FetchError, ValidationError
from . import interrupt, options, output

if TYPE_CHECKING:
    from huggingface_hub import HFCacheInfo

__all__ = ["add_parser"]

_EXAMPLES = """
llama-cffi models pull hf:owner/repo:Q4_K_M
llama-cffi models pull hf:owner/repo:Q4_K_M --mmproj
llama-cffi models list --dir ~/models
llama-cffi models rm hf:owner/repo:Q8_0 --dry-run
"""
_NAME = "hf:OWNER/REPO[:FILE or QUANT], or a file"


def add_parser(commands: Any) -> None:
    """Add the command and its subcommands to the subparsers *commands*."""
    parser = commands.add_parser(
        "models",
        help="list, fetch, show and remove models",
        description="List, fetch, show and remove the models in the cache of huggingface_hub, and "
        "in a folder of one's own.",
        epilog=options.epilog(_EXAMPLES, "OFFLINE"),
        formatter_class=options.HelpFormatter,
    )
    parser.set_defaults(func=_run)
    subparsers = parser.add_subparsers(dest="models_command", metavar="COMMAND", required=True)

    def command(name: str, text: str, json_text: str) -> Any:
        sub = subparsers.add_parser(name, help=text, description=text)
        sub.add_argument("--dir", metavar="FOLDER", help="a folder with GGUF files, too")
        options.add_json(sub, json_text)
        return sub

    sub = command("list", "List the models on this machine.", "the models")
    sub.add_argument(
        "--sort", choices=("name", "size", "modified"), default="name",
        help="order of the list (default: name)",
    )  # fmt: skip
    sub = command("pull", "Fetch a model from the Hugging Face hub.", "the file")
    sub.add_argument("model", metavar="MODEL", help="hf:OWNER/REPO[@REVISION][:FILE or QUANT]")
    sub.add_argument(
        "--mmproj", action="store_true",
        help="fetch the projector for pictures and sounds, too",
    )  # fmt: skip
    sub = command("show", "Show a model on this machine.", "its files and metadata")
    sub.add_argument("model", metavar="MODEL", help=_NAME)
    sub = command("rm", "Remove models from this machine.", "what was removed")
    sub.add_argument("models", nargs="+", metavar="MODEL", help=_NAME)
    sub.add_argument("--dry-run", action="store_true", help="tell what would be removed")
    command("du", "Tell how much of the disk the models take.", "sizes in bytes")


class _Model(NamedTuple):
    """A model on this machine.

    Attributes:
        name: A name for -m.
        files: Its files, in order.
        size_bytes: Their size.
        modified: When they were fetched or written: seconds since 1970.
    """

    name: str
    files: tuple[Path, ...]
    size_bytes: int
    modified: float

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "name": self.name,
            "files": [str(file) for file in self.files],
            "size_bytes": self.size_bytes,
            "modified": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.modified)),
        }


def _run(args: argparse.Namespace) -> int:
    commands = {"list": _list, "pull": _pull, "show": _show, "rm": _remove, "du": _disk_use}
    code = commands[args.models_command](args)
    interrupt.check()
    return code


def _list(args: argparse.Namespace) -> int:
    found = [*_cached(), *_in_folder(args.dir)]
    keys: dict[str, Any] = {
        "name": lambda m: m.name.lower(),
        "size": lambda m: -m.size_bytes,
        "modified": lambda m: -m.modified,
    }
    found.sort(key=keys[args.sort])
    if args.json:
        output.print_json({"models": [model.as_dict() for model in found]})
        return 0
    if not found:
        output.say("No models here yet; `llama-cffi models pull hf:OWNER/REPO` fetches one.\n")
        return 0
    rows = [
        (m.name, _size(m.size_bytes), time.strftime("%Y-%m-%d", time.localtime(m.modified)))
        for m in found
    ]
    output.print_table(("NAME", "SIZE", "MODIFIED"), rows)
    return 0


def _pull(args: argparse.Namespace) -> int:
    from ..hub import HubSpec, remote_files, resolve_model

    if not args.model.startswith("hf:"):
        raise ValidationError(
            f"{args.model!r} is not a model on the hub; write hf:OWNER/REPO or hf:OWNER/REPO:Q4_K_M"
        )
    folder = _folder(args.dir)
    if folder is None:
        path = resolve_model(args.model)
    else:
        parts = [file.download(folder) for file in remote_files(HubSpec.parse(args.model))]
        path = parts[0]
    interrupt.check()
    projector = _pull_projector(args.model, path, folder) if args.mmproj else None
    interrupt.check()
    files = _parts(path)
    if args.json:
        sizes = sum(file.stat().st_size for file in files)
        found: dict[str, Any] = {"name": args.model, "file": str(path), "size_bytes": sizes}
        if projector is not None:
            found["mmproj"] = str(projector)
        output.print_json(found)
    else:
        output.say("".join(f"{file}\n" for file in (path, projector) if file is not None))
    return 0


def _pull_projector(name: str, model: Path, folder: Path | None) -> Path:
    """Fetch the projector of a model that was fetched.

    Raises:
        ValidationError: The repository has none, or several.
        FetchError: The hub does not answer, or the download failed.
    """
    from ..hub import HubSpec, fetch_projector, projector_on_hub, remote_files

    spec, found = HubSpec.parse(name), None
    if folder is None:
        found = fetch_projector(model)
    elif file := projector_on_hub(spec, model.name):
        (remote,) = remote_files(HubSpec(spec.repo, spec.revision, file))
        found = remote.download(folder)
    if found is None:
        raise ValidationError(
            f"{model.name} is here, but {spec} has no projector for it; one of another repository "
            "is fetched by its name: hf:OWNER/REPO:mmproj-FILE.gguf"
        )
    return found


def _show(args: argparse.Namespace) -> int:
    from .inspect import as_dict, facts, opened

    path = _local(args.model, args.dir)
    with opened(str(path)) as header:
        if args.json:
            output.print_json({"name": args.model, **as_dict(header)})
        else:
            output.say("".join(f"{name:15} {text}\n" for name, text in facts(header)))
    return 0


def _remove(args: argparse.Namespace) -> int:
    doomed: dict[Path, int] = {}
    for name in args.models:
        for file in _files_of(name, args.dir):
            doomed[file] = _disk_bytes(file)
    if not args.dry_run:
        for file in doomed:
            _unlink(file)
    freed = sum(doomed.values())
    if args.json:
        output.print_json(
            {
                "removed": [str(file) for file in doomed],
                "freed_bytes": freed,
                "dry_run": args.dry_run,
            }
        )
        return 0
    verb = "would remove" if args.dry_run else "removed"
    output.say("".join(f"{verb} {file}\n" for file in doomed))
    output.say(f"{_size(freed)} {'would be freed' if args.dry_run else 'freed'}\n")
    return 0


def _disk_use(args: argparse.Namespace) -> int:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    models = [*_cached(), *_in_folder(args.dir)]
    partial = sum(f.stat().st_size for f in cache.glob("models--*/blobs/*.incomplete"))
    total = sum(model.size_bytes for model in models)
    if args.json:
        output.print_json(
            {
                "cache": str(cache),
                "n_models": len(models),
                "size_bytes": total,
                "incomplete_bytes": partial,
            }
        )
        return 0
    output.say(f"{len(models)} models, {_size(total)}\n")
    if partial:
        output.say(f"unfinished downloads, {_size(partial)}\n")
    output.say(f"cache: {cache}\n")
    return 0


def _scan() -> HFCacheInfo | None:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return scan_cache_dir()
    except CacheNotFound:
        return None


def _cached() -> Iterator[_Model]:
    """Yield the models in the cache of huggingface_hub; each file once."""
    from ..hub import models_in

    info = _scan()
    for repo in info.repos if info is not None else ():
        if repo.repo_type != "model":
            continue
        seen = set()
        for revision in sorted(repo.revisions, key=lambda r: -r.last_modified):
            files = {
                f.file_path.relative_to(revision.snapshot_path).as_posix(): f
                for f in revision.files
            }
            for group in models_in(files):
                blobs = tuple(files[name].blob_path for name in group)
                if blobs in seen:
                    continue
                seen.add(blobs)
                at = "" if "main" in revision.refs else f"@{revision.commit_hash[:12]}"
                yield _Model(
                    f"hf:{repo.repo_id}{at}:{group[0]}",
                    tuple(files[name].file_path for name in group),
                    sum(files[name].size_on_disk for name in group),
                    max(files[name].blob_last_modified for name in group),
                )


def _in_folder(folder: str | None) -> Iterator[_Model]:
    """Yield the models in a folder of one's own and in those below."""
    from ..hub import models_in

    if folder is None:
        return
    root = _folder(folder)
    assert root is not None
    if not root.is_dir():
        raise ValidationError(f"{root} is not a folder; --dir takes one with GGUF files")
    names = [p.relative_to(root).as_posix() for p in root.rglob("*.gguf") if p.is_file()]
    for group in models_in(names):
        files = tuple(root / name for name in group)
        facts = [file.stat() for file in files]
        yield _Model(
            str(files[0]), files, sum(f.st_size for f in facts), max(f.st_mtime for f in facts)
        )


def _local(name: str, folder: str | None) -> Path:
    """Return the first file of a model on this machine; nothing is fetched."""
    from ..hub import HubSpec, cached_model, resolve_model

    if name.startswith("hf:"):
        return cached_model(HubSpec.parse(name))
    root = _folder(folder)
    if root is not None and (root / name).is_file():
        return root / name
    return resolve_model(name)


def _files_of(name: str, folder: str | None) -> list[Path]:
    """Return the files of a model, or of all models of a repository."""
    from ..hub import HubSpec

    if name.startswith("hf:"):
        spec = HubSpec.parse(name)
        if spec.wanted is None and spec.revision is None:
            prefix = (f"hf:{spec.repo}:", f"hf:{spec.repo}@")
            files = [f for model in _cached() if model.name.startswith(prefix) for f in model.files]
            if not files:
                raise FetchError(f"{spec} is not in the cache; `llama-cffi models list` lists them")
            return files
    return _parts(_local(name, folder))


def _parts(path: Path) -> list[Path]:
    """Return all files of a model by its first."""
    from ..hub import models_in

    names = [p.name for p in path.parent.glob("*.gguf")]
    for group in models_in(names):
        if path.name in group:
            return [path.with_name(name) for name in group]
    return [path]


def _blob(file: Path) -> Path:
    return file.resolve()


def _disk_bytes(file: Path) -> int:
    return _blob(file).stat().st_size


def _unlink(file: Path) -> None:
    """Remove a file, and what it links to in the cache unless another revision has it."""
    blob = _blob(file)
    try:
        file.unlink()
        if blob != file and blob.parent.name == "blobs":
            others = (blob.parent.parent / "snapshots").rglob("*")
            if not any(other.is_symlink() and other.resolve() == blob for other in others):
                blob.unlink()
    except OSError as e:
        raise ValidationError(f"cannot remove {file}: {e.strerror or e}") from None


def _folder(folder: str | None) -> Path | None:
    return None if folder is None else Path(folder).expanduser()


def _size(n_bytes: int) -> str:
    """Return a size as people read it, in powers of 1000 as the hub does."""
    size = float(n_bytes)
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"

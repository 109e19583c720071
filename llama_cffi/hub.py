"""From model names to GGUF files: a path, or `hf:owner/repo` through huggingface_hub.

    hf:owner/repo                     the only GGUF, else the preferred quant (Q4_K_M first)
    hf:owner/repo:Q8_0                the file with this quant in its name
    hf:owner/repo:folder/file.gguf    this file; of a split model any part
    hf:owner/repo:*q8_0.gguf          the file whose name matches the pattern
    hf:owner/repo@revision:Q8_0       from a branch, tag or commit

If the hub does not answer, or LLAMA_CFFI_OFFLINE or HF_HUB_OFFLINE is set, the cache is used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import FetchError, ModelLoadError, ValidationError
from .progress import downloading, is_shown_live, telling_if_slow
from .validation import missing_file

if TYPE_CHECKING:
    from http.client import HTTPResponse

__all__ = [
    "HubSpec",
    "RemoteFile",
    "cached_model",
    "choose",
    "fetch_projector",
    "find_projector",
    "models_in",
    "projector_on_hub",
    "remote_files",
    "resolve_model",
]

_log = logging.getLogger(__name__)

_PREFERRED = (
    "Q4_K_M", "Q4_K_S", "Q5_K_M", "Q8_0", "Q4_K_XL", "Q5_K_S", "Q6_K", "MXFP4", "MXFP4_MOE",
    "IQ4_NL", "IQ4_XS", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M",
    "Q2_K", "F16", "BF16", "F32",
)  # fmt: skip
_SPEC = re.compile(r"hf:([^/:@\s]+/[^/:@\s]+)(?:@([^:\s]+))?(?::(.+))?")
_URL = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)"
    r"(?:/(?:blob|resolve)/([^/?]+)/([^?]+)(?:\?.*)?)?/?"
)
_REPO = re.compile(
    r"(?:hf:/*|hf\.co/|huggingface\.co/)?(([\w.-]+)/[\w.-]+(?<!\.gguf)(?::[^/\\]+)?)", re.IGNORECASE
)
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
# GGUFs that are not language models: projectors of multimodal models, calibration data.
_HELPER = re.compile(r"(?<![a-z0-9])(mmproj|imatrix)(?![a-z0-9])", re.IGNORECASE)
_PROJECTOR = re.compile(r"(?<![a-z0-9])mmproj(?![a-z0-9])", re.IGNORECASE)
_ANY_MODEL = ("", "model")  # what is left of names like mmproj-F16.gguf
_PROJECTOR_TYPES = ("F16", "BF16", "Q8_0", "F32")
_SNAPSHOT = re.compile(
    r"(.*)[/\\]models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]([^/\\]+)[/\\](.+)"
)
_Folder = str | os.PathLike[str] | None
_TIMEOUT_S = 20
_ATTEMPTS = 4
_CHUNK = 2**20
_RETRIED = frozenset((408, 429, 500, 502, 503, 504))
_MAX_WAIT_S = 30.0
_MAX_LISTED = 16


@dataclass(frozen=True)
class HubSpec:
    """A parsed `hf:` name.

    Attributes:
        repo: `owner/name`.
        revision: Branch, tag or commit; None = the default branch.
        wanted: A file of the repository, a pattern, a quant, or None.
    """

    repo: str
    revision: str | None = None
    wanted: str | None = None

    @classmethod
    def parse(cls, spec: str) -> HubSpec:
        """Parse `hf:owner/repo[@revision][:file or quant]`.

        Raises:
            ValidationError: It has another form.
        """
        found = _SPEC.fullmatch(spec.strip())
        if found is None or ".." in re.split(r"[/\\:@]", spec):
            raise ValidationError(
                f"{spec!r} is not a model on the hub; write hf:OWNER/REPO, hf:OWNER/REPO:Q4_K_M, "
                "hf:OWNER/REPO:FILE.gguf or hf:OWNER/REPO@REVISION:…"
            )
        return cls(found[1], found[2], found[3])

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "")


def resolve_model(
    spec: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    local_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Return the GGUF file that *spec* names, downloading it unless it is in the hub's cache.

    Args:
        spec: A path, or `hf:owner/repo[@revision][:file or quant]`. Without a file or quant, the
            only GGUF of the repository, else its Q4_K_M, Q4_K_S, Q5_K_M, Q8_0 and so on. All
            parts of a split model are downloaded and the first is returned.
        cache_dir: The cache; None = the default of huggingface_hub.
        local_dir: A folder for the files, instead of the cache.

    Raises:
        ModelLoadError: There is no file at the path.
        ValidationError: The name is invalid, or no file or several files match.
        FetchError: The repository does not exist, is not accessible to this user or cannot be
            reached, or the download failed.
    """
    name = os.fspath(spec)
    if name.startswith("hf:"):
        return _from_hub(HubSpec.parse(name), cache_dir, local_dir)
    if not name.strip():
        raise ModelLoadError("the model's path is empty; give a GGUF file or hf:OWNER/REPO")
    path = Path(name).expanduser()
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:  # no permission, or far too long for a path
        raise ModelLoadError(f"cannot read {name[:200]!r}: {error.strerror}") from None
    if is_folder:
        inside = sorted(p.name for p in path.glob("*.gguf"))
        raise ModelLoadError(
            f"{path} is a folder; "
            + (f"name a GGUF file in it: {_listed(inside)}" if inside else "it holds no GGUF file")
        )
    if not exists:
        if spec_of_hub := _as_hub_spec(name):
            raise ModelLoadError(
                f"no model file at {name}. For a repository on the hub write {spec_of_hub}"
            )
        if "://" in name:
            raise ModelLoadError(f"{name} is an address; download the file, and give its path")
        raise ModelLoadError(missing_file(path))
    return path


def _as_hub_spec(name: str) -> str | None:
    """Return the `hf:` name of what looks like a repository or a file on the hub."""
    if url := _URL.fullmatch(name):
        revision = "" if url[2] in (None, "main") else f"@{url[2]}"
        return f"hf:{url[1]}{revision}" + (f":{url[3]}" if url[3] else "")
    repo = _REPO.fullmatch(name)
    return f"hf:{repo[1]}" if repo and not Path(repo[2]).is_dir() else None


def choose(names: Iterable[str], spec: HubSpec) -> tuple[str, ...]:
    """Choose the files of one model from the file names of a repository.

    Returns:
        All parts in order; one name if the model is not split.

    Raises:
        ValidationError: No file matches, several do, or parts are missing.
    """
    models = models_in(names)
    if spec.wanted is not None and re.search(r"\.gguf$|[*?]", spec.wanted, re.IGNORECASE):
        every = _group(names)
        matching = [m for m in every if spec.wanted in m] or [
            m for m in every if any(fnmatchcase(part, spec.wanted) for part in m)
        ]
        problem = f"no file {spec.wanted}"
    elif not models:
        raise ValidationError(
            f"{spec} has no GGUF file. Look for a repository with GGUF in its name, or convert "
            "the model with llama.cpp's convert_hf_to_gguf.py."
        )
    elif spec.wanted is not None:
        matching = [m for m in models if _has_quant(m[0], spec.wanted)]
        problem = f"no GGUF with {spec.wanted} in its name"
    else:
        matching, problem = models, "no known quant"
        if len(models) > 1:
            by_quant = ([m for m in models if _has_quant(m[0], q)] for q in _PREFERRED)
            matching = next((found for found in by_quant if found), models)
    if not matching:
        raise ValidationError(
            f"{spec} has {problem}. Its GGUF files: {_listed(m[0] for m in models)}"
        )
    if len(matching) > 1:
        raise ValidationError(
            f"several files of {spec} match; name one of them, as in hf:{spec}:{matching[0][0]}. "
            f"They are: {_listed(m[0] for m in matching)}"
        )
    model = matching[0]
    split = _SPLIT.search(model[0])
    if split and len(model) != int(split[2]):
        raise ValidationError(
            f"{spec} has {len(model)} of the {int(split[2])} parts of {model[0]}; the model is "
            "incomplete there"
        )
    return model


def models_in(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the models among file names, each with all its parts; projectors are left out."""
    return _group(n for n in names if n.lower().endswith(".gguf") and not _HELPER.search(n))


def find_projector(model: Path) -> Path | None:
    """Return the multimodal projector of a model that lies in its folder; None if there is none.

    Args:
        model: The GGUF file of the model.

    Raises:
        ValidationError: There are several, and none has the model's name in its own.
    """
    try:
        names = sorted(p.name for p in model.parent.glob("*.gguf"))
    except OSError:
        return None
    name = _choose_projector(names, model.name, str(model.parent))
    return None if name is None else model.parent / name


def fetch_projector(model: Path) -> Path | None:
    """Do `find_projector`; download the projector of a model that came from the hub.

    Raises:
        ValidationError: See `find_projector`.
        FetchError: The hub does not answer, or the download failed.
    """
    found, place = find_projector(model), _SNAPSHOT.fullmatch(str(model))
    if found is not None or place is None or _is_offline():
        return found
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return None
    spec = HubSpec(f"{place[2]}/{place[3]}", place[4])
    name = projector_on_hub(spec, place[5].replace("\\", "/"))
    return None if name is None else _download(spec, [name], Path(place[1]), None)


def projector_on_hub(spec: HubSpec, model: str) -> str | None:
    """Return the name of the multimodal projector of a model on the hub; None if there is none.

    Args:
        spec: The repository.
        model: The name of the model's file in it.

    Raises:
        ValidationError: See `find_projector`.
        FetchError: The hub does not answer.
    """
    return _choose_projector(_names(spec), model, str(spec))


def _choose_projector(names: Iterable[str], model: str, where: str) -> str | None:
    """Choose the projector of *model* among the files of a folder or repository.

    One belongs to the model if the model's name contains its own without `mmproj` and type, if its
    own says nothing else, or if there is only one model.
    """
    names = list(names)
    projectors = [n for n in names if n.lower().endswith(".gguf") and _PROJECTOR.search(n)]
    named, unnamed = [], []
    for name in projectors:
        base = _base(name)
        if base in _ANY_MODEL:
            unnamed.append(name)
        elif base in _base(model):
            named.append(name)
    found = named or unnamed
    if not found and len({_base(m[0]) for m in models_in(names)}) == 1:
        found = projectors
    if len(found) > 1:
        by_type = ([n for n in found if _has_quant(n, kind)] for kind in _PROJECTOR_TYPES)
        found = next((n for n in by_type if n), found)
    if len(found) > 1:
        raise ValidationError(
            f"{where} has several projectors: {_listed(found)}; name one with mmproj='FILE'"
        )
    return found[0] if found else None


def _base(name: str) -> str:
    """Return the name of a file without `mmproj`, its type and its number as a part."""
    base = _SPLIT.sub("", Path(name).name.lower()).removesuffix(".gguf")
    words = [w for w in re.split(r"[-.]", _PROJECTOR.sub("", base)) if w]
    types = {kind.lower() for kind in _PREFERRED}
    return "-".join(word for word in words if word not in types)


def _group(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Group the parts of split models."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        split = _SPLIT.search(name)
        found.setdefault(f"{name[: split.start()]}-of-{split[2]}" if split else name, []).append(
            name
        )
    return [tuple(parts) for parts in found.values()]


def _has_quant(name: str, quant: str) -> bool:
    """Whether the name contains *quant* as a whole word: Q4_K is not in Q4_K_M."""
    pattern = rf"(?<![a-z0-9]){re.escape(quant)}(?![a-z0-9_])"
    return re.search(pattern, name.removesuffix(".gguf"), re.IGNORECASE) is not None


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f", and {len(every) - _MAX_LISTED} more" if len(every) > _MAX_LISTED else ""
    return (", ".join(every[:_MAX_LISTED]) or "none") + more


def _is_offline() -> bool:
    return os.environ.get("LLAMA_CFFI_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on")


_NO_HUB_ADVICE = (
    "Check the network, HTTPS_PROXY and HF_ENDPOINT, or give the path of a GGUF file that is here"
)


class _NoAnswerError(FetchError):
    """The hub gave no usable answer; the message says how it failed."""


def _from_hub(spec: HubSpec, cache_dir: _Folder, local_dir: _Folder) -> Path:
    from huggingface_hub import constants

    cache = Path(cache_dir or constants.HF_HUB_CACHE)
    if _is_offline():  # no host name is resolved
        return _from_cache(spec, cache, "LLAMA_CFFI_OFFLINE is set; unset it to fetch the model")
    if constants.HF_HUB_OFFLINE:
        return _from_cache(spec, cache, "HF_HUB_OFFLINE is set")
    try:
        names = _names(spec)
    except _NoAnswerError as error:
        found = _from_cache(spec, cache, f"{error}. {_NO_HUB_ADVICE}")
        _log.warning("%s; taking %s from the cache", error, found.name)
        return found
    return _download(spec, choose(names, spec), cache, local_dir)


def _names(spec: HubSpec) -> list[str]:
    """Return the names of the files of a repository."""
    from huggingface_hub import HfApi, constants

    with _hub_errors(spec), telling_if_slow(f"an answer from {constants.ENDPOINT}"):
        info = HfApi(library_name="llama_cffi").model_info(
            spec.repo, revision=spec.revision, timeout=_TIMEOUT_S
        )
    return [sibling.rfilename for sibling in info.siblings or ()]


@dataclass(frozen=True)
class RemoteFile:
    """A file on the hub, of which ranges can be read.

    Attributes:
        name: Its name in the repository.
        size: Its size in bytes.
        etag: Identifies its content.
        url: Where its content is.
        token: The token for that place; None: none is sent.
    """

    name: str
    size: int
    etag: str
    url: str
    token: str | None = field(repr=False)

    def read(self, begin: int, end: int) -> bytes:
        """Return the bytes from *begin* up to *end*.

        Raises:
            FetchError: The server cannot be reached, or ignores ranges.
        """
        return b"".join(self.stream(begin, end))

    def stream(self, begin: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from *begin* up to *end*; a connection that breaks is opened again.

        Raises:
            FetchError: The server cannot be reached, or ignores ranges.
        """
        from http.client import HTTPException
        from urllib.error import HTTPError

        attempt = 0
        while begin < end:
            try:
                with self._answer(begin, end) as answer:
                    while data := answer.read(min(_CHUNK, end - begin)):
                        begin, attempt = begin + len(data), 0
                        yield data
                if begin < end:
                    raise ConnectionError(f"the connection ended {end - begin} bytes early")
            except HTTPError as error:
                if error.code not in _RETRIED or attempt == _ATTEMPTS - 1:
                    raise FetchError(
                        f"the hub answered {error.code} for {self.name}; try again later"
                    ) from error
                wait = error.headers.get("Retry-After", "")
                time.sleep(min(float(wait) if wait.isdigit() else 2**attempt, _MAX_WAIT_S))
                attempt += 1
            except _NoRangesError:
                raise
            except (OSError, HTTPException) as error:
                if attempt == _ATTEMPTS - 1:
                    raise FetchError(f"reading {self.name} failed: {error}. Try again") from error
                attempt += 1

    def _answer(self, begin: int, end: int) -> HTTPResponse:
        """Ask for a range; return the checked answer."""
        from urllib.request import Request, urlopen

        request = Request(self.url, headers={"Range": f"bytes={begin}-{end - 1}"})
        if self.token is not None:
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        answer: HTTPResponse = urlopen(request, timeout=_TIMEOUT_S)
        said = answer.headers.get("Content-Range", "")
        if answer.status != 206 or said != f"bytes {begin}-{end - 1}/{self.size}":
            answer.close()  # with status 200, the whole file would follow
            raise _NoRangesError(
                f"the server of {self.name} does not send parts of files (status {answer.status}, "
                f"range {said or 'none'}); download the model first"
            )
        return answer

    def download(self, folder: Path) -> Path:
        """Write the file to *folder*, going on where an earlier download ended.

        Its SHA-256 is compared with the hub's, where that is known.

        Raises:
            FetchError: The download failed, the folder cannot be written or has not enough space,
                or the content is damaged.
        """
        target = folder / self.name
        partial = target.with_name(f".{target.name}.{self.etag[:12]}.part")
        try:
            if target.is_file() and target.stat().st_size == self.size:
                return target
            target.parent.mkdir(parents=True, exist_ok=True)
            got = partial.stat().st_size if partial.is_file() else 0
            free = shutil.disk_usage(target.parent).free
            if self.size - got > free:
                raise FetchError(
                    f"{self.name} needs {(self.size - got) / 1e6:,.1f} MB more, and {folder} has "
                    f"{free / 1e6:,.1f} MB free"
                )
            with (
                partial.open("ab") as file,
                downloading(self.name, self.size, got) as advance,
            ):
                for data in self.stream(got, self.size):
                    file.write(data)
                    advance(len(data))
            if re.fullmatch("[0-9a-f]{64}", self.etag) and _sha256(partial) != self.etag:
                partial.unlink()
                raise FetchError(f"{self.name} is damaged: its SHA-256 is not the hub's. Try again")
            os.replace(partial, target)
        except FetchError:
            raise
        except OSError as error:
            raise FetchError(f"cannot write {target}: {error.strerror or error}") from error
        return target


class _NoRangesError(FetchError):
    """A server ignores ranges."""


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            digest.update(data)
    return digest.hexdigest()


def remote_files(spec: HubSpec) -> list[RemoteFile]:
    """Return the files of the model that *spec* names, without downloading them.

    Raises:
        ValidationError: No file or several files match.
        FetchError: The repository does not exist or cannot be reached, or downloads are forbidden.
    """
    from urllib.parse import urlsplit

    from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_url

    if _is_offline() or constants.HF_HUB_OFFLINE:
        variable = "LLAMA_CFFI_OFFLINE" if _is_offline() else "HF_HUB_OFFLINE"
        raise FetchError(f"{variable} is set; unset it to read {spec} on the hub")
    found = []
    for name in choose(_names(spec), spec):
        url = hf_hub_url(spec.repo, name, revision=spec.revision, endpoint=constants.ENDPOINT)
        with _hub_errors(spec):
            facts = get_hf_file_metadata(url, timeout=_TIMEOUT_S)
        is_hub = urlsplit(facts.location).netloc == urlsplit(url).netloc
        found.append(
            RemoteFile(
                name,
                int(facts.size or 0),
                facts.etag or "",
                facts.location,
                get_token() if is_hub else None,
            )
        )
    return found


def _download(spec: HubSpec, files: Sequence[str], cache: Path, local_dir: _Folder) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled

    paths = []
    for name in files:
        cached = try_to_load_from_cache(spec.repo, name, cache, spec.revision)
        # Terminals and notebooks get the hub's own bar.
        is_quiet = is_shown_live() or sys.stderr is None or are_progress_bars_disabled()
        if not (isinstance(cached, str) or is_quiet):
            print(f"fetching {name} of {spec} from the Hugging Face hub", file=sys.stderr)
        try:
            with _hub_errors(spec):
                paths.append(
                    hf_hub_download(
                        spec.repo,
                        name,
                        revision=spec.revision,
                        cache_dir=cache,
                        local_dir=None if local_dir is None else Path(local_dir),
                        library_name="llama_cffi",
                    )
                )
        except _NoAnswerError as error:
            raise FetchError(f"downloading {name} of {spec} failed: {error}. Try again") from error
    return Path(paths[0])


def cached_model(spec: HubSpec, cache_dir: _Folder = None) -> Path:
    """Return the file of a model that is in the hub's cache; nothing is asked or downloaded.

    Args:
        spec: The model.
        cache_dir: The cache; None = the default of huggingface_hub.

    Raises:
        FetchError: It is not there.
    """
    from huggingface_hub import constants

    cache = Path(cache_dir or constants.HF_HUB_CACHE)
    return _from_cache(spec, cache, f"`llama-cffi models pull hf:{spec}` fetches it")


def _from_cache(spec: HubSpec, cache: Path, reason: str) -> Path:
    """Choose from the files of the repository that are in the cache."""
    from huggingface_hub import constants

    folder = cache / f"models--{spec.repo.replace('/', '--')}"
    revision = spec.revision or constants.DEFAULT_REVISION
    try:
        commit = (folder / "refs" / revision).read_text(encoding="utf-8").strip()
    except OSError:
        commit = revision
    snapshot = folder / "snapshots" / commit
    names = [p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*.gguf") if p.is_file()]
    if not names:
        raise FetchError(f"{spec} is not in the cache {cache}, and {reason}")
    try:
        files = choose(names, spec)
    except ValidationError as error:
        raise FetchError(
            f"in the cache {cache}, {error}. Only the cache was searched: {reason}"
        ) from None
    return snapshot / files[0]


@contextmanager
def _hub_errors(spec: HubSpec) -> Iterator[None]:
    """Turn the errors of huggingface_hub into ours."""
    from huggingface_hub import constants, errors

    # The error of its HTTP library, which depends on its version: requests, httpx or httpx2.
    http_error = getattr(errors, "HTTPError", OSError)
    try:
        yield
    except errors.HFValidationError as error:
        raise ValidationError(
            f"{spec} is not a valid repository name: {_first_line(error)}"
        ) from error
    except errors.GatedRepoError as error:
        raise FetchError(
            f"{spec.repo} is gated: accept its terms on its page on the hub, then set HF_TOKEN "
            "to a token of that account (or run `hf auth login`)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FetchError(_no_repository(spec)) from error
    except errors.RevisionNotFoundError as error:
        raise ValidationError(f"{spec.repo} has no revision {spec.revision!r}") from error
    except (OSError, ValueError, http_error) as error:
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        said = str(getattr(response, "headers", {}).get("X-Error-Message", ""))
        if status == 401 and "credentials" not in said:
            raise FetchError(_no_repository(spec)) from error
        if status in (401, 403):
            raise FetchError(
                f"the hub refused {spec.repo} ({status}): check the token in HF_TOKEN, or unset it"
            ) from error
        if status is not None:
            raise _NoAnswerError(f"the hub at {constants.ENDPOINT} answered {status}") from error
        if isinstance(error, OSError) and error.errno is not None:  # an error of the local disk
            raise FetchError(
                f"cannot write the hub's cache {constants.HF_HUB_CACHE}: {error}. Set "
                "HF_HUB_CACHE to use another folder"
            ) from error
        raise _NoAnswerError(
            f"the hub at {constants.ENDPOINT} cannot be reached "
            f"({_first_line(error.__cause__ or error)})"
        ) from error


def _no_repository(spec: HubSpec) -> str:
    return (
        f"the hub has no repository {spec.repo}, or it is private: check the spelling; "
        "for a private one set HF_TOKEN (or run `hf auth login`)"
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__

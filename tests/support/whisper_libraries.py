"""Libraries of whisper.cpp from packages of other bindings, fetched once, outside site-packages."""

from __future__ import annotations

from pathlib import Path

import filelock

from .foreign import fetch_foreign

# A module of Node.js with whisper.cpp and ggml inside: v1.9.3-dev.
_NPM = ("@fugood/node-whisper-linux-x64", "1.1.3")
_NPM_HASH = (
    "sha512-hm//o20nioHQ+7s/idIvnYStz+QdN3n9"
    "/psbNJdUf7PciV2orpf6OuWwfDBcme22IwgDOSrCYsWDdO0/08pf5w=="
)


def fetch_libwhisper(cache: Path, wheel: str = "pywhispercpp") -> Path:
    """Return the libwhisper in a wheel of pywhispercpp; see `foreign.WHEELS`."""
    found = fetch_foreign(wheel, cache)
    (library,) = found.parent.glob("libwhisper-*.so*")
    return library


def fetch_node_module(cache: Path) -> Path:
    """Return the module of Node.js, which has symbols that only Node.js defines."""
    from llama_cffi.libs_fetch import npm
    from llama_cffi.libs_fetch.archive import extract
    from llama_cffi.libs_fetch.download import downloaded

    package, version = _NPM
    folder = cache / "foreign" / f"{package.rpartition('/')[2]}@{version}"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "index.node"
    with filelock.FileLock(folder / "lock"):
        if not library.is_file():
            remote = npm.locate(package, version, scoped=False)
            assert remote.integrity == _NPM_HASH
            part = folder / "part"
            with downloaded(npm.config().client(), remote, part, progress=False):
                extract(part, folder, lambda _: {"package/index.node": "index.node"}.get)
    return library

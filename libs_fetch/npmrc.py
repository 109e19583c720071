"""Read npm's configuration: registry, token, CA file, proxy.

In order of precedence: LLAMA_CFFI_NPM_REGISTRY (this package's own), then as in npm the
environment (`npm_config_registry`), project .npmrc, user .npmrc, global npmrc, and finally
`npm config get registry`. No registry address is built in.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .http import Client

__all__ = ["NpmConfig", "load"]

_SCOPE = "@node-llama-cpp"
_VARIABLE = re.compile(r"(?<!\\)\$\{([^}?]+)(\??)\}")
_NPM_TIMEOUT_S = 20
# Where to find npm when PATH is restricted, as in services and build sandboxes.
_USUAL_FOLDERS = os.pathsep.join(
    ("/usr/local/bin", "/usr/bin", "/opt/homebrew/bin", r"C:\Program Files\nodejs")
)


@dataclass(frozen=True)
class NpmConfig:
    """The registries to use, and npm's settings.

    Attributes:
        scoped: Registry of the `@node-llama-cpp` packages.
        main: Registry of the `node-llama-cpp` package.
        origin: Where the registries are configured, for messages.
        settings: Every npm setting by name.
    """

    scoped: str
    main: str
    origin: str
    settings: Mapping[str, str]

    def client(self) -> Client:
        """Return an HTTP client with npm's CA file and proxies."""
        proxies = {}
        https = self.settings.get("https-proxy") or self.settings.get("proxy")
        if https and https != "null":
            proxies["https"] = https
        plain = self.settings.get("proxy")
        if plain and plain != "null":
            proxies["http"] = plain
        return Client(cafile=self.settings.get("cafile") or None, proxies=proxies)

    def headers(self, url: str) -> dict[str, str]:
        """Return the credentials that npm's configuration has for the host and path of *url*."""
        try:
            parts = urllib.parse.urlsplit(url)
        except ValueError:  # the request will name it
            return {}
        path = parts.path.rstrip("/")
        while True:
            key = f"//{parts.netloc.rpartition('@')[2]}{path}/:"
            if token := self.settings.get(f"{key}_authToken"):
                return {"Authorization": f"Bearer {token}"}
            if basic := self.settings.get(f"{key}_auth"):
                return {"Authorization": f"Basic {basic}"}
            if not path:
                return {}
            path = path.rpartition("/")[0]


def load(cwd: Path | None = None) -> NpmConfig | None:
    """Read npm's configuration; None if npm is not configured on this machine.

    Runs `npm config get registry` only if no file and no variable names a registry.
    """
    settings: dict[str, str] = {}
    for path in _files(cwd or Path.cwd()):  # strongest last
        settings.update(_read(path))
    settings.update(_environment())
    own = os.environ.get("LLAMA_CFFI_NPM_REGISTRY", "").strip()
    if own:
        return NpmConfig(own, own, "LLAMA_CFFI_NPM_REGISTRY", settings)
    main = settings.get("registry")
    scoped = settings.get(f"{_SCOPE}:registry")
    origin = "npm's configuration"
    if main is None:
        npm = shutil.which("npm") or shutil.which("npm", path=_USUAL_FOLDERS)
        main = _ask(npm) if npm else None
        origin = "`npm config get registry`"
    if scoped is None and main is None:
        return None
    return NpmConfig(scoped or main or "", main or scoped or "", origin, settings)


def _files(cwd: Path) -> Iterator[Path]:
    env = {name.lower(): value for name, value in os.environ.items()}
    home = Path.home()
    node = shutil.which("node")
    prefix = env.get("npm_config_prefix") or os.environ.get("PREFIX")
    if not prefix and node:
        folder = Path(os.path.realpath(node)).parent
        prefix = str(folder if os.name == "nt" else folder.parent)
    if configured := env.get("npm_config_globalconfig"):
        yield Path(configured)
    elif prefix:
        yield Path(prefix) / "etc" / "npmrc"
    user = Path(env.get("npm_config_userconfig") or home / ".npmrc")
    yield user
    for folder in (cwd, *cwd.parents):
        if (folder / "package.json").is_file() or (folder / "node_modules").is_dir():
            if folder / ".npmrc" != user:
                yield folder / ".npmrc"
            return


def _read(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in text.splitlines():
        line = line.strip()
        if not line or line[0] in "#;[":
            continue
        key, equals, value = line.partition("=")
        if equals:
            found[key.strip()] = _expand(value.strip().strip("\"'"))
    return found


def _expand(value: str) -> str:
    def replace(match: re.Match[str]) -> str:
        known = os.environ.get(match[1])
        if known is not None:
            return known
        return "" if match[2] else match[0]

    return _VARIABLE.sub(replace, value)


def _environment() -> dict[str, str]:
    found = {}
    for name, value in os.environ.items():
        if name.lower().startswith("npm_config_") and value:
            key = name[len("npm_config_") :]
            if not key.startswith(("//", "@")):
                key = key.lower().replace("_", "-")
            found[key] = value
    return found


@functools.lru_cache(maxsize=4)
def _ask(npm: str) -> str | None:
    # npm is a script that looks for node on PATH.
    path = os.pathsep.join((os.environ.get("PATH", ""), os.path.dirname(npm)))
    try:
        done = subprocess.run(
            [npm, "config", "get", "registry"],
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=_NPM_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.split()
    return lines[-1] if lines and lines[-1].startswith(("http://", "https://")) else None

"""Download the C headers of every known llama.cpp build to ROOT/<tag>/*.h.

Two public sources contain a full llama.cpp tree at an exact tag: the npm package `node-llama-cpp`
(a git bundle inside its tarball) and the sdists of the PyPI package `xllamacpp`. Both are reached
as npm and pip are configured, and downloads are verified: npm checks its own tarballs, and an
sdist is compared with the sha256 of the package index.

    python tools/collect_headers.py ROOT                     # all of them: about 1 GB, 10 minutes
    python tools/collect_headers.py ROOT v0.5.0 b11549       # these tags only
    python tools/collect_headers.py ROOT --downloads DIR     # keep (and reuse) the archives in DIR
"""

from __future__ import annotations

import argparse
import hashlib
import html.parser
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tqdm import tqdm

# tag -> the first node-llama-cpp release that contains it (3.3.2 and 3.22.1 repeat a tag)
NPM = {
    "b3889": "3.1.1",
    "b3995": "3.2.0",
    "b4234": "3.3.0",
    "b4291": "3.3.1",
    "b4435": "3.4.0",
    "b4529": "3.4.1",
    "b4600": "3.5.0",
    "b4753": "3.6.0",
    "b4980": "3.7.0",
    "b5590": "3.9.0",
    "b5640": "3.10.0",
    "b6122": "3.12.0",
    "b6133": "3.12.1",
    "b6301": "3.12.4",
    "b6431": "3.13.0",
    "b6673": "3.14.0",
    "b6845": "3.14.2",
    "b7324": "3.14.4",
    "b7347": "3.14.5",
    "b7698": "3.15.0",
    "b7836": "3.15.1",
    "b8095": "3.16.0",
    "b8121": "3.16.2",
    "b8179": "3.17.1",
    "b8352": "3.18.0",
    "b8390": "3.18.1",
    "b9842": "3.19.0",
    "b10068": "3.19.1",
    "b10361": "3.20.0",
    "v0.4.0": "3.21.1",
    "v0.5.0": "3.22.0",
}
# tag -> xllamacpp release
PYPI = {
    "b9294": "2026.5.9294",
    "b9538": "2026.6.9538",
    "b10566": "2026.8.10566",
    "b11549": "2026.10.11549",
}
TAGS = (*NPM, *PYPI)
TIMEOUT_S = 180
# Without examples/llava, the mtmd of mid-2025 and before: it is not an installed library.
HEADER = re.compile(
    r"(?:^|/)(?:include/llama|ggml/include/(?:ggml|gguf)[a-z0-9-]*|tools/mtmd/mtmd(?:-helper)?)\.h$"
)


def is_public_header(path: str) -> bool:
    """Return whether *path* in a llama.cpp tree is a C header of one of its public libraries."""
    return bool(HEADER.search(path)) and not path.endswith("-cpp.h")


class _Links(html.parser.HTMLParser):
    """Collects the targets of all links on a simple index page (PEP 503)."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]


def index_url() -> str:
    """Return the package index that pip is configured for, else pip's default."""
    if url := os.environ.get("PIP_INDEX_URL"):
        return url
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0 and done.stdout.strip():
        return done.stdout.strip()
    return str(importlib.import_module("pip._internal.models.index").PyPI.simple_url)


def download(url: str, sha256: str, target: Path) -> None:
    """Download *url* to *target* and verify its sha256.

    Raises:
        RuntimeError: The sha256 is not *sha256*.
    """
    part = target.with_suffix(".part")
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, part.open("wb") as out:
        total = int(response.headers.get("Content-Length", 0)) or None
        with tqdm(total=total, unit="B", unit_scale=True, desc=target.name, leave=False) as bar:
            while block := response.read(1 << 20):
                out.write(block)
                digest.update(block)
                bar.update(len(block))
    if digest.hexdigest() != sha256:
        part.unlink()
        raise RuntimeError(
            f"{target.name} has sha256 {digest.hexdigest()}, the package index says {sha256}"
        )
    part.replace(target)


def sdist(version: str, downloads: Path) -> Path:
    """Return the sdist of xllamacpp *version*, downloading it to *downloads* if needed."""
    name = f"xllamacpp-{version}.tar.gz"
    target = downloads / name
    if target.exists():
        return target
    page_url = index_url().rstrip("/") + "/xllamacpp/"
    with urllib.request.urlopen(page_url, timeout=TIMEOUT_S) as response:
        page, base = response.read().decode(), response.url
    parser = _Links()
    parser.feed(page)
    for link in parser.links:
        url, _, fragment = urllib.parse.urljoin(base, link).partition("#")
        if urllib.parse.unquote(url).endswith("/" + name):
            algorithm, _, digest = fragment.partition("=")
            if algorithm != "sha256":
                raise RuntimeError(
                    f"{name}: the index gives no sha256 ({fragment or 'no fragment'})"
                )
            download(url, digest, target)
            return target
    raise RuntimeError(f"{name} is not on the package index that pip is configured for")


def npm_pack(version: str, downloads: Path) -> Path:
    """Return the tarball of node-llama-cpp *version*, downloading it with npm if needed."""
    target = downloads / f"node-llama-cpp-{version}.tgz"
    if not target.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise RuntimeError("npm is not on PATH; it is needed to download node-llama-cpp")
        with tempfile.TemporaryDirectory(dir=downloads) as scratch:
            command = [npm, "pack", "--silent", f"node-llama-cpp@{version}"]
            subprocess.run(command, cwd=scratch, check=True, stdout=subprocess.DEVNULL)
            Path(scratch, target.name).replace(target)
    return target


def from_bundle(
    tarball: Path, tag: str, wanted: Callable[[str], bool] = is_public_header
) -> Iterator[tuple[str, bytes]]:
    """Yield (path, content) of the *wanted* files in the git bundle of a node-llama-cpp tarball.

    Raises:
        RuntimeError: The tarball has no bundle, or one of another llama.cpp tag.
    """
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(tarball) as archive:
            release = archive.extractfile("package/llama/binariesGithubRelease.json")
            bundle = archive.extractfile("package/llama/gitRelease.bundle")
            if release is None or bundle is None:
                raise RuntimeError(f"{tarball.name}: no llama.cpp bundle inside")
            found = json.load(release)["release"]
            if found != tag:
                raise RuntimeError(f"{tarball.name}: llama.cpp {found}, expected {tag}")
            with Path(scratch, "bundle").open("wb") as out:
                shutil.copyfileobj(bundle, out)
        git = ["git", "-C", scratch]
        subprocess.run([*git, "clone", "--quiet", "--bare", "bundle", "repo"], check=True)
        git = ["git", "-C", str(Path(scratch, "repo"))]
        listing = subprocess.run(
            [*git, "ls-tree", "-r", "--name-only", "HEAD"], check=True, capture_output=True
        )
        for path in listing.stdout.decode().splitlines():
            if wanted(path):
                show = subprocess.run(
                    [*git, "show", f"HEAD:{path}"], check=True, capture_output=True
                )
                yield path, show.stdout


def from_sdist(archive_path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (path, content) of the public headers in the llama.cpp tree inside an sdist."""
    with tarfile.open(archive_path) as archive:
        for member in archive:
            # The sdist also has a src/llama.cpp/include/llama.h of its own.
            inside = "/thirdparty/llama.cpp/" in member.name
            if inside and member.isfile() and is_public_header(member.name):
                content = archive.extractfile(member)
                if content is not None:
                    yield member.name, content.read()


def collect(tag: str, root: Path, downloads: Path) -> int:
    """Write the headers of *tag* to *root*/<tag>/, all or none, and return their number."""
    if tag in NPM:
        headers = dict(from_bundle(npm_pack(NPM[tag], downloads), tag))
    else:
        headers = dict(from_sdist(sdist(PYPI[tag], downloads)))
    names = {Path(path).name: content for path, content in headers.items()}
    if len(names) != len(headers) or "llama.h" not in names:
        raise RuntimeError(f"{tag}: unexpected set of headers: {sorted(headers)}")
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        for name, content in names.items():
            Path(scratch, name).write_bytes(content)
        target = root / tag
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(scratch, target)
    return len(names)


@contextmanager
def _downloads(folder: Path | None) -> Iterator[Path]:
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def main(argv: Iterable[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path, help="folder to create one folder per tag in")
    parser.add_argument("tags", nargs="*", metavar="TAG", help=f"default: all; {', '.join(TAGS)}")
    parser.add_argument("--downloads", type=Path, help="folder to keep and reuse the archives in")
    parser.add_argument("--force", action="store_true", help="replace tags that exist already")
    args = parser.parse_args(None if argv is None else list(argv))
    if unknown := set(args.tags) - set(TAGS):
        parser.error(f"no known source has {', '.join(sorted(unknown))}")
    args.root.mkdir(parents=True, exist_ok=True)
    wanted = [tag for tag in args.tags or TAGS if args.force or not (args.root / tag).is_dir()]
    with _downloads(args.downloads) as downloads:
        for tag in (bar := tqdm(wanted, unit="tag")):
            bar.set_description(tag)
            collect(tag, args.root, downloads)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

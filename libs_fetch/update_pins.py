"""Write pins.json from what the sources publish. A command for developers.

    python -m llama_cffi.libs_fetch.update_pins npm:3.22.1 github:b11549 [--output PATH]

Downloads every npm package of the version once, verifies it with the registry's hash, and records
its hash, its length and the system versions that its libraries need. If the configured registry
lacks that version for a platform, the platform's default is the newest version it has: a build
with a pinned hash is preferred to a newer one without.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..errors import FetchError
from . import check, choose, github, npm, pins
from .archive import extract
from .download import download
from .specs import parse
from .store import packaged_tag, version_key

_PINS = Path(__file__).with_name("pins.json")
_MAIN_PACKAGE = "node-llama-cpp"
_NO_DIGEST = (
    "GitHub could not be reached when these pins were made; a fetch verifies the sha256 digest "
    "that the release API publishes for each asset"
)


def pin_npm(version: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Fetch and measure the npm packages of every platform.

    Returns:
        The default version per platform (`*` for the rest), and the pins by version.
    """
    defaults = {"*": version}
    pinned: dict[str, Any] = {}
    _pin(pinned, version, _MAIN_PACKAGE)
    for (system, arch), variants in choose.NPM_VARIANTS.items():
        names = sorted({name for offered in variants.values() for name in offered})
        published = set.intersection(*(set(npm.versions(name)) for name in names))
        newest = version if version in published else max(published, key=version_key)
        if newest != version:
            defaults[f"{system}-{arch}"] = newest
            print(f"{system}-{arch}: no {version}, pinning {newest}", file=sys.stderr)
        for name in names:
            _pin(pinned, newest, name)
    return defaults, pinned


def _pin(pinned: dict[str, Any], version: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        entry, tag = _measure(name, version, Path(scratch))
    pin = pinned.setdefault(version, {"tag": None, "packages": {}})
    pin["tag"] = pin["tag"] or tag
    pin["packages"][name] = entry
    print(f"{name}@{version}: {entry}", file=sys.stderr)


def _measure(name: str, version: str, work: Path) -> tuple[dict[str, Any], str | None]:
    remote = npm.locate(name, version, scoped=name != _MAIN_PACKAGE)
    tarball = download(npm.config().client(), remote, work / "package.part")
    entry: dict[str, Any] = {"integrity": remote.integrity, "size": tarball.stat().st_size}
    folder = work / "unpacked"
    folder.mkdir()
    extract(
        tarball,
        folder,
        lambda paths: lambda path: path.rpartition("/")[2] if "/bins/" in path else None,
    )
    needs = check.needs(folder)
    if needs:
        entry["needs"] = needs
    return entry, packaged_tag(folder)


def pin_github(tag: str) -> dict[str, Any]:
    """Return the digests of a release, or a note why there are none."""
    try:
        offered = github.assets(tag)
    except FetchError as e:
        print(f"github:{tag}: {e}", file=sys.stderr)
        return {"note": _NO_DIGEST, "assets": {}}
    return {"assets": {n: r.integrity for n, r in sorted(offered.items()) if r.integrity}}


def tags(known: dict[str, str]) -> dict[str, str]:
    """Add missing npm versions to the table npm version -> llama.cpp tag.

    The tag is read from the smallest package of each version.
    """
    found = dict(known)
    for version in npm.versions("linux-x64"):
        if version not in found:
            with tempfile.TemporaryDirectory() as scratch:
                tag = _measure("linux-x64", version, Path(scratch))[1]
            if tag:
                found[version] = tag
    return {v: found[v] for v in sorted(found, key=version_key)}


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m llama_cffi.libs_fetch.update_pins",
        description="Write pins.json from what the sources publish.",
    )
    parser.add_argument("spec", nargs="+", help="the builds to make the defaults of their source")
    parser.add_argument("--output", type=Path, default=_PINS)
    args = parser.parse_args(argv)
    table = dict(pins.table())
    for spec in map(parse, args.spec):
        if spec.source == "npm":
            default, table["npm"] = pin_npm(spec.version)
            table["default"] = {**table["default"], "npm": default}
        else:
            table["default"] = {**table["default"], "github": spec.version}
            table["github"] = {spec.version: pin_github(spec.version)}
    table["tags"] = tags(table["tags"])
    args.output.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {args.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

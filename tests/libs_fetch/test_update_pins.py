from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama_cffi.libs_fetch import choose, pins, update_pins


def test_pins_are_made_from_what_the_sources_publish(
    registry: Any, make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = make.npm_files("b9999", versions={"libc.so.6": ("GLIBC_2.34",)})
    for variants in choose.NPM_VARIANTS.values():
        for package in {name for names in variants.values() for name in names}:
            registry.npm(f"@node-llama-cpp/{package}", "3.29.0", files)
            if not package.startswith("mac"):  # this registry lacks the newest version of these
                registry.npm(f"@node-llama-cpp/{package}", "3.30.0", files)
    registry.npm("node-llama-cpp", "3.30.0", {"package/llama/gitRelease.bundle": b"x"})
    registry.release("b9999", {"llama-b9999-bin-ubuntu-x64.tar.gz": b"archive"})
    output = tmp_path / "pins.json"
    arguments = ["npm:3.30.0", "github:b9999", "--output", str(output)]
    assert update_pins.main(arguments) == 0
    made = json.loads(output.read_text())
    assert made["default"] == {
        "npm": {"*": "3.30.0", "mac-arm64": "3.29.0", "mac-x64": "3.29.0"},
        "github": "b9999",
    }
    package = made["npm"]["3.30.0"]["packages"]["linux-x64"]
    assert package["integrity"].startswith("sha512-")
    assert package["needs"] == {"machine": "x64", "GLIBC": "2.34"}
    assert set(made["npm"]["3.29.0"]["packages"]) == {"mac-arm64-metal", "mac-x64"}
    assert made["npm"]["3.30.0"]["tag"] == "b9999"
    assert made["tags"]["3.30.0"] == "b9999"
    assert made["tags"]["3.1.1"] == "b3889"
    digest = made["github"]["b9999"]["assets"]["llama-b9999-bin-ubuntu-x64.tar.gz"]
    assert digest.startswith("sha256-")
    assert "mac-x64: no 3.30.0, pinning 3.29.0" in capsys.readouterr().err


def test_without_github_the_pin_has_a_note(registry: Any) -> None:
    assert update_pins.pin_github("b1") == {"note": update_pins._NO_DIGEST, "assets": {}}
    shipped = pins.table()["github"]["b11549"]
    assert shipped["assets"] or shipped["note"]

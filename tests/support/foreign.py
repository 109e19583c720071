"""Shared libraries from wheels of other packages, fetched with pip, outside site-packages."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import filelock

# Package -> (requirement, the member that is the library).
WHEELS = {
    "xllamacpp": ("xllamacpp==2026.10.11549", "xllamacpp/xllamacpp.abi3.so"),
    "llama-cpp-cffi": ("llama-cpp-cffi==0.4.42", "llama/_llama_cpp_cpu"),
    # With libwhisper: v1.8.5, v1.7.4, and one between v1.5.4 and v1.5.5.
    "pywhispercpp": ("pywhispercpp==1.5.1", "pywhispercpp.libs/"),
    "pywhispercpp-1.3.3": ("pywhispercpp==1.3.3", "pywhispercpp.libs/"),
    "pywhispercpp-1.2.0": ("pywhispercpp==1.2.0", "pywhispercpp.libs/"),
}


def fetch_foreign(package: str, cache: Path) -> Path:
    """Return the path of the library inside *package*'s wheel, downloading it once."""
    requirement, member = WHEELS[package]
    folder = cache / "foreign" / requirement
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / "lock"):
        found = list(folder.glob(f"{member}*"))
        if not found:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            # The wheel of llama-cpp-cffi is for CPython 3.11; its library does not use Python.
            tags = ["--only-binary=:all:", "--python-version=3.11"]
            subprocess.run([*pip, *tags, "-d", str(folder), requirement], check=True)
            (wheel,) = folder.glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if name.startswith(member):
                        archive.extract(name, folder)
            wheel.unlink()
            found = list(folder.glob(f"{member}*"))
    return found[0]

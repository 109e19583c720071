"""A distribution named llama-cpp-python whose module `llama_cpp` is `llama_cffi.llama_cpp`.

For programs that require llama-cpp-python, look for it in pip's metadata, or are started by others.
"""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from pathlib import Path

from . import __version__

__all__ = ["write_wheel"]

# The local version label, which requirements ignore, tells it from llama-cpp-python.
_VERSION = f"{__version__}+llama.cffi"
_INFO = f"llama_cpp_python-{_VERSION}.dist-info"
_FILES = {
    "llama_cpp.py": '''\
"""A stand-in for llama-cpp-python: `llama_cpp` is `llama_cffi.llama_cpp`."""

import sys

import llama_cffi.llama_cpp

sys.modules[__name__] = llama_cffi.llama_cpp
''',
    f"{_INFO}/METADATA": f"""\
Metadata-Version: 2.1
Name: llama-cpp-python
Version: {_VERSION}
Summary: A stand-in: llama_cpp is llama_cffi.llama_cpp
Requires-Python: >=3.10
Requires-Dist: llama-cffi
""",
    f"{_INFO}/WHEEL": """\
Wheel-Version: 1.0
Generator: llama-cffi
Root-Is-Purelib: true
Tag: py3-none-any
""",
    f"{_INFO}/top_level.txt": "llama_cpp\n",  # Python 3.10's packages_distributions reads it
}


def write_wheel(folder: str | os.PathLike[str] = ".") -> Path:
    """Write the wheel to *folder*, which is created if it does not exist; return its path.

    Raises:
        OSError: It cannot be written.
    """
    path = Path(folder) / f"llama_cpp_python-{_VERSION}-py3-none-any.whl"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = "".join(_record(name, text.encode()) for name, text in _FILES.items())
    files = {**_FILES, f"{_INFO}/RECORD": f"{record}{_INFO}/RECORD,,\n"}
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(zipfile.ZipInfo(name), text)  # no time: the same bytes every time
    return path


def _record(name: str, data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(data)}\n"

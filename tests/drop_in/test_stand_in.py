"""The distribution that stands in for llama-cpp-python, in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import llama_cffi.llama_cpp as llama_cpp
from llama_cffi.cli import main
from llama_cffi.demo import model_path
from llama_cffi.llama_cpp.stand_in import write_wheel

VERSION = f"{llama_cpp.__version__}+llama.cffi"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has what this one has, and the stand-in."""
    folder = tmp_path_factory.mktemp("stand-in")
    venv.create(folder / "venv", symlinks=sys.platform != "win32")
    scripts = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    python = scripts / ("python.exe" if sys.platform == "win32" else "python")
    site = run(python, "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    Path(site, "parent.pth").write_text(line, encoding="utf-8")
    pip(python, "install", "--no-index", "--no-deps", str(write_wheel(folder / "new" / "folder")))
    return python


def run(python: Path, code: str) -> str:
    result = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def pip(python: Path, *args: str) -> str:
    """Run this environment's pip for another one, offline."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "-q", *args]
    result = subprocess.run(
        [*command, "--disable-pip-version-check"], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_llama_cpp_is_the_drop_in(python: Path) -> None:
    code = f"""
import llama_cpp
import llama_cffi.llama_cpp
assert llama_cpp is llama_cffi.llama_cpp
from llama_cpp import Llama, ChatCompletionTool
with Llama({str(model_path())!r}, n_ctx=64, n_threads=1, verbose=False) as llm:
    print(llm.create_chat_completion([{{"role": "user", "content": "What is 17 + 25?"}}],
                                     temperature=0)["choices"][0]["message"]["content"])
"""
    assert run(python, code) == "42\n"


@pytest.mark.parametrize(
    "statement",
    [
        "from llama_cpp.llama_chat_format import Llava15ChatHandler as found",
        "import llama_cpp.llama_types; found = llama_cpp.llama_types.ChatCompletionTool",
        "from llama_cpp.llama import Llama as found",
        "from llama_cpp import *; found = LlamaGrammar",
        "import importlib; found = importlib.import_module('llama_cpp.llama_cache').LlamaCache",
    ],
)
def test_submodules_are_the_drop_ins(python: Path, statement: str) -> None:
    found = run(python, f"{statement}; print(found.__module__)")
    assert found.startswith("llama_cffi.llama_cpp.")


def test_metadata_satisfies_those_who_ask(python: Path) -> None:
    code = """
import importlib.metadata as metadata, importlib.util
assert importlib.util.find_spec("llama_cpp") is not None
assert "llama-cpp-python" in metadata.packages_distributions()["llama_cpp"]
found = metadata.distribution("llama_cpp_python")
print(found.metadata["Name"], found.version, found.requires, sorted(map(str, found.files)))
"""
    name, version, rest = run(python, code).split(" ", 2)
    assert (name, version) == ("llama-cpp-python", VERSION)
    assert rest.startswith("['llama-cffi'] [")
    # pip is satisfied: it looks for nothing to download.
    exact = f"llama-cpp-python=={llama_cpp.__version__}"
    for requirement in ("llama-cpp-python", "llama_cpp_python>=0.3", exact):
        pip(python, "install", "--no-index", "--no-deps", requirement)


def test_the_wheel_is_the_same_every_time_and_has_one_module(tmp_path: Path) -> None:
    one, two = write_wheel(tmp_path / "a"), write_wheel(tmp_path / "b")
    assert one.read_bytes() == two.read_bytes() == write_wheel(tmp_path / "a").read_bytes()
    names = zipfile.ZipFile(one).namelist()
    assert [name for name in names if ".dist-info/" not in name] == ["llama_cpp.py"]


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stand-in", str(tmp_path)]) == 0
    (wheel,) = tmp_path.iterdir()
    assert capsys.readouterr().out == f"{wheel}\n"
    assert wheel.name == f"llama_cpp_python-{VERSION}-py3-none-any.whl"
    assert main(["stand-in", str(wheel)]) == 1
    assert "cannot write a wheel to" in capsys.readouterr().err

"""What `import llama_cffi` gives and what it must not touch."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support.children import Child

import llama_cffi
from llama_cffi import errors

ROOT = Path(__file__).parents[1]


def test_every_public_name_resolves_and_is_documented() -> None:
    for name in llama_cffi.__all__:
        value = getattr(llama_cffi, name)
        assert name == "__version__" or value.__doc__, name
    assert set(llama_cffi.__all__) <= set(dir(llama_cffi))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Lama'"):
        _ = llama_cffi.Lama


def test_import_touches_nothing_heavy(child: Child) -> None:
    done = child("""
        import json, sys
        import llama_cffi
        heavy = ["numpy", "jinja2", "cffi", "_cffi_backend", "huggingface_hub", "tqdm", "ctypes",
                 "llama_cffi.binding", "llama_cffi.libs_fetch", "llama_cffi.cdefs"]
        print(json.dumps([m for m in heavy if m in sys.modules]))
        maps = open("/proc/self/maps").read() if sys.platform == "linux" else ""
        assert "libllama" not in maps
    """)
    assert json.loads(done.stdout) == []


def test_generating_needs_no_numpy(child: Child, tiny_model: Path) -> None:
    done = child(
        """
        import sys
        from llama_cffi import Engine
        with Engine(sys.argv[1], n_ctx=64) as engine:
            print(len(engine.generate_tokens([1, 2, 3], 4, temperature=0)))
        assert "numpy" not in sys.modules
        """,
        tiny_model,
    )
    assert (done.stdout, done.stderr) == ("4\n", "")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of the package as they lie in a checkout, and what a user writes beside them."""
    root = tmp_path_factory.mktemp("checkout")
    for folder in ("llama_cffi", "cdefs", "libs_fetch"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("*.pyc"))
    # As if the wheel were installed: no editable finder knows where the folders are.
    (root / "site").mkdir()
    (root / "site" / "sitecustomize.py").write_text(
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f).lower()]\n"
    )
    lines = textwrap.dedent("""
        import llama_cffi, llama_cffi.cdefs, llama_cffi.libs_fetch, llama_cffi.llama_cpp
        from llama_cffi.doctor.child_process import run_child
        assert llama_cffi.get_library().abi.abi_class.name
        assert "dlopen" in run_child("dlopen", path="no", before=[], timeout_s=60).reports
        modules = llama_cffi, llama_cffi.cdefs, llama_cffi.libs_fetch, llama_cffi.llama_cpp
        import os
        print("from", os.path.commonpath([m.__file__ for m in modules]))
    """)
    (root / "mine.py").write_text(lines)
    (root / "test_mine.py").write_text("def test():\n" + textwrap.indent(lines, "    "))
    return root


RUN = "exec(open('mine.py').read())"
# ipykernel does this: the folder of the notebook is where the kernel starts.
KERNEL = f"import sys; del sys.path[0]; import asyncio, json; sys.path.insert(0, ''); {RUN}"
WAYS = {
    "script": ["mine.py"],
    "-c": ["-c", RUN],
    "stdin": ["-"],
    "notebook": ["-c", KERNEL],
    "interactive": ["-i", "-c", RUN],
    "pytest": ["-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "test_mine.py"],
}


@pytest.mark.parametrize("way", [*WAYS, *["REPL"] * hasattr(os, "fork")])
def test_python_started_in_a_checkout_takes_the_whole_package_from_there(
    checkout: Path, way: str
) -> None:
    path = os.pathsep.join(filter(None, (str(checkout / "site"), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "", "TERM": "dumb"}
    env["PYTHONDONTWRITEBYTECODE"] = ""  # compile the copy once
    if way == "REPL":
        output = in_terminal(RUN, "from ", cwd=checkout, env=env)
    else:
        done = subprocess.run(
            [sys.executable, *WAYS[way]],
            cwd=checkout, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            input=RUN if way == "stdin" else "",
        )  # fmt: skip
        output = done.stdout
        assert done.returncode == 0, output
    assert re.findall(r"^\.?from (.*?)\s*$", output, re.M) == [str(checkout)], output


def in_terminal(line: str, until: str, *, cwd: Path, env: dict[str, str]) -> str:
    """Type a line at the prompt of Python in a terminal; return what is shown up to *until*."""
    import pty

    main, its = pty.openpty()
    python = subprocess.Popen(
        [sys.executable, "-q"], cwd=cwd, env=env, stdin=its, stdout=its, stderr=its
    )
    os.close(its)
    shown = b""
    try:
        for sent, wanted in ((b"", b">>> "), (line.encode() + b"\n", b"\n" + until.encode())):
            os.write(main, sent)
            while wanted not in shown or not shown.endswith((b">>> ", b"\n")):
                shown += os.read(main, 4096)
    except OSError:  # it ended
        pass
    finally:
        python.kill()
        python.wait()
        os.close(main)
    return shown.decode()


def test_the_command_line_in_a_checkout_is_of_the_checkout(checkout: Path) -> None:
    (checkout / "llama_cffi" / "_version.py").write_text('__version__ = "7.8.9"\n')
    done = subprocess.run(
        [sys.executable, "-m", "llama_cffi", "--version"],
        cwd=checkout, env={**os.environ, "PYTHONSAFEPATH": ""},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "llama-cffi 7.8.9\n"


def test_versions_agree() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f'version = "{llama_cffi.__version__}"' in project
    head = re.search(r"^## \[?(\d+\.\d+\.\d+)", changelog, re.M)
    assert head is not None
    assert head[1] == llama_cffi.__version__


def test_each_error_is_also_the_builtin_that_a_caller_expects() -> None:
    expected = {
        errors.LibraryNotFoundError: FileNotFoundError,
        errors.LibraryLoadError: OSError,
        errors.FetchError: OSError,
        errors.AbiMismatchError: RuntimeError,
        errors.ModelLoadError: RuntimeError,
        errors.ValidationError: ValueError,
        errors.GenerationError: RuntimeError,
    }
    for own, builtin in expected.items():
        assert issubclass(own, (errors.LlamaError, builtin))
        assert issubclass(own, builtin)
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), errors.LlamaError)
        # The tree at the top of the module names them all.
        assert name in (errors.__doc__ or "")

"""What `import llama_cffi` gives and what it must not touch."""

from __future__ import annotations

import json
import re
import shutil
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


def test_python_started_in_a_checkout_takes_the_whole_package_from_there(
    child: Child, tiny_model: Path, tmp_path: Path
) -> None:
    for folder in ("llama_cffi", "cdefs", "libs_fetch"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.pyc"))
    done = child(
        """
        import sys
        # As if the wheel were installed: no editable finder knows where the folders are.
        sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in str(f).lower()]
        sys.path.insert(0, sys.argv[1])
        import llama_cffi.cdefs, llama_cffi.doctor, llama_cffi.libs_fetch, llama_cffi.llama_cpp
        with llama_cffi.Engine(sys.argv[2], n_ctx=64) as engine:
            assert len(engine.generate_tokens([1, 2, 3], 4, temperature=0)) == 4
        for module in (llama_cffi, llama_cffi.cdefs, llama_cffi.doctor, llama_cffi.libs_fetch):
            print(module.__file__.startswith(sys.argv[1]))
        """,
        tmp_path,
        tiny_model,
    )
    assert (done.stdout, done.stderr) == ("True\n" * 4, "")


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

"""Shared fixtures: one cache of builds, tiny models, and child processes that may die."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import platformdirs
import pytest
from support.children import Child
from support.hub_server import hub  # noqa: F401  (a fixture)
from support.tiny_gguf import write_tiny

if TYPE_CHECKING:
    from llama_cffi.binding import Context, Model, SamplerChain

_CACHE = os.environ.get("LLAMA_CFFI_TEST_CACHE") or platformdirs.user_cache_dir("llama_cffi-tests")
# Before anything loads a library: the user's own choices must not reach the tests. The kernels to
# test with are chosen for them: LLAMA_CFFI_CPU_VARIANT=haswell pytest.
_TAKEN = {"LLAMA_CFFI_TEST_CACHE", "LLAMA_CFFI_TEST_MTMD", "LLAMA_CFFI_CPU_VARIANT"}
for _name in {n for n in os.environ if n.startswith("LLAMA_CFFI_")} - _TAKEN:
    del os.environ[_name]
os.environ["LLAMA_CFFI_CACHE"] = _CACHE
if os.environ.get("LLAMA_CFFI_CPU_VARIANT"):
    # What builds of 2024 and 2025, which some tests run, have in place of newer variants.
    os.environ["LLAMA_CFFI_CPU_VARIANT"] += ",sandybridge"
# Other programs may use this machine: what children of the tests say about that is no failure.
os.environ["PYTHONWARNINGS"] = "ignore:decoding takes:UserWarning"
os.environ["LLAMA_CFFI_CHECK"] = "rules"  # hundreds of tiny models would each be tried in a child
# A background job ignores Ctrl-C, and so would every process that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test depends on how fast the machine is.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

collect_ignore = [] if hasattr(os, "fork") else ["binding/test_fork.py"]
if "LLAMA_CFFI_TEST_MTMD" in os.environ:  # see test_multimodal.py
    os.environ["LLAMA_CFFI_LIB"] = os.environ["LLAMA_CFFI_TEST_MTMD"]
else:
    collect_ignore.append("multimodal")
if sys.platform != "linux":  # elsewhere the system does not enforce limits of memory
    collect_ignore.append("binding/test_memory_limits.py")
    # The wheels with libwhisper are laid out otherwise there.
    collect_ignore += ["binding/whisper", "whisper"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Nothing is skipped in CI: there a skip is a failure."""
    report = yield
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session", autouse=True)
def neutral_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run outside the checkout: up to Python 3.10 `python -c` imports from where it is."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("cwd"))
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def shared_cache() -> Path:
    """The cache that all tests share; builds are fetched into it once."""
    return Path(_CACHE)


@pytest.fixture(scope="session")
def child() -> Child:
    """Run Python code in a child process; fail when a signal killed it."""

    def run(
        code: str, *args: object, timeout: float = 120, **env: str
    ) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(code), *map(str, args)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **env},
        )
        assert result.returncode >= 0, f"killed by signal {-result.returncode}:\n{result.stderr}"
        # On a new machine the first child fetches the build.
        result.stderr = re.sub(r"(?m)^fetching .* MB\n", "", result.stderr)
        return result

    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer llama with 259 tokens and a ChatML template."""
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="session")
def demo_f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with 32-bit weights; see `EXACT`."""
    from llama_cffi import demo, quantize

    target = tmp_path_factory.mktemp("models") / "demo.gguf"
    return quantize(demo.model_path(), target, "F32", allow_requantize=True)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[Model]:
    """The tiny model, open."""
    from llama_cffi.binding import Model

    with Model(tiny_model) as model:
        yield model


@pytest.fixture(scope="module")
def context(model: Model) -> Iterator[Context]:
    """A context of it whose last decode has logits."""
    from llama_cffi.binding import Batch, Context

    with Context(model, n_ctx=256, n_threads=1) as context:
        batch = Batch(3)
        batch.fill([1, 2, 3], 0)
        context.decode(batch)
        yield context


@pytest.fixture
def chain(model: Model) -> Iterator[SamplerChain]:
    """An empty chain for it."""
    from llama_cffi.binding import SamplerChain

    with SamplerChain(model) as chain:
        yield chain


@pytest.fixture(scope="session")
def foreign_library(shared_cache: Path) -> Path:
    """The shared object of the PyPI wheel `xllamacpp`: llama.cpp built by somebody else."""
    from support.foreign import fetch_foreign

    return fetch_foreign("xllamacpp", shared_cache)


@pytest.fixture(scope="session")
def libwhisper(shared_cache: Path) -> Path:
    """The libwhisper in the wheel of pywhispercpp: whisper.cpp v1.8.5."""
    from support.whisper_libraries import fetch_libwhisper

    return fetch_libwhisper(shared_cache)

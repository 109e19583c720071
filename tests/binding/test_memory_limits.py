"""A limit on memory or threads gives errors; C++ would end the process with std::bad_alloc."""

from __future__ import annotations

import re
import resource
import threading
from pathlib import Path

import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.sparse_gguf import write_sparse

from llama_cffi.binding import memory_limits
from llama_cffi.errors import LlamaError, OutOfMemoryError

TRY = """
    import contextlib, resource, sys
    import numpy
    from llama_cffi.binding import Batch, Context, Model, SamplerChain, get_library
    from llama_cffi.errors import LlamaError
    get_library()

    @contextlib.contextmanager
    def limit(mib):
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * 4096
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (now + int(mib * 2**20), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))

    def outcomes(use, sizes):
        found = []
        for mib in sizes:
            try:
                with limit(mib):
                    use()
                found.append("worked")
            except (MemoryError, LlamaError) as error:
                found.append(type(error).__name__)
        return found

    sizes = (0, 0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 90, 128, 200)
    text = "hello world " * 200_000
"""


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
@pytest.mark.parametrize("use", ["load", "context", "tokenize", "generate"])
def test_too_little_memory_is_an_error(
    child: Child, tiny_model: Path, use: str, build: str
) -> None:
    code = """
    path = sys.argv[1]
    if sys.argv[2] == "load":
        found = outcomes(lambda: Model(path), sizes)
    else:
        with limit(500):  # a limit that is there from the beginning
            model = Model(path)
            context = Context(model, n_ctx=256, n_threads=2)
            chain = SamplerChain(model).add_dist(1)
            batch = Batch(64)
            batch.fill([5] * 64, 0)
            def generate():
                context.memory.clear()
                context.decode(batch)
                chain.sample(context)
            uses = {"context": lambda: Context(model, n_ctx=256, n_threads=2).close(),
                    "tokenize": lambda: model.vocab.tokenize(text),
                    "generate": generate}
        found = outcomes(uses[sys.argv[2]], sizes)
    print(*found)
    """
    result = child(TRY + code, tiny_model, use, LLAMA_CFFI_BUILD=build)
    found = result.stdout.split()
    assert (result.returncode, len(found)) == (0, 17), result.stderr
    assert found[0] != "worked" == found[-1], found


def test_a_context_that_is_refused_says_how_much_is_left(child: Child, tiny_model: Path) -> None:
    code = """
    model = Model(sys.argv[1])
    with limit(40):
        try:
            Context(model, n_ctx=256)
        except MemoryError as error:
            print(error)
    """
    result = child(TRY + code, tiny_model)
    assert "n_ctx=256 takes up to" in result.stdout
    assert "leaves 3" in result.stdout or "leaves 4" in result.stdout
    assert "ulimit -v" in result.stdout


def test_threads_that_do_not_start_are_an_error(child: Child, tiny_model: Path) -> None:
    code = """
    from llama_cffi.binding.context.threadpool import ThreadPool
    with limit(20):
        try:
            ThreadPool(get_library(), 64)
        except LlamaError as error:
            print(error)
    ThreadPool(get_library(), 64)
    """
    result = child(TRY + code, tiny_model)
    assert "of 63 threads" in result.stdout, result.stderr


def test_trying_leaves_no_threads() -> None:
    before = {*threading.enumerate()}
    memory_limits.check_threads(8)
    assert {*threading.enumerate()} <= before


def test_only_a_failed_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    start, left = threading.Thread.start, [3]

    def fail(thread: threading.Thread) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(LlamaError, match="can start 3 of 5 threads"):
        memory_limits.check_threads(5)


def test_without_a_limit_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert not memory_limits.is_limited()
    assert memory_limits.bytes_left() is None
    memory_limits.check_bytes(2**62, "a test")


def test_the_data_segment_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {resource.RLIMIT_DATA: 2**20}
    monkeypatch.setattr(
        resource, "getrlimit", lambda kind: (limits.get(kind, resource.RLIM_INFINITY),) * 2
    )
    assert memory_limits.bytes_left() == 0
    with pytest.raises(OutOfMemoryError, match=r"a test takes up to 3 MiB.* leaves 0 MiB"):
        memory_limits.check_bytes(3 * 2**20, "a test")


def test_the_command_line_refuses_what_is_too_large_for_its_limit(
    child: Child, tmp_path: Path
) -> None:
    """The address space may grow by 512 MiB, and the cache alone takes 768."""
    code = """
    from llama_cffi.cli import main
    with limit(512):
        code = main(["generate", "-m", sys.argv[1], "-c", "65536", "-n", "1", "-t", "1", "hi"])
    sys.exit(code)
    """
    done = child(TRY + code, write_sparse(tmp_path / "model.gguf"))
    assert (done.returncode, done.stdout) == (1, "")
    error = done.stderr.splitlines()[-1]
    assert re.search(r"^error: .*takes up to \d+ MiB, and the limit of this process leaves", error)

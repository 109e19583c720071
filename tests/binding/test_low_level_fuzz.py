"""Random use of the API, mostly the low level, never crashes, hangs or prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.odd_models import write_recurrent

SEEDS, STEPS = (1, 2), 400
PROGRAMS = Path(__file__).parents[2] / "tools" / "fuzz" / "programs.py"


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder where the first program writes the models."""
    return str(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_any_order(build: str, seed: int, child: Child, temporary: str, tmp_path: Path) -> None:
    log = tmp_path / "steps"
    code = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    env = {"LLAMA_CFFI_BUILD": build, "TMPDIR": temporary}
    try:
        done = child(code, PROGRAMS, seed, STEPS, log, timeout=60, **env)
    except BaseException as e:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
        raise AssertionError(f"{e}\nseed {seed}, the last steps:\n{last}") from None
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.count("\n") == 1  # the counts of errors, and nothing from C
    assert "ValidationError" in done.stdout
    assert "exit" in log.read_text()


def test_recurrent_after_an_abort(child: Child, tmp_path: Path) -> None:
    """b4600 corrupted its states when aborted, and crashed at the next decode."""
    code = """
        import sys
        from llama_cffi.binding import Batch, Context, Model
        from llama_cffi.errors import DecodeAbortedError
        context, batch = Context(Model(sys.argv[1]), n_ctx=64, n_threads=1, n_seq_max=2), Batch(1)
        def decode(pos, seq_id):
            batch.fill([1], pos, seq_id)
            context.decode(batch)
        decode(0, 0), decode(0, 1)
        context.abort_flag.set()
        try:
            decode(1, 0)
        except DecodeAbortedError as e:
            print(e)
        context.abort_flag.clear()
        decode(0, 0), decode(0, 1)
    """
    done = child(code, write_recurrent(tmp_path / "mamba.gguf"), LLAMA_CFFI_BUILD="npm:3.5.0")
    assert (done.stderr, done.returncode) == ("", 0)
    assert "[0, 1] are empty now" in done.stdout

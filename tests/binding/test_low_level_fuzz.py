"""Random use of the low-level API never crashes, hangs or prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.loras import make_pairs, write_lora
from support.odd_models import write_recurrent, write_windowed
from support.tiny_encoders import write_bert, write_t5

SEEDS, STEPS = (1, 2), 400
MACHINE = Path(__file__).parents[1] / "support" / "low_level_machine.py"


@pytest.fixture(scope="module")
def files(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("fuzz")
    lora = write_lora(folder / "lora.gguf", make_pairs())
    bert, _ = write_bert(folder / "bert.gguf", head=True)
    t5, _ = write_t5(folder / "t5.gguf")
    odd = write_windowed(folder / "swa.gguf"), write_recurrent(folder / "mamba.gguf"), bert, t5
    return [lora, tiny_model, tiny_model, *odd]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_any_order(build: str, seed: int, child: Child, files: list[Path], tmp_path: Path) -> None:
    log = tmp_path / "steps"
    code = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    try:
        done = child(code, MACHINE, seed, STEPS, log, *files, timeout=60, LLAMA_CFFI_BUILD=build)
    except BaseException as e:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
        raise AssertionError(f"{e}\nseed {seed}, the last steps:\n{last}") from None
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.count("\n") == 1  # the counts of errors, and nothing from C
    assert "ValidationError" in done.stdout
    assert "exit" in log.read_text()


def test_recurrent_after_an_abort(child: Child, files: list[Path]) -> None:
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
    done = child(code, files[4], LLAMA_CFFI_BUILD="npm:3.5.0")
    assert (done.stderr, done.returncode) == ("", 0)
    assert "[0, 1] are empty now" in done.stdout

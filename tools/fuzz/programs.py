"""Random programs over the API, low and high level, on tiny models of many architectures.

    python tools/fuzz/programs.py SEED STEPS LOG     take the steps of one program

Every step is written to LOG before it is taken, so that the last line tells what killed the
process. `LLAMA_CFFI_LIB` or `LLAMA_CFFI_BUILD` selects the build.
"""

from __future__ import annotations

import gc
import random
import shutil
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from support.high_level_steps import HighLevelSteps
from support.low_level_machine import Machine

STEPS = 400
TESTS = Path(__file__).parents[2] / "tests"
WRITERS = ("architectures", "loras", "odd_models", "tiny_encoders", "tiny_gguf")


def model_files() -> dict[str, str]:
    """Return name -> GGUF file of the tiny models and of `lora`, written once for all processes."""
    crc = 0
    for name in WRITERS:
        crc = zlib.crc32((TESTS / "support" / f"{name}.py").read_bytes(), crc)
    folder = Path(tempfile.gettempdir()) / f"llama_cffi-fuzz-{crc:08x}"
    if not folder.is_dir():
        from support.architectures import WRITE
        from support.loras import make_pairs, write_lora

        new = Path(tempfile.mkdtemp(dir=folder.parent))
        for name, write in WRITE.items():
            write(new / f"{name}.gguf")
        write_lora(new / "lora.gguf", make_pairs())
        try:
            new.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(new)
    return {path.stem: str(path) for path in sorted(folder.iterdir())}


def program(seed: int, steps: int) -> str:
    """Return a line about a program, with the command that runs it and logs its steps."""
    return f"{steps} steps: python tools/fuzz/programs.py {seed} {steps} steps.log"


def run(seed: int, steps: int) -> str:
    """Run a program; return how it ended, which is always well, or not at all."""
    take_steps(seed, steps, lambda line: None)
    return "took its steps"


def take_steps(seed: int, steps: int, log: Callable[[str], object]) -> dict[str, int]:
    """Take the steps of a program; return how many errors of which type the API raised.

    Args:
        seed: Chooses everything.
        steps: How many to take.
        log: Called with a description before each step.
    """
    warnings.simplefilter("ignore")  # about contexts that are longer than the models'
    rng, files = random.Random(seed), model_files()
    lora = files.pop("lora")
    llama = files["llama"]  # the only one that the adapter fits
    names = rng.sample(sorted(files), 4)
    log(f"models {names}")
    machine = Machine(rng, log, lora, [llama, *(files[name] for name in names)])
    high_level = HighLevelSteps(machine)
    machine.add_steps(high_level)
    for _ in range(steps):
        machine.step()
    log("end")
    machine.close()
    del high_level
    gc.collect()
    return dict(sorted(machine.errors.items()))


def main() -> None:
    """Run the program that the command line names."""
    seed, steps, path = sys.argv[1:]
    with Path(path).open("w", encoding="utf-8", errors="replace") as file:

        def write(line: str) -> None:
            file.write(line + "\n")
            file.flush()

        print(take_steps(int(seed), int(steps), write))
        write("exit")


if __name__ == "__main__":
    main()

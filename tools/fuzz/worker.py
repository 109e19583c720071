"""Run cases in this process, which may die of them; the runner starts it and reads along.

    python -m tools.fuzz.worker MODULE FOLDER FD MEMORY_BYTES

Jobs arrive on stdin, as JSON lines [seed, first, stop, size]: run the cases first to stop - 1 of
the *size* cases that belong to the seed. Before each case a line is written to the descriptor FD,
so that the runner knows which one a death or a hang belongs to.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import resource
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

TESTS = Path(__file__).parents[2] / "tests"


def load(path: Path) -> ModuleType:
    """Import the module of a kind of case: one of this package, or from another file."""
    if path.parent == Path(__file__).parent:
        return importlib.import_module(f"tools.fuzz.{path.stem}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def listed(
    module: ModuleType, seed: int, size: int, folder: Path
) -> Iterator[tuple[str, Path | None, Callable[[], str]]]:
    """Yield what each case is, its file if it has one, and the call that runs it."""
    if hasattr(module, "cases"):
        for what, path in module.cases(seed, size, folder):
            yield what, path, partial(module.run, path)
        return
    for one in range(seed * size, (seed + 1) * size):
        yield module.program(one, module.STEPS), None, partial(module.run, one, module.STEPS)


def main() -> None:
    """Serve jobs until stdin ends."""
    path, folder, descriptor, memory = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print
    sys.path.insert(0, str(TESTS))  # for tests/support
    module = load(Path(path))
    with open(int(descriptor), "w", buffering=1) as out:

        def tell(*message: object) -> None:
            out.write(json.dumps(message) + "\n")

        for line in sys.stdin:
            seed, first, stop, size = json.loads(line)
            for index, (what, file, run) in enumerate(listed(module, seed, size, Path(folder))):
                if index >= stop:
                    break
                if index >= first:
                    tell("case", index, what, str(file or ""))
                    try:
                        tell("end", run())
                    except Exception:
                        tell("error", traceback.format_exc())
                        continue  # the runner may want the file
                if file is not None:
                    file.unlink(missing_ok=True)
            tell("done")


if __name__ == "__main__":
    main()

"""Rules over the header: what C would die of is refused, what converters write is not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType
from support.architectures import WRITE
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.wrong_models import WRONG, converted, original, write_wrong

# tools/ is not part of the package. Appended, so that the installed package precedes it.
sys.path.append(str(Path(__file__).resolve().parents[3]))

from tools.fuzz import model_files

BUILDS = pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
ROOT = Path(__file__).parents[3]

# Prints the answer to each file of a list in JSON.
RUN = """
import json, sys
from pathlib import Path
sys.path += [sys.argv[1]]
from tools.fuzz.model_files import run
print(json.dumps([run(Path(path)) for path in json.load(open(sys.argv[2]))]))
"""


def answers(child: Child, build: str, files: list[Path]) -> list[str]:
    (listed := files[0].with_name("files.json")).write_text(json.dumps([str(f) for f in files]))
    result = child(RUN, ROOT, listed, LLAMA_CFFI_BUILD=build, LLAMA_CFFI_CHECK="rules")
    assert result.returncode == 0, result.stderr
    found: list[str] = json.loads(result.stdout)
    return found


@BUILDS
def test_what_would_kill_is_refused_with_its_reason(
    child: Child, tmp_path: Path, build: str
) -> None:
    files = write_wrong(tmp_path)
    for name, answer in zip(files, answers(child, build, list(files.values())), strict=True):
        assert answer.startswith("ModelLoadError: "), (name, answer)
        assert WRONG[name][2] in answer, (name, answer)


@BUILDS
def test_random_changes_kill_nothing(child: Child, tmp_path: Path, build: str) -> None:
    cases = dict(model_files.cases(4, 64, tmp_path))
    kinds = [answer.split(":")[0] for answer in answers(child, build, list(cases.values()))]
    assert kinds.count("ModelLoadError") > 30
    assert kinds.count("loaded") > 3


@BUILDS
def test_what_converters_write_passes_the_rules(child: Child, tmp_path: Path, build: str) -> None:
    files = []
    for architecture in WRITE:
        files.append(tmp_path / f"{architecture}-f32.gguf")
        files[-1].write_bytes(original(architecture))
        for kind in (GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0):
            files.append(tmp_path / f"{architecture}-{kind.name}.gguf")
            files[-1].write_bytes(converted(architecture, kind))
    refused = [a for a in answers(child, build, files) if "cannot be loaded by build" in a]
    # F16 weights of Mamba are refused on CPUs with AMX, where some builds abort.
    assert not [reason for reason in refused if "AMX" not in reason]
    assert len(refused) <= 1


def test_the_same_seed_gives_the_same_files() -> None:
    for architecture in ("qwen3", "lora"):
        once, again = (model_files.mutate(7, architecture) for _ in range(2))
        assert once == again
        assert model_files.mutate(8, architecture) != once

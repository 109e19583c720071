"""Which devices hold which tensors: n_cpu_moe and override_tensors."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from support.builds import OLD
from support.children import Child
from support.odd_models import write_nextn

from llama_cffi import Engine, Llama, ModelLoadError
from llama_cffi.binding import Model, get_library
from llama_cffi.binding.model.placement import overrides_for_c
from llama_cffi.errors import ValidationError


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers, the second with experts."""
    return write_nextn(tmp_path_factory.mktemp("moe") / "moe.gguf")


def overridden(caplog: pytest.LogCaptureFixture, path: Path, **options: Any) -> set[str]:
    """Return the tensors that C says it placed by override, which it puts on the CPU here."""
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "llama_cffi.native"):
        Model(path, **options).close()
    said = [r.getMessage() for r in caplog.records if "buffer type overrid" in r.getMessage()]
    assert all(line.rstrip().endswith(" CPU") for line in said)
    return {match[1] for line in said if (match := re.search(r"tensor (\S+)", line))}


def experts(layer: int) -> set[str]:
    return {f"blk.{layer}.ffn_{part}_exps.weight" for part in ("gate", "up", "down")}


def test_c_gets_exactly_the_tensors_that_were_named(
    caplog: pytest.LogCaptureFixture, moe: Path
) -> None:
    assert overridden(caplog, moe) == set()
    assert overridden(caplog, moe, n_cpu_moe=1) == set()  # the first layer has no experts
    assert overridden(caplog, moe, n_cpu_moe=2) == experts(1)
    assert overridden(caplog, moe, override_tensors={r"blk\.1\.ffn_.*_exps": "CPU"}) == experts(1)
    assert overridden(caplog, moe, override_tensors={"blk.1.ffn_up_exps": "CPU"}) == {
        "blk.1.ffn_up_exps.weight"
    }


def test_the_answers_do_not_depend_on_the_placement(moe: Path) -> None:
    def tokens(**options: Any) -> list[int]:
        with Model(moe, **options) as model, Engine(model, n_ctx=64, n_threads=1) as engine:
            return engine.generate_tokens([1, 2, 3], 8, temperature=0)

    expected = tokens()
    assert tokens(n_cpu_moe=99) == expected
    assert tokens(override_tensors={"exps": "CPU"}) == expected
    with Llama(moe, n_ctx=64, n_threads=1, n_cpu_moe=2, override_tensors={"ffn": "CPU"}) as llm:
        answer = llm.create_completion([1, 2, 3], max_tokens=8, temperature=0)
        assert answer["usage"]["completion_tokens"] == len(expected)


def test_a_model_without_experts_takes_n_cpu_moe(tiny_model: Path) -> None:
    with Model(tiny_model, n_cpu_moe=4) as model:
        assert model.n_layer == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_cpu_moe": -1}, "n_cpu_moe=-1"),
        ({"n_cpu_moe": 1.5}, "n_cpu_moe"),
        ({"n_cpu_moe": 2**31}, "n_cpu_moe"),
        ({"override_tensors": ["exps=CPU"]}, "must map patterns to devices"),
        ({"override_tensors": {"exps": "CUDA7"}}, "'CUDA7' is not one of: CPU"),
        ({"override_tensors": {"exps": 0}}, "is not one of"),
        ({"override_tensors": {"nothing_here": "CPU"}}, "matches none of the"),
        ({"override_tensors": {"(": "CPU"}}, "not a regular expression"),
        ({"override_tensors": {"": "CPU"}}, "1 to 256 characters"),
        ({"override_tensors": {"e" * 300: "CPU"}}, "1 to 256 characters"),
        ({"override_tensors": {b"exps": "CPU"}}, "1 to 256 characters"),
        ({"override_tensors": {"exps|é": "CPU"}}, "must be ASCII"),
        ({"override_tensors": {"exps|\0": "CPU"}}, "without NUL"),
    ],
)
def test_what_c_would_ignore_or_not_survive_is_refused(
    moe: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        Model(moe, **options)


def test_a_pattern_that_only_python_knows_is_an_error_of_the_load(moe: Path) -> None:
    with pytest.raises(ModelLoadError):
        Model(moe, override_tensors={"(?P<name>exps)": "CPU"})


def test_the_cpu_may_be_named_beside_chosen_devices(moe: Path) -> None:
    library = get_library()
    tensors = Model(moe, vocab_only=True).gguf.tensors
    assert overrides_for_c(library, tensors, {"exps": "CPU"}, 0, devices=[]) is not None
    assert overrides_for_c(library, tensors, None, 0, devices=[]) is None
    assert overrides_for_c(library, tensors, {}, 0, devices=None) is None


def test_a_build_without_overrides_says_so(child: Child, tiny_model: Path) -> None:
    code = """
        import sys
        from llama_cffi import Model, ValidationError
        Model(sys.argv[1], n_cpu_moe=0, override_tensors={}).close()
        for options in ({"n_cpu_moe": 1}, {"override_tensors": {"ffn": "CPU"}}):
            try:
                Model(sys.argv[1], **options)
            except ValidationError as e:
                print(e)
    """
    result = child(code, tiny_model, LLAMA_CFFI_BUILD=OLD)
    assert (result.returncode, result.stderr) == (0, "")
    said = result.stdout.splitlines()
    assert len(said) == 2
    assert all(
        "cannot place single tensors" in line and "LLAMA_CFFI_BUILD" in line for line in said
    )

from __future__ import annotations

from typing import Any

import pytest

from llama_cffi import Engine, InferenceEngine, Llama, LlamaConfig, SamplingParams
from llama_cffi.api.running import openai_limit
from llama_cffi.demo import model_path
from llama_cffi.errors import UnknownOptionError, ValidationError
from llama_cffi.generation.aliases import ALIASES, canonical
from llama_cffi.generation.options import GenerationOptions, parse_options

RECOMMENDED = {"temperature": 0.6, "top_k": 20}


def test_aliases_stand_for_options() -> None:
    known = {*GenerationOptions.__annotations__, "max_tokens"}
    assert set(ALIASES.values()) <= known
    assert not ALIASES.keys() & known


def test_canonical_renames_and_drops_none() -> None:
    given = {"n_predict": 3, "reset_kv": True, "penalty_freq": 0.5, "seed": None, "stop": "x"}
    assert canonical(given) == {
        "max_tokens": 3, "reset_kv_cache": True, "frequency_penalty": 0.5, "stop": "x",
    }  # fmt: skip


@pytest.mark.parametrize("options", [{"temp": 1.0, "temperature": 1.0}, {"n_predict": 1}])
def test_an_option_given_twice(options: dict[str, Any]) -> None:
    options = {"max_tokens": 2, **options}
    with pytest.raises(ValidationError, match="are the same option"):
        canonical(options)


def test_single_options_win_over_sampling() -> None:
    whole = SamplingParams(temperature=0.3, top_k=7)
    params = parse_options(4, {"sampling": whole, "temperature": 0.9}, 64).params
    assert (params.sampling.temperature, params.sampling.top_k) == (0.9, 7)
    assert parse_options(4, {"sampling": whole}, 64).params.sampling is whole


def test_what_the_model_recommends_is_taken_when_asked_for() -> None:
    def parse(**options: Any) -> SamplingParams:
        return parse_options(4, options, 64, recommended=lambda: RECOMMENDED).params.sampling

    assert parse().temperature == SamplingParams().temperature
    assert parse(sampling="model") == SamplingParams(temperature=0.6, top_k=20)
    assert parse(sampling="model", top_k=3) == SamplingParams(temperature=0.6, top_k=3)
    with pytest.raises(ValidationError, match="'model'"):
        parse(sampling="best")


def test_no_limit_is_the_context() -> None:
    assert parse_options(None, {}, 64).params.max_tokens == 64
    assert openai_limit(-1) is None
    for max_tokens in (0, -1, -2):
        with pytest.raises(ValidationError, match=f"max_tokens={max_tokens}"):
            parse_options(max_tokens, {}, 64)


@pytest.mark.parametrize(
    ("option", "nearest"),
    [("temprature", "temperature"), ("max_token", "max_tokens"), ("top_n_sigmas", "top_n_sigma")],
)
def test_an_unknown_option_names_the_nearest(option: str, nearest: str) -> None:
    with Engine(model_path(), n_ctx=128, n_threads=1) as engine:
        faces: list[Any] = [
            lambda **o: engine.generate("x", **o),
            lambda **o: engine.generate_chat([{"role": "user", "content": "x"}], **o),
            lambda **o: engine.generate_tokens([1], **o),
        ]
        with (
            InferenceEngine(engine.model, 2, 128, n_threads=1) as shared,
            Llama(engine.model, n_ctx=128, n_threads=1) as llm,
        ):
            faces += [
                lambda **o: shared.submit([1], **o),
                lambda **o: llm.generate("x", **o),
                lambda **o: llm.create_completion("x", **o),
                lambda **o: llm.create_chat_completion([{"role": "user", "content": "x"}], **o),
            ]
            for face in faces:
                with pytest.raises(UnknownOptionError, match=f"did you mean '{nearest}'") as error:
                    face(**{option: 1})
                assert isinstance(error.value, TypeError)


def test_unknown_options_of_constructors() -> None:
    with pytest.raises(TypeError, match="did you mean 'n_gpu_layers'"):
        Llama(model_path(), n_gpu_layer=1)
    with pytest.raises(TypeError, match="did you mean 'temperature'"):
        SamplingParams(temperatur=1)
    assert LlamaConfig(n_parallel=2).n_parallel == 2


def test_old_names_of_sampling_params() -> None:
    params = SamplingParams(penalty_freq=0.5, mirostat=2)  # type: ignore[call-arg]
    assert (params.frequency_penalty, params.mirostat_mode) == (0.5, 2)
    assert params.penalty_freq == 0.5  # type: ignore[attr-defined]

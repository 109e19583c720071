"""The options that commands share are the fields of `LlamaConfig` and `SamplingParams`."""

from __future__ import annotations

import dataclasses

import pytest
from support.command_line import Runner

from llama_cffi import SamplingParams
from llama_cffi.api.config import LlamaConfig
from llama_cffi.cli import _parser, options
from llama_cffi.cli.engine import opened
from llama_cffi.cli.parser import Parser, parse

# Fields of LlamaConfig that no command line sets, or another option does.
UNSET = {
    "model_path", "n_parallel", "n_seq_max", "offload_kqv", "embeddings", "pooling", "seed",
    "use_mmap", "use_mlock", "check_tensors", "check", "override_tensors", "kv_overrides",
    "swa_full", "op_offload", "attention", "yarn_ext_factor", "yarn_attn_factor",
    "yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx", "no_perf", "context_policy", "draft",
    "cache_ram", "cache_dir", "cache_disk", "lora_scale", "adapters", "logits_all", "verbose",
    "n_kv_tokens", "check_memory", "progress",
}  # fmt: skip
# Of SamplingParams: code, or declared by a command or with other options.
OTHERS = {
    "temperature", "dry_sequence_breakers", "logit_bias", "logits_processor", "ignore_eos",
    "grammar", "grammar_root", "grammar_triggers", "structured", "structured_after",
}  # fmt: skip


def parsed(*argv: str) -> dict[str, object]:
    parser = Parser()
    options.add_model(parser)
    options.add_running(parser)
    options.add_sampling(parser)
    args = parse(parser, argv)
    return {**options.running_options(args), **options.sampling_options(args)}


def test_every_field_is_an_option_or_named_as_none() -> None:
    for table, owner, others in (
        (options.RUNNING, LlamaConfig, UNSET),
        (options.SAMPLING, SamplingParams, OTHERS),
    ):
        declared = {option.field for option in table}
        assert len(declared) == len(table)
        assert declared | others == {field.name for field in dataclasses.fields(owner)}
        assert not declared & others


def test_only_given_options_are_set() -> None:
    assert parsed("-m", "x") == {}
    assert parsed() == {"n_threads": 1}  # of the demo model
    found = parsed(
        "-hf", "a/b", "-c", "8", "-tb", "2", "-ngl", "all", "-fa", "OFF", "-ts", "3,1", "--no-mmap",
        "--mlock", "--temp", "0.5", "--mirostat", "2", "--logit-bias", "5-inf", "--logit-bias",
        "6+1.5", "--dry-sequence-breaker", "a", "--ignore-eos", "--samplers", "top_k;temp",
    )  # fmt: skip
    assert found == {
        "n_ctx": 8, "n_threads_batch": 2, "n_gpu_layers": -1, "flash_attn": False,
        "tensor_split": [3, 1], "use_mmap": False, "use_mlock": True, "temperature": 0.5,
        "mirostat_mode": 2, "logit_bias": {5: float("-inf"), 6: 1.5},
        "dry_sequence_breakers": ["a"], "ignore_eos": True, "samplers": "top_k;temp",
    }  # fmt: skip
    sampling = {k: v for k, v in found.items() if k in SamplingParams.__dataclass_fields__}
    SamplingParams(**sampling)
    LlamaConfig(**{k: v for k, v in found.items() if k not in sampling})


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-ngl", "most"], "must be an integer or all or auto, got 'most'"),
        (["-ngl", "-2"], "must be at least -1, got -2"),
        (["-c", "-1"], "must be at least 0, got -1"),
        (["-c", "all"], "must be an integer or auto, got 'all'"),
        (["-fa", "yes"], "must be one of on, off, auto, got 'yes'"),
        (["-ts", "a"], "must be numbers with commas, got 'a'"),
        (["--logit-bias", "5"], "must be a token id, + or -, and a number, got '5'"),
        (["--top-kk", "1"], "did you mean --top-k?"),
    ],
)
def test_wrong_values_are_usage_errors(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as e:
        parsed(*argv)
    assert e.value.code == 2
    assert message in capsys.readouterr().err


def test_the_context_and_the_layers_may_be_chosen_by_the_memory() -> None:
    found = parsed("-m", "x", "-c", "AUTO", "-ngl", "auto")
    assert found == {"n_ctx": "auto", "n_gpu_layers": "auto"}
    LlamaConfig(**found)  # type: ignore[arg-type]


@pytest.mark.parametrize("command", ["generate", "chat", "decide", "serve", "plan"])
def test_every_command_that_generates_has_the_same_options(command: str) -> None:
    args = parse(_parser([command]), [command, "-c", "auto", "-ngl", "auto", "-fa", "off"])
    given = options.given_options(args)
    assert given == {"n_ctx": "auto", "n_gpu_layers": "auto", "flash_attn": False}


def test_auto_is_what_fits(run: Runner) -> None:
    sizes = []
    for size in ("auto", "0", "256"):
        args = parse(_parser(["generate"]), ["generate", "-c", size, "-ngl", "auto", "hi"])
        with opened(args) as engine:
            sizes.append(engine.n_ctx)
    assert sizes == [1024, 1024, 256]
    assert run("embed", "-ngl", "auto", "hi").code == 0


def test_help_wraps_descriptions_and_keeps_examples(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = run("inspect", "--help").out.splitlines()
    assert "  llama-cffi inspect model.gguf --key tokenizer.chat_template" in lines
    described = lines[lines.index("") + 1 :]
    assert max(map(len, described[: described.index("")])) <= 60

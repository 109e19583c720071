"""Families of models, identified by the names and metadata of real files."""

from __future__ import annotations

import re

import pytest

from llama_cffi.chat.families import identify
from llama_cffi.chat.family_table import FAMILY_TABLE
from llama_cffi.chat.formats import FORMATS
from llama_cffi.errors import ValidationError

HYBRID = (
    "{%- if tools %}<tool_call>{% endif %}{%- if add_generation_prompt %}{{- 'assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
PLAIN = "{%- if tools %}<tool_call>{% endif %}{%- if add_generation_prompt %}{{ 'a' }}{% endif %}"
FORCED = "{{ m }}{%- if add_generation_prompt %}{{- 'assistant\\n<think>\\n' }}{%- endif %}"


def named(name: str = "", architecture: str = "", **more: str) -> dict[str, str]:
    found = {"general.name": name, "general.architecture": architecture}
    found.update({f"general.{key}": value for key, value in more.items()})
    return {key: value for key, value in found.items() if value}


@pytest.mark.parametrize(
    ("name", "family", "version", "thinking"),
    [
        ("Qwen3-0.6B-Q8_0.gguf", "qwen", "3", "default"),
        ("Qwen_Qwen3-30B-A3B-Q4_K_M.gguf", "qwen", "3", "default"),
        ("Qwen3-4B-Instruct-2507-Q4_K_M.gguf", "qwen", "3-instruct", "never"),
        ("Qwen3-30B-A3B-Thinking-2507-UD-Q4_K_XL.gguf", "qwen", "3-thinking", "always"),
        ("Qwen3-Next-80B-A3B-Instruct-Q4_K_M.gguf", "qwen", "3-instruct", "never"),
        ("Qwen3-VL-8B-Thinking-F16.gguf", "qwen", "3-thinking", "always"),
        ("Qwen3-Coder-30B-A3B-Instruct-Q6_K.gguf", "qwen", "3-coder", "never"),
        ("Qwen3.5-4B-Q4_K_M.gguf", "qwen", "3.5", "default"),
        ("Qwen3.6-27B-MTP.gguf", "qwen", "3.5", "default"),
        ("QwQ-32B-Q4_K_M.gguf", "qwen", "qwq", "always"),
        ("qwen2.5-7b-instruct-q4_k_m.gguf", "qwen", "2.5", "never"),
        ("qwen2-0_5b-instruct-fp16.gguf", "qwen", "2.5", "never"),
        ("gemma-2-9b-it-Q4_K_M.gguf", "gemma", "2", "never"),
        ("gemma-2b-it.gguf", "gemma", "", "never"),
        ("gemma-3-27b-it-q4_0.gguf", "gemma", "3", "never"),
        ("gemma-3n-E4B-it-Q4_K_M.gguf", "gemma", "3", "never"),
        ("gemma-4-E2B-it-UD-Q4_K_XL.gguf", "gemma", "4", "request"),
        ("functiongemma-270m-it-BF16.gguf", "gemma", "function", "never"),
        ("Mistral-7B-Instruct-v0.3.Q4_K_M.gguf", "mistral", "", "never"),
        ("Mixtral-8x7B-Instruct-v0.1.gguf", "mistral", "", "never"),
        ("Mistral-Nemo-Instruct-2407-Q4_K_M.gguf", "mistral", "nemo", "never"),
        ("Mistral-Small-3.2-24B-Instruct-2506-Q4_K_M.gguf", "mistral", "small", "never"),
        ("Devstral-Small-2507-Q4_K_M.gguf", "mistral", "small", "never"),
        ("Ministral-8B-Instruct-2410-Q4_K_M.gguf", "mistral", "ministral", "never"),
        ("Ministral-3b-instruct.gguf", "mistral", "ministral", "never"),
        ("Ministral-3-8B-Instruct-2512-Q4_K_M.gguf", "mistral", "ministral-3", "never"),
        ("Ministral-3-14B-Reasoning-2512.gguf", "mistral", "ministral-3-reasoning", "always"),
        ("Magistral-Small-2509-Q4_K_M.gguf", "mistral", "magistral", "always"),
        ("gpt-oss-20b-mxfp4.gguf", "gpt-oss", "", "always"),
        ("Phi-3.5-mini-instruct-Q4_K_M.gguf", "phi", "3", "never"),
        ("Phi-4-mini-instruct-Q4_K_M.gguf", "phi", "4-mini", "never"),
        ("phi-4-Q4_0.gguf", "phi", "4", "never"),
        ("Phi-4-reasoning-plus-Q4_K_M.gguf", "phi", "4-reasoning", "always"),
        ("Phi-4-mini-reasoning-Q8_0.gguf", "phi", "4-reasoning", "always"),
        ("GLM-4-9B-0414-Q4_K_M.gguf", "glm", "4", "never"),
        ("glm-4-9b-chat-Q4_K_M.gguf", "glm", "4", "never"),
        ("GLM-Z1-9B-0414-Q4_K_M.gguf", "glm", "z1", "always"),
        ("GLM-4.5-Air-Q4_K_M-00001-of-00002.gguf", "glm", "4.5", "default"),
        ("GLM-4.6-UD-Q2_K_XL.gguf", "glm", "4.6", "default"),
        ("MiniCPM3-4B.Q4_K_M.gguf", "minicpm", "3", "never"),
        ("MiniCPM4-8B-Q4_K_M.gguf", "minicpm", "4", "never"),
        ("MiniCPM4.1-8B-Q4_K_M.gguf", "minicpm", "4.1", "default"),
        ("MiniCPM5-1B-Q4_K_M.gguf", "minicpm", "5", "default"),
        ("llama-2-7b-chat.Q4_K_M.gguf", "llama", "2", "never"),
        ("Meta-Llama-3-8B-Instruct.Q4_0.gguf", "llama", "3", "never"),
        ("Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf", "llama", "3", "never"),
        ("Llama-3.2-1B-Instruct-Q8_0.gguf", "llama", "3", "never"),
        ("Hermes-3-Llama-3.1-8B.Q4_K_M.gguf", "llama", "3", "never"),
        ("Llama-4-Scout-17B-16E-Instruct-Q2_K.gguf", "llama", "4", "never"),
        ("functionary-small-v3.2.Q8_0.gguf", "functionary", "", "never"),
        ("DeepSeek-R1-Distill-Qwen-1.5B-Q4_K_M.gguf", "deepseek", "r1", "always"),
        ("DeepSeek-R1-0528-Qwen3-8B-Q4_K_M.gguf", "deepseek", "r1", "always"),
        ("DeepSeek-V3-0324-Q2_K.gguf", "deepseek", "3", "never"),
        ("DeepSeek-V3.1-UD-TQ1_0.gguf", "deepseek", "3.1", "request"),
        ("DeepSeek-V3.2-Q4_K_M.gguf", "deepseek", "3.2", "request"),
        ("DeepSeek-V4-Flash-Q2_K.gguf", "deepseek", "4", "request"),
        ("Kimi-K3-Q2_K.gguf", "kimi", "k3", "default"),
        ("Kimi-K2-Instruct-0905-UD-TQ1_0.gguf", "kimi", "k2", "never"),
        ("Kimi-K2-Thinking-Q4_0.gguf", "kimi", "k2-thinking", "always"),
        ("MiniMax-M2-Q4_K_M.gguf", "minimax", "m2", "always"),
        ("NVIDIA-Nemotron-3-Nano-30B-A3B-Q4_K_M.gguf", "nemotron", "3", "default"),
        ("NVIDIA-Nemotron-Nano-9B-v2-Q4_K_M.gguf", "nemotron", "nano-2", "default"),
        ("c4ai-command-r7b-12-2024-Q4_K_M.gguf", "cohere", "r7b", "request"),
        ("c4ai-command-r-plus-08-2024-Q4_K_M.gguf", "cohere", "r", "never"),
        ("granite-4.0-h-tiny-Q4_K_M.gguf", "granite", "4", "never"),
        ("granite-3.3-8b-instruct-Q4_K_M.gguf", "granite", "3.3", "request"),
        ("LFM2-8B-A1B-Q4_K_M.gguf", "lfm", "2", "never"),
        ("SmolLM3-Q4_K_M.gguf", "smollm", "3", "default"),
        ("model.gguf", "generic", "", "never"),
        ("", "generic", "", "never"),
    ],
)
def test_name_in_the_file_or_in_the_metadata(
    name: str, family: str, version: str, thinking: str
) -> None:
    stem = re.sub(r"\.gguf$", "", name)
    for found in (
        identify({}, name),
        identify({}, f"/models/of/llama-2/{name}"),
        identify({}, f"C:\\models\\{name}"),
        identify(named(stem.replace("-", " ")), "ggml-model-q4_0.gguf"),
        identify(named(stem, "unknown"), "llama-2-7b.gguf" if family != "generic" else ""),
    ):
        assert (found.name, found.version, found.thinking) == (family, version, thinking)


def test_a_name_in_several_metadata_fields() -> None:
    parts = named("Models", "qwen3", basename="Qwen3", finetune="Thinking-2507")
    assert identify(parts, "x.gguf").version == "3-thinking"


@pytest.mark.parametrize(
    ("architecture", "family", "version"),
    [
        ("qwen3moe", "qwen", "3"),
        ("qwen35", "qwen", "3.5"),
        ("qwen2", "qwen", "2.5"),
        ("gemma3", "gemma", "3"),
        ("gpt-oss", "gpt-oss", ""),
        ("phi3", "phi", "3"),
        ("glm4moe", "glm", "4.6"),
        ("minicpm3", "minicpm", "3"),
        ("llama4", "llama", "4"),
        ("deepseek2", "deepseek", ""),
        ("llama", "generic", ""),
    ],
)
def test_the_architecture_if_no_name_matches(architecture: str, family: str, version: str) -> None:
    found = identify(named("Best Of All", architecture), "best.gguf")
    assert (found.name, found.version) == (family, version)


def test_the_template_overrides_the_name() -> None:
    hybrid = identify(named("Qwen3 4B"), "", HYBRID)
    assert (hybrid.thinking, hybrid.switch) == ("default", "enable_thinking")
    assert hybrid.tool_format.name == "hermes"
    forced = identify(named("Qwen3 4B"), "", FORCED)
    assert (forced.thinking, forced.switch, forced.tags) == ("always", None, None)
    unknown = identify(named("Best Of All"), "", HYBRID)
    assert (unknown.name, unknown.thinking, unknown.switch) == (
        "generic", "default", "enable_thinking",
    )  # fmt: skip
    assert unknown.reasoning == ("<think>", "</think>")
    hermes = identify(named("Hermes 3 Llama 3.1 8B"), "", PLAIN)
    assert hermes.tool_format.name == "hermes"
    talking = identify(named("Best"), "", "{{ 'enable_thinking' }} thinking {# thinking #}")
    assert talking.thinking == "never"


def test_thinking_on_and_off() -> None:
    qwen = identify(named("Qwen3 8B"), "", HYBRID)
    assert qwen.thinks()
    assert qwen.thinks(True)
    assert not qwen.thinks(False)
    assert qwen.template_kwargs() == {}
    assert qwen.template_kwargs(False) == {"enable_thinking": False}
    assert qwen.tag(False) == ""
    assert qwen.recommended()["temperature"] == 0.6
    assert qwen.recommended(False)["temperature"] == 0.7


def test_tags_where_the_template_has_no_switch() -> None:
    qwen = identify(named("Qwen3 8B"), "", PLAIN)
    assert qwen.switch is None
    assert (qwen.tag(), qwen.tag(True), qwen.tag(False)) == ("", "/think", "/no_think")


@pytest.mark.parametrize(
    ("name", "thinking", "says"),
    [
        ("Qwen3-4B-Instruct-2507", True, "never thinks"),
        ("Magistral-Small-2509", False, "always thinks"),
        ("model", True, "this model never"),
    ],
)
def test_thinking_that_cannot_be_switched(name: str, thinking: bool, says: str) -> None:
    family = identify({}, name)
    with pytest.raises(ValidationError, match=says):
        family.template_kwargs(thinking)


def test_markers_of_the_family() -> None:
    assert identify({}, "Magistral-Small-2509").reasoning == ("[THINK]", "[/THINK]")
    assert identify({}, "gemma-4-31B-it").reasoning == ("<|channel>thought", "<channel|>")
    assert identify({}, "Llama-3.2-1B-Instruct").reasoning is None


@pytest.mark.parametrize("row", FAMILY_TABLE, ids=lambda row: f"{row.family} {row.version}")
def test_rows_are_consistent(row: object) -> None:
    assert row.tool_format in FORMATS  # type: ignore[attr-defined]
    options = {**row.sampling, **row.thinking_sampling}  # type: ignore[attr-defined]
    known = {"temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty"}
    assert set(options) <= known
    assert bool(row.source) or not options  # type: ignore[attr-defined]
    assert (row.thinking != "never") or not row.thinking_sampling  # type: ignore[attr-defined]


def test_recommendations_were_checked() -> None:
    """The only rows whose values no page confirms, so that no others are added."""
    unseen = {
        f"{row.family} {row.version}"
        for row in FAMILY_TABLE
        if (row.sampling or row.thinking_sampling) and not row.seen
    }
    assert unseen == {"gemma function", "llama 2"}

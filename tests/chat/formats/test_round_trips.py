"""Calls that real templates write come back equal, whatever their values look like."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.chat_templates import fetch_templates  # puts tools/ on the path

# isort: split
import round_trips

from llama_cffi.chat.families import identify
from llama_cffi.chat.template import ChatTemplate

pytestmark = pytest.mark.network

#: Templates of each family that writes values between tags.
NAMES = (
    "ByteDance-Seed-OSS",
    "GLM-4.6",
    "GLM-4.7-Flash",
    "Kimi-K3",
    "MiniMax-M2",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    "Qwen3-Coder",
    "StepFun3.5-Flash",
    "deepseek-ai-DeepSeek-V3.2",
    "deepseek-ai-DeepSeek-V4",
    "muse-glimmer",
    "openbmb-MiniCPM5-1B",
    "poolside-Laguna-XS.2",
    "tencent-Hy3",
)
STEP = 5  # every fifth value; tools/round_trips.py tries all


@pytest.fixture(scope="module")
def sources(shared_cache: Path) -> dict[str, str]:
    return fetch_templates(shared_cache)


@pytest.mark.parametrize("name", [*NAMES, "MiniMax-M3"])
def test_calls_of_a_template_come_back(sources: dict[str, str], name: str) -> None:
    template = ChatTemplate(sources[name], round_trips.BOS, round_trips.EOS)
    family = identify({}, f"{name}.gguf", sources[name])
    found = list(round_trips.called(template, family, STEP))
    assert len(found) > 40
    # MiniMax M3's template leaves out None, so that nothing is there to come back.
    different = [(kind, value) for kind, value, _ in found if kind != "equal calls"]
    assert all(name == "MiniMax-M3" and "None" in str(value) for _, value in different), different

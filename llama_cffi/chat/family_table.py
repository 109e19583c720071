"""The table of model families. The first row that matches a model applies.

`sampling` holds the recommendations of the page in `source`; it is empty if that page gives none,
and the caller's defaults apply. `seen` is the page where the numbers were checked in November 2026,
when model cards could not be reached: a copy of the card, or another page of the vendor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["FAMILY_TABLE", "FamilyRow", "ThinkingMode"]

#: When a model thinks: by default, on request only, always, or never.
ThinkingMode = Literal["default", "request", "always", "never"]

_HF = "https://huggingface.co/"
_GITHUB = "https://github.com/"
_MUXUP = "https://muxup.com/2025q2/recommended-llm-parameter-quick-reference"
_UNSLOTH = (
    _GITHUB + "unslothai/unsloth/blob/main/studio/backend/assets/configs/inference_defaults.json"
)
_CONFIGURATIONS = (
    _GITHUB + "AgustinJimenez/llama_cpp_rs_chat/blob/main/docs/MODEL_CONFIGURATIONS.md"
)
_COPIES = "copies of the card in public repositories"
_MINICPM = _GITHUB + "OpenBMB/MiniCPM/blob/main/docs/"


@dataclass(frozen=True)
class FamilyRow:
    """A family of models, or a variant of one.

    Attributes:
        family: Name of the family.
        version: The version or variant; "" if unknown.
        names: Regular expression for the model's name in lower case, with words joined by `-`.
        architectures: Regular expression for `general.architecture`, used if no name matches; ""
            for variants that only a name identifies.
        thinking: When the model thinks.
        switch: The chat template's variable that turns thinking on and off.
        tags: The words at the end of a message that turn thinking on and off.
        tool_format: Name of the tool format, if the chat template does not identify one.
        sampling: Recommended sampling options without thinking.
        thinking_sampling: Recommended sampling options with thinking.
        stops: Strings that end an answer, for model files that do not mark them as such.
        source: The page that recommends the sampling options.
        seen: The page where they were checked; "": none was found, and they are from memory.
    """

    family: str
    version: str
    names: str
    architectures: str = ""
    thinking: ThinkingMode = "never"
    switch: str | None = None
    tags: tuple[str, str] | None = None
    tool_format: str = "generic"
    sampling: Mapping[str, float] = field(default_factory=dict)
    thinking_sampling: Mapping[str, float] = field(default_factory=dict)
    stops: tuple[str, ...] = ()
    source: str = ""
    seen: str = ""


def _sampling(
    temperature: float,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    **more: float,
) -> dict[str, float]:
    given = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p, **more}
    return {key: value for key, value in given.items() if value is not None}


_QWEN_PLAIN = _sampling(0.7, 0.8, 20, 0.0)
_QWEN_THINKING = _sampling(0.6, 0.95, 20, 0.0)
_GEMMA = _sampling(1.0, 0.95, 64, 0.0)
_LLAMA = _sampling(0.6, 0.9)
_R1 = _sampling(0.6, 0.95)
_TURN = ("<|im_end|>",)
_GEMMA_TURN = ("<end_of_turn>",)
_LLAMA_TURN = ("<|eot_id|>", "<|eom_id|>")

FAMILY_TABLE = (
    FamilyRow("demo", "", r"llama-cffi-demo", thinking="request", tags=("/think", ""),
        tool_format="hermes", sampling=_sampling(0.0), thinking_sampling=_sampling(0.0),
        stops=_TURN, source="llama_cffi/demo", seen="llama_cffi/demo"),
    # DeepSeek before Qwen and Llama, whose names its distilled models also have.
    FamilyRow("deepseek", "r1", r"deepseek-r1|r1-distill", thinking="always",
        tool_format="deepseek-v3", thinking_sampling=_R1, source=_HF + "deepseek-ai/DeepSeek-R1",
        seen=_MUXUP),
    FamilyRow("deepseek", "4", r"deepseek-v4", "deepseek4", "request", "thinking",
        tool_format="deepseek-v4", sampling=_sampling(1.0, 1.0),
        thinking_sampling=_sampling(1.0, 1.0), source=_HF + "deepseek-ai/DeepSeek-V4",
        seen=_UNSLOTH),
    FamilyRow("deepseek", "3.2", r"deepseek-v3\.2", "deepseek32", "request", "thinking",
        tool_format="deepseek-v3.2", sampling=_sampling(1.0, 0.95),
        thinking_sampling=_sampling(1.0, 0.95), source=_HF + "deepseek-ai/DeepSeek-V3.2",
        seen="https://cookbook.sglang.io/docs/DeepSeek/DeepSeek-V3_2"),
    FamilyRow("deepseek", "3.1", r"deepseek-v3\.1", thinking="request", switch="thinking",
        tool_format="deepseek-v3.1", sampling=_R1, thinking_sampling=_R1,
        source=_HF + "deepseek-ai/DeepSeek-V3.1", seen=_UNSLOTH),
    FamilyRow("deepseek", "3", r"deepseek-v3", tool_format="deepseek-v3", sampling=_sampling(0.3),
        source=_HF + "deepseek-ai/DeepSeek-V3-0324", seen=_MUXUP),
    FamilyRow("deepseek", "", r"deepseek", r"deepseek\d*"),
    FamilyRow("functionary", "", r"functionary", tool_format="functionary-v3.2", stops=_LLAMA_TURN),
    FamilyRow("gpt-oss", "", r"gpt-?oss", "gpt-oss", "always", tool_format="harmony",
        thinking_sampling=_sampling(1.0, 1.0, 0, 0.0), stops=("<|return|>", "<|call|>"),
        source=_GITHUB + "openai/gpt-oss", seen=_UNSLOTH),
    # MiniCPM before Llama and Qwen, whose architecture some of its models have.
    FamilyRow("minicpm", "5", r"minicpm-?5", thinking="default", switch="enable_thinking",
        tool_format="minicpm5", sampling=_sampling(0.7, 0.95),
        thinking_sampling=_sampling(0.9, 0.95), stops=_TURN, source=_HF + "openbmb/MiniCPM5-1B",
        seen=_MINICPM + "deployment/llama_cpp.md"),
    FamilyRow("minicpm", "4.1", r"minicpm-?4\.1", thinking="default", switch="enable_thinking",
        tags=("/think", "/no_think"), sampling=_sampling(0.9, 0.95),
        thinking_sampling=_sampling(0.9, 0.95), stops=_TURN, source=_HF + "openbmb/MiniCPM4.1-8B",
        seen="https://fast.hugflare.com/openbmb/MiniCPM4.1-8B"),
    FamilyRow("minicpm", "4", r"minicpm-?4", sampling=_sampling(0.7, 0.7), stops=_TURN,
        source=_HF + "openbmb/MiniCPM4-8B",
        seen=_GITHUB + "OpenBMB/MiniCPM/blob/main/README-en.md"),
    FamilyRow("minicpm", "3", r"minicpm-?3", "minicpm3", sampling=_sampling(0.7, 0.7), stops=_TURN,
        source=_HF + "openbmb/MiniCPM3-4B", seen=_MINICPM + "README-minicpm3-en.md"),
    FamilyRow("minicpm", "", r"minicpm", "minicpm"),
    FamilyRow("qwen", "3-coder", r"qwen-?3-coder", tool_format="qwen3-coder",
        sampling={**_QWEN_PLAIN, "repeat_penalty": 1.05}, stops=_TURN,
        source=_HF + "Qwen/Qwen3-Coder-30B-A3B-Instruct", seen=_CONFIGURATIONS),
    FamilyRow("qwen", "3.5", r"qwen-?3\.[5-9]", r"qwen35(moe)?", "default", "enable_thinking",
        tool_format="qwen3-coder", sampling=_sampling(0.7, 0.8, 20, 0.0, presence_penalty=1.5),
        thinking_sampling=_sampling(1.0, 0.95, 20, 0.0, presence_penalty=1.5), stops=_TURN,
        source=_HF + "Qwen/Qwen3.5-35B-A3B",
        seen="https://fakoli.github.io/anvil-serving/MODEL-SETTINGS-EXAMPLE/"),
    FamilyRow("qwen", "3-thinking", r"qwen-?3\b.*\bthinking", thinking="always",
        tool_format="hermes", thinking_sampling=_QWEN_THINKING, stops=_TURN,
        source=_HF + "Qwen/Qwen3-4B-Thinking-2507",
        seen=_GITHUB + "smtmRadu/flashml/blob/main/flashml/llm/vllm_configs.py"),
    FamilyRow("qwen", "3-instruct", r"qwen-?3\b.*\binstruct", tool_format="hermes",
        sampling=_QWEN_PLAIN, stops=_TURN, source=_HF + "Qwen/Qwen3-4B-Instruct-2507",
        seen=_CONFIGURATIONS),
    FamilyRow("qwen", "3", r"qwen-?3", r"qwen3(moe|next|vl|vlmoe)?", "default", "enable_thinking",
        ("/think", "/no_think"), "hermes", _QWEN_PLAIN, _QWEN_THINKING, _TURN,
        _HF + "Qwen/Qwen3-8B", _MUXUP),
    FamilyRow("qwen", "qwq", r"\bqwq", thinking="always", tool_format="hermes",
        thinking_sampling=_sampling(0.6, 0.95, 40, 0.0), stops=_TURN, source=_HF + "Qwen/QwQ-32B",
        seen=_UNSLOTH),
    FamilyRow("qwen", "2.5", r"qwen-?2(\.5)?", r"qwen2(moe|vl)?", tool_format="hermes",
        sampling=_sampling(0.7, 0.8, 20, repeat_penalty=1.05), stops=_TURN,
        source=_HF + "Qwen/Qwen2.5-7B-Instruct",
        seen=_HF + "wassimm/Qwen2.5-7B-Instruct-psycology-400k_data-w (its generation_config)"),
    FamilyRow("qwen", "", r"qwen", r"qwen\w*", tool_format="hermes", stops=_TURN),
    FamilyRow("gemma", "function", r"function-?gemma", tool_format="functiongemma", sampling=_GEMMA,
        stops=_GEMMA_TURN, source=_HF + "google/functiongemma-270m-it"),
    FamilyRow("gemma", "4", r"gemma-?4", r"gemma4.*", "request", "enable_thinking",
        tool_format="gemma4", sampling=_GEMMA, thinking_sampling=_GEMMA, stops=("<turn|>",),
        source=_HF + "google/gemma-4-31B-it", seen=_UNSLOTH),
    FamilyRow("gemma", "3", r"gemma-?3", r"gemma3n?", tool_format="gemma-tool-code",
        sampling=_GEMMA, stops=_GEMMA_TURN, source=_HF + "google/gemma-3-27b-it", seen=_MUXUP),
    FamilyRow("gemma", "2", r"gemma-?2\b(?!b)", "gemma2", stops=_GEMMA_TURN,
        source=_HF + "google/gemma-2-9b-it"),
    FamilyRow("gemma", "", r"gemma", "gemma", stops=_GEMMA_TURN),
    FamilyRow("mistral", "magistral", r"magistral", thinking="always", tool_format="mistral",
        thinking_sampling=_sampling(0.7, 0.95), source=_HF + "mistralai/Magistral-Small-2509",
        seen=_CONFIGURATIONS),
    FamilyRow("mistral", "ministral-3-reasoning", r"ministral-3\b.*\breasoning", thinking="always",
        tool_format="mistral", thinking_sampling=_sampling(0.7, 0.95),
        source=_HF + "mistralai/Ministral-3-8B-Reasoning-2512",
        seen="https://unsloth.ai/docs/models/tutorials/ministral-3.md"),
    FamilyRow("mistral", "ministral-3", r"ministral-3\b(?!b)", "mistral3", tool_format="mistral",
        sampling=_sampling(0.15), source=_HF + "mistralai/Ministral-3-8B-Instruct-2512",
        seen="https://unsloth.ai/docs/models/tutorials/ministral-3.md"),
    FamilyRow("mistral", "ministral", r"ministral", tool_format="mistral-nemo"),
    FamilyRow("mistral", "nemo", r"mistral-nemo", tool_format="mistral-nemo",
        sampling=_sampling(0.3), source=_HF + "mistralai/Mistral-Nemo-Instruct-2407", seen=_COPIES),
    FamilyRow("mistral", "small", r"mistral-small|devstral", tool_format="mistral",
        sampling=_sampling(0.15), source=_HF + "mistralai/Mistral-Small-3.2-24B-Instruct-2506",
        seen=_MUXUP),
    FamilyRow("mistral", "", r"mi[sx]tral", r"mistral\d*", tool_format="mistral-nemo"),
    FamilyRow("phi", "4-reasoning", r"phi-?4.*reasoning", thinking="always",
        thinking_sampling=_sampling(0.8, 0.95, 50), stops=("<|im_end|>", "<|end|>"),
        source=_HF + "microsoft/Phi-4-reasoning", seen=_MUXUP),
    FamilyRow("phi", "4-mini", r"phi-?4-(mini|multimodal)", tool_format="phi4", stops=("<|end|>",),
        source=_HF + "microsoft/Phi-4-mini-instruct"),
    FamilyRow("phi", "4", r"phi-?4", stops=_TURN, source=_HF + "microsoft/phi-4"),
    FamilyRow("phi", "3", r"phi-?3", r"phi3|phimoe", stops=("<|end|>",),
        source=_HF + "microsoft/Phi-3.5-mini-instruct"),
    FamilyRow("phi", "", r"\bphi-?\d", r"phi\d"),
    FamilyRow("glm", "z1", r"glm-?z1", thinking="always",
        thinking_sampling=_sampling(0.6, 0.95, 40), stops=("<|user|>", "<|observation|>"),
        source=_HF + "zai-org/GLM-Z1-32B-0414", seen=_MUXUP),
    FamilyRow("glm", "4.5", r"glm-?4\.5", thinking="default", switch="enable_thinking",
        tags=("", "/nothink"), tool_format="glm", sampling=_R1, thinking_sampling=_R1,
        stops=("<|user|>", "<|observation|>"),
        source="https://docs.z.ai/guides/overview/concept-param",
        seen="https://docs.z.ai/api-reference/llm/chat-completion"),
    FamilyRow("glm", "4.6", r"glm-?(4\.[67]|5)", r"glm4moe|glm-dsa", "default", "enable_thinking",
        tool_format="glm", sampling=_sampling(1.0, 0.95), thinking_sampling=_sampling(1.0, 0.95),
        stops=("<|user|>", "<|observation|>"), source=_HF + "zai-org/GLM-4.6",
        seen="https://docs.bigmodel.cn/cn/guide/start/migrate-to-glm-4.6"),
    FamilyRow("glm", "4", r"glm-?4", r"glm4|chatglm", stops=("<|user|>", "<|observation|>"),
        source=_HF + "zai-org/GLM-4-32B-0414"),
    FamilyRow("glm", "", r"\b(chat)?glm"),
    FamilyRow("smollm", "3", r"smollm-?3", "smollm3", "default", "enable_thinking",
        ("/think", "/no_think"), "hermes", _R1, _R1, _TURN, _HF + "HuggingFaceTB/SmolLM3-3B",
        "https://dev.modelhub.org.cn/unsloth/SmolLM3-3B/blame/branch/master/README.md"),
    FamilyRow("granite", "3.3", r"granite-?3\.[23]", thinking="request", switch="thinking",
        tool_format="granite", source=_HF + "ibm-granite/granite-3.3-8b-instruct"),
    FamilyRow("granite", "4", r"granite-?4", tool_format="hermes", sampling=_sampling(0.0),
        source="https://www.ibm.com/granite/docs/models/granite", seen=_CONFIGURATIONS),
    FamilyRow("granite", "", r"granite", r"granite\w*", tool_format="hermes"),
    FamilyRow("seed-oss", "", r"seed-oss", "seed_oss", "always", tool_format="seed-oss",
        thinking_sampling=_sampling(1.1, 0.95), source=_HF + "ByteDance-Seed/Seed-OSS-36B-Instruct",
        seen=_COPIES),
    FamilyRow("kimi", "k3", r"kimi-?k3", thinking="default", switch="thinking",
        tool_format="kimi-k3", sampling=_sampling(1.0, 0.95),
        thinking_sampling=_sampling(1.0, 0.95), stops=("<|end_of_msg|>",),
        source=_HF + "moonshotai/Kimi-K3", seen=_UNSLOTH),
    FamilyRow("kimi", "k2-thinking", r"kimi-?k2.*thinking", thinking="always",
        tool_format="kimi-k2", thinking_sampling=_sampling(1.0), stops=_TURN,
        source=_HF + "moonshotai/Kimi-K2-Thinking", seen=_COPIES),
    FamilyRow("kimi", "k2", r"kimi-?k2", tool_format="kimi-k2", sampling=_sampling(0.6),
        stops=_TURN, source=_HF + "moonshotai/Kimi-K2-Instruct",
        seen=_GITHUB + "MoonshotAI/Kimi-K2"),
    FamilyRow("minimax", "m3", r"minimax-?m3", thinking="always", tool_format="minimax-m3",
        stops=("[e~[",)),
    FamilyRow("minimax", "m2", r"minimax-?m2", "minimax-m2", "always", tool_format="minimax-m2",
        thinking_sampling=_sampling(1.0, 0.95, 40), stops=("[e~[",),
        source=_HF + "MiniMaxAI/MiniMax-M2",
        seen=_HF + "unsloth/MiniMax-M2/blob/main/generation_config.json"),
    FamilyRow("minimax", "m1", r"minimax-?m1", tool_format="minimax-m1",
        stops=("<end_of_sentence>",)),
    FamilyRow("nemotron", "3", r"nemotron-?3", "nemotron_h_moe", "default", "enable_thinking",
        tool_format="qwen3-coder", sampling=_sampling(0.6, 0.95),
        thinking_sampling=_sampling(1.0, 1.0), stops=_TURN,
        source="https://build.nvidia.com/nvidia/nemotron-3-nano-30b-a3b/modelcard",
        seen=_CONFIGURATIONS),
    FamilyRow("nemotron", "nano-2", r"nemotron-nano.*v2", "nemotron_h", "default",
        "enable_thinking", tool_format="nemotron"),
    FamilyRow("cohere", "moe", r"cohere-?2-?moe|north-mini-code", "cohere2moe", "always",
        tool_format="cohere2-moe", stops=("<|END_OF_TURN_TOKEN|>",)),
    FamilyRow("cohere", "r7b", r"command-?r7b|command-a", "cohere2", "request", "enable_thinking",
        tool_format="command-r7b", stops=("<|END_OF_TURN_TOKEN|>",)),
    FamilyRow("cohere", "r", r"command-?r", "command-r", tool_format="command-r-plus",
        stops=("<|END_OF_TURN_TOKEN|>",)),
    FamilyRow("apriel", "", r"apriel", thinking="always", tool_format="apriel"),
    FamilyRow("apertus", "", r"apertus", "apertus", "request", "enable_thinking",
        tool_format="apertus", stops=("<|assistant_end|>",)),
    FamilyRow("solar", "open", r"solar-open", thinking="always", tool_format="solar",
        stops=("<|calls|>", "<|flush|>")),
    FamilyRow("hunyuan", "3", r"\bhy3\b", tool_format="hunyuan3"),
    FamilyRow("muse", "glimmer", r"muse-glimmer", thinking="always", tool_format="muse",
        thinking_sampling=_sampling(1.0, 0.95, 64), stops=("<|eot|>",), seen=_UNSLOTH,
        source=_UNSLOTH),
    FamilyRow("gigachat", "3.1", r"gigachat-?3\.1", tool_format="gigachat3.1"),
    FamilyRow("gigachat", "3", r"gigachat-?3", tool_format="gigachat3"),
    FamilyRow("lfm", "2", r"\blfm-?2", r"lfm2(moe)?", tool_format="lfm2", stops=_TURN),
    FamilyRow("llama", "4", r"llama-?4", "llama4", tool_format="llama4", sampling=_LLAMA,
        stops=("<|eot|>", "<|eom|>"), source=_HF + "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        seen=_MUXUP),
    FamilyRow("llama", "3", r"llama-?3(?!b)", tool_format="llama3", sampling=_LLAMA,
        stops=_LLAMA_TURN, source=_HF + "meta-llama/Llama-3.1-8B-Instruct",
        seen=_HF + "ngxson/MiniThinky-1B-Llama-3.2/blob/main/generation_config.json"),
    FamilyRow("llama", "2", r"llama-?2(?!b)", sampling=_LLAMA,
        source=_HF + "meta-llama/Llama-2-7b-chat-hf"),
)  # fmt: skip

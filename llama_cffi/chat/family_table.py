"""What the families are: one row each, the first that fits counts.

`sampling` holds the recommendations of the page named in `source`; where that gives none, it is
empty and the caller's own defaults stay. `seen` is the page in which the numbers were read in
November 2026, as model cards were out of reach: it quotes the card, or is the vendor's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["ROWS", "Row", "Thinking"]

#: Whether a model thinks: on request (and if nothing is said), on request only, always, never.
Thinking = Literal["default", "request", "always", "never"]

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
class Row:
    """One family, or one kind of it.

    Attributes:
        family: Its name.
        version: Its version, "" where the rest of the table does not tell.
        names: Regular expression over a name in lower case, words joined by `-`.
        architectures: Regular expression over `general.architecture`, for models whose names say
            nothing; "" for kinds that only a name tells.
        thinking: Whether it thinks.
        switch: Variable of the chat template that turns thinking on and off.
        tags: Words at the end of a message that turn it on and off.
        tool_format: Name of the tool format, if the chat template does not tell.
        sampling: Recommended without thinking.
        thinking_sampling: Recommended with it.
        stops: Texts that end an answer where the model file does not know so.
        source: The page that the recommendations are from.
        seen: The page that they were compared with; "" = none was found, they are from memory.
    """

    family: str
    version: str
    names: str
    architectures: str = ""
    thinking: Thinking = "never"
    switch: str | None = None
    tags: tuple[str, str] | None = None
    tool_format: str = "generic"
    sampling: Mapping[str, float] = field(default_factory=dict)
    thinking_sampling: Mapping[str, float] = field(default_factory=dict)
    stops: tuple[str, ...] = ()
    source: str = ""
    seen: str = ""


def _say(
    temperature: float,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    **more: float,
) -> dict[str, float]:
    given = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p, **more}
    return {key: value for key, value in given.items() if value is not None}


_QWEN_PLAIN = _say(0.7, 0.8, 20, 0.0)
_QWEN_THINKING = _say(0.6, 0.95, 20, 0.0)
_GEMMA = _say(1.0, 0.95, 64, 0.0)
_LLAMA = _say(0.6, 0.9)
_R1 = _say(0.6, 0.95)
_TURN = ("<|im_end|>",)
_GEMMA_TURN = ("<end_of_turn>",)
_LLAMA_TURN = ("<|eot_id|>", "<|eom_id|>")

ROWS = (
    Row("demo", "", r"llama-cffi-demo", thinking="request", tags=("/think", ""),
        tool_format="hermes", sampling=_say(0.0), thinking_sampling=_say(0.0), stops=_TURN,
        source="llama_cffi/demo", seen="llama_cffi/demo"),
    # DeepSeek before Qwen and Llama: its distilled models carry their names too.
    Row("deepseek", "r1", r"deepseek-r1|r1-distill", thinking="always", tool_format="deepseek-v3",
        thinking_sampling=_R1, source=_HF + "deepseek-ai/DeepSeek-R1", seen=_MUXUP),
    Row("deepseek", "4", r"deepseek-v4", "deepseek4", "request", "thinking",
        tool_format="deepseek-v4", sampling=_say(1.0, 1.0), thinking_sampling=_say(1.0, 1.0),
        source=_HF + "deepseek-ai/DeepSeek-V4", seen=_UNSLOTH),
    Row("deepseek", "3.2", r"deepseek-v3\.2", "deepseek32", "request", "thinking",
        tool_format="deepseek-v3.2", sampling=_say(1.0, 0.95),
        thinking_sampling=_say(1.0, 0.95), source=_HF + "deepseek-ai/DeepSeek-V3.2",
        seen="https://cookbook.sglang.io/docs/DeepSeek/DeepSeek-V3_2"),
    Row("deepseek", "3.1", r"deepseek-v3\.1", thinking="request", switch="thinking",
        tool_format="deepseek-v3.1", sampling=_R1, thinking_sampling=_R1,
        source=_HF + "deepseek-ai/DeepSeek-V3.1", seen=_UNSLOTH),
    Row("deepseek", "3", r"deepseek-v3", tool_format="deepseek-v3", sampling=_say(0.3),
        source=_HF + "deepseek-ai/DeepSeek-V3-0324", seen=_MUXUP),
    Row("deepseek", "", r"deepseek", r"deepseek\d*"),
    Row("functionary", "", r"functionary", tool_format="functionary-v3.2", stops=_LLAMA_TURN),
    Row("gpt-oss", "", r"gpt-?oss", "gpt-oss", "always", tool_format="harmony",
        thinking_sampling=_say(1.0, 1.0, 0, 0.0), stops=("<|return|>", "<|call|>"),
        source=_GITHUB + "openai/gpt-oss", seen=_UNSLOTH),
    # MiniCPM before Llama and Qwen: the architecture of some is theirs.
    Row("minicpm", "5", r"minicpm-?5", thinking="default", switch="enable_thinking",
        tool_format="minicpm5", sampling=_say(0.7, 0.95),
        thinking_sampling=_say(0.9, 0.95), stops=_TURN, source=_HF + "openbmb/MiniCPM5-1B",
        seen=_MINICPM + "deployment/llama_cpp.md"),
    Row("minicpm", "4.1", r"minicpm-?4\.1", thinking="default", switch="enable_thinking",
        tags=("/think", "/no_think"), sampling=_say(0.9, 0.95),
        thinking_sampling=_say(0.9, 0.95), stops=_TURN, source=_HF + "openbmb/MiniCPM4.1-8B",
        seen="https://fast.hugflare.com/openbmb/MiniCPM4.1-8B"),
    Row("minicpm", "4", r"minicpm-?4", sampling=_say(0.7, 0.7), stops=_TURN,
        source=_HF + "openbmb/MiniCPM4-8B",
        seen=_GITHUB + "OpenBMB/MiniCPM/blob/main/README-en.md"),
    Row("minicpm", "3", r"minicpm-?3", "minicpm3", sampling=_say(0.7, 0.7), stops=_TURN,
        source=_HF + "openbmb/MiniCPM3-4B", seen=_MINICPM + "README-minicpm3-en.md"),
    Row("minicpm", "", r"minicpm", "minicpm"),
    Row("qwen", "3-coder", r"qwen-?3-coder", tool_format="qwen3-coder",
        sampling={**_QWEN_PLAIN, "repeat_penalty": 1.05}, stops=_TURN,
        source=_HF + "Qwen/Qwen3-Coder-30B-A3B-Instruct", seen=_CONFIGURATIONS),
    Row("qwen", "3.5", r"qwen-?3\.[5-9]", r"qwen35(moe)?", "default", "enable_thinking",
        tool_format="qwen3-coder",
        sampling=_say(0.7, 0.8, 20, 0.0, presence_penalty=1.5),
        thinking_sampling=_say(1.0, 0.95, 20, 0.0, presence_penalty=1.5), stops=_TURN,
        source=_HF + "Qwen/Qwen3.5-35B-A3B",
        seen="https://fakoli.github.io/anvil-serving/MODEL-SETTINGS-EXAMPLE/"),
    Row("qwen", "3-thinking", r"qwen-?3\b.*\bthinking", thinking="always", tool_format="hermes",
        thinking_sampling=_QWEN_THINKING, stops=_TURN,
        source=_HF + "Qwen/Qwen3-4B-Thinking-2507",
        seen=_GITHUB + "smtmRadu/flashml/blob/main/flashml/llm/vllm_configs.py"),
    Row("qwen", "3-instruct", r"qwen-?3\b.*\binstruct", tool_format="hermes",
        sampling=_QWEN_PLAIN, stops=_TURN, source=_HF + "Qwen/Qwen3-4B-Instruct-2507",
        seen=_CONFIGURATIONS),
    Row("qwen", "3", r"qwen-?3", r"qwen3(moe|next|vl|vlmoe)?", "default", "enable_thinking",
        ("/think", "/no_think"), "hermes", _QWEN_PLAIN, _QWEN_THINKING, _TURN,
        _HF + "Qwen/Qwen3-8B", _MUXUP),
    Row("qwen", "qwq", r"\bqwq", thinking="always", tool_format="hermes",
        thinking_sampling=_say(0.6, 0.95, 40, 0.0), stops=_TURN, source=_HF + "Qwen/QwQ-32B",
        seen=_UNSLOTH),
    Row("qwen", "2.5", r"qwen-?2(\.5)?", r"qwen2(moe|vl)?", tool_format="hermes",
        sampling=_say(0.7, 0.8, 20, repeat_penalty=1.05), stops=_TURN,
        source=_HF + "Qwen/Qwen2.5-7B-Instruct",
        seen=_HF + "wassimm/Qwen2.5-7B-Instruct-psycology-400k_data-w (its generation_config)"),
    Row("qwen", "", r"qwen", r"qwen\w*", tool_format="hermes", stops=_TURN),
    Row("gemma", "function", r"function-?gemma", tool_format="functiongemma", sampling=_GEMMA,
        stops=_GEMMA_TURN, source=_HF + "google/functiongemma-270m-it"),
    Row("gemma", "4", r"gemma-?4", r"gemma4.*", "request", "enable_thinking",
        tool_format="gemma4", sampling=_GEMMA, thinking_sampling=_GEMMA, stops=("<turn|>",),
        source=_HF + "google/gemma-4-31B-it", seen=_UNSLOTH),
    Row("gemma", "3", r"gemma-?3", r"gemma3n?", tool_format="gemma-tool-code", sampling=_GEMMA,
        stops=_GEMMA_TURN, source=_HF + "google/gemma-3-27b-it", seen=_MUXUP),
    Row("gemma", "2", r"gemma-?2\b(?!b)", "gemma2", stops=_GEMMA_TURN,
        source=_HF + "google/gemma-2-9b-it"),
    Row("gemma", "", r"gemma", "gemma", stops=_GEMMA_TURN),
    Row("mistral", "magistral", r"magistral", thinking="always", tool_format="mistral",
        thinking_sampling=_say(0.7, 0.95), source=_HF + "mistralai/Magistral-Small-2509",
        seen=_CONFIGURATIONS),
    Row("mistral", "ministral-3-reasoning", r"ministral-3\b.*\breasoning", thinking="always",
        tool_format="mistral", thinking_sampling=_say(0.7, 0.95),
        source=_HF + "mistralai/Ministral-3-8B-Reasoning-2512",
        seen="https://unsloth.ai/docs/models/tutorials/ministral-3.md"),
    Row("mistral", "ministral-3", r"ministral-3\b(?!b)", "mistral3", tool_format="mistral",
        sampling=_say(0.15), source=_HF + "mistralai/Ministral-3-8B-Instruct-2512",
        seen="https://unsloth.ai/docs/models/tutorials/ministral-3.md"),
    Row("mistral", "ministral", r"ministral", tool_format="mistral-nemo"),
    Row("mistral", "nemo", r"mistral-nemo", tool_format="mistral-nemo", sampling=_say(0.3),
        source=_HF + "mistralai/Mistral-Nemo-Instruct-2407", seen=_COPIES),
    Row("mistral", "small", r"mistral-small|devstral", tool_format="mistral",
        sampling=_say(0.15), source=_HF + "mistralai/Mistral-Small-3.2-24B-Instruct-2506",
        seen=_MUXUP),
    Row("mistral", "", r"mi[sx]tral", r"mistral\d*", tool_format="mistral-nemo"),
    Row("phi", "4-reasoning", r"phi-?4.*reasoning", thinking="always",
        thinking_sampling=_say(0.8, 0.95, 50), stops=("<|im_end|>", "<|end|>"),
        source=_HF + "microsoft/Phi-4-reasoning", seen=_MUXUP),
    Row("phi", "4-mini", r"phi-?4-(mini|multimodal)", tool_format="phi4", stops=("<|end|>",),
        source=_HF + "microsoft/Phi-4-mini-instruct"),
    Row("phi", "4", r"phi-?4", stops=_TURN, source=_HF + "microsoft/phi-4"),
    Row("phi", "3", r"phi-?3", r"phi3|phimoe", stops=("<|end|>",),
        source=_HF + "microsoft/Phi-3.5-mini-instruct"),
    Row("phi", "", r"\bphi-?\d", r"phi\d"),
    Row("glm", "z1", r"glm-?z1", thinking="always", thinking_sampling=_say(0.6, 0.95, 40),
        stops=("<|user|>", "<|observation|>"), source=_HF + "zai-org/GLM-Z1-32B-0414", seen=_MUXUP),
    Row("glm", "4.5", r"glm-?4\.5", thinking="default", switch="enable_thinking",
        tags=("", "/nothink"), tool_format="glm", sampling=_R1, thinking_sampling=_R1,
        stops=("<|user|>", "<|observation|>"),
        source="https://docs.z.ai/guides/overview/concept-param",
        seen="https://docs.z.ai/api-reference/llm/chat-completion"),
    Row("glm", "4.6", r"glm-?(4\.[67]|5)", r"glm4moe|glm-dsa", "default", "enable_thinking",
        tool_format="glm", sampling=_say(1.0, 0.95), thinking_sampling=_say(1.0, 0.95),
        stops=("<|user|>", "<|observation|>"), source=_HF + "zai-org/GLM-4.6",
        seen="https://docs.bigmodel.cn/cn/guide/start/migrate-to-glm-4.6"),
    Row("glm", "4", r"glm-?4", r"glm4|chatglm", stops=("<|user|>", "<|observation|>"),
        source=_HF + "zai-org/GLM-4-32B-0414"),
    Row("glm", "", r"\b(chat)?glm"),
    Row("smollm", "3", r"smollm-?3", "smollm3", "default", "enable_thinking",
        ("/think", "/no_think"), "hermes", _R1, _R1, _TURN, _HF + "HuggingFaceTB/SmolLM3-3B",
        "https://dev.modelhub.org.cn/unsloth/SmolLM3-3B/blame/branch/master/README.md"),
    Row("granite", "3.3", r"granite-?3\.[23]", thinking="request", switch="thinking",
        tool_format="granite", source=_HF + "ibm-granite/granite-3.3-8b-instruct"),
    Row("granite", "4", r"granite-?4", tool_format="hermes", sampling=_say(0.0),
        source="https://www.ibm.com/granite/docs/models/granite", seen=_CONFIGURATIONS),
    Row("granite", "", r"granite", r"granite\w*", tool_format="hermes"),
    Row("seed-oss", "", r"seed-oss", "seed_oss", "always", tool_format="seed-oss",
        thinking_sampling=_say(1.1, 0.95), source=_HF + "ByteDance-Seed/Seed-OSS-36B-Instruct",
        seen=_COPIES),
    Row("kimi", "k3", r"kimi-?k3", thinking="default", switch="thinking", tool_format="kimi-k3",
        sampling=_say(1.0, 0.95), thinking_sampling=_say(1.0, 0.95), stops=("<|end_of_msg|>",),
        source=_HF + "moonshotai/Kimi-K3", seen=_UNSLOTH),
    Row("kimi", "k2-thinking", r"kimi-?k2.*thinking", thinking="always", tool_format="kimi-k2",
        thinking_sampling=_say(1.0), stops=_TURN, source=_HF + "moonshotai/Kimi-K2-Thinking",
        seen=_COPIES),
    Row("kimi", "k2", r"kimi-?k2", tool_format="kimi-k2", sampling=_say(0.6), stops=_TURN,
        source=_HF + "moonshotai/Kimi-K2-Instruct", seen=_GITHUB + "MoonshotAI/Kimi-K2"),
    Row("minimax", "m3", r"minimax-?m3", thinking="always", tool_format="minimax-m3",
        stops=("[e~[",)),
    Row("minimax", "m2", r"minimax-?m2", "minimax-m2", "always", tool_format="minimax-m2",
        thinking_sampling=_say(1.0, 0.95, 40), stops=("[e~[",),
        source=_HF + "MiniMaxAI/MiniMax-M2",
        seen=_HF + "unsloth/MiniMax-M2/blob/main/generation_config.json"),
    Row("minimax", "m1", r"minimax-?m1", tool_format="minimax-m1",
        stops=("<end_of_sentence>",)),
    Row("nemotron", "3", r"nemotron-?3", "nemotron_h_moe", "default", "enable_thinking",
        tool_format="qwen3-coder", sampling=_say(0.6, 0.95), thinking_sampling=_say(1.0, 1.0),
        stops=_TURN, source="https://build.nvidia.com/nvidia/nemotron-3-nano-30b-a3b/modelcard",
        seen=_CONFIGURATIONS),
    Row("nemotron", "nano-2", r"nemotron-nano.*v2", "nemotron_h", "default", "enable_thinking",
        tool_format="nemotron"),
    Row("cohere", "moe", r"cohere-?2-?moe|north-mini-code", "cohere2moe", "always",
        tool_format="cohere2-moe", stops=("<|END_OF_TURN_TOKEN|>",)),
    Row("cohere", "r7b", r"command-?r7b|command-a", "cohere2", "request", "enable_thinking",
        tool_format="command-r7b", stops=("<|END_OF_TURN_TOKEN|>",)),
    Row("cohere", "r", r"command-?r", "command-r", tool_format="command-r-plus",
        stops=("<|END_OF_TURN_TOKEN|>",)),
    Row("apriel", "", r"apriel", thinking="always", tool_format="apriel"),
    Row("apertus", "", r"apertus", "apertus", "request", "enable_thinking",
        tool_format="apertus", stops=("<|assistant_end|>",)),
    Row("solar", "open", r"solar-open", thinking="always", tool_format="solar",
        stops=("<|calls|>", "<|flush|>")),
    Row("hunyuan", "3", r"\bhy3\b", tool_format="hunyuan3"),
    Row("muse", "glimmer", r"muse-glimmer", thinking="always", tool_format="muse",
        thinking_sampling=_say(1.0, 0.95, 64), stops=("<|eot|>",), seen=_UNSLOTH,
        source=_UNSLOTH),
    Row("gigachat", "3.1", r"gigachat-?3\.1", tool_format="gigachat3.1"),
    Row("gigachat", "3", r"gigachat-?3", tool_format="gigachat3"),
    Row("lfm", "2", r"\blfm-?2", r"lfm2(moe)?", tool_format="lfm2", stops=_TURN),
    Row("llama", "4", r"llama-?4", "llama4", sampling=_LLAMA, stops=("<|eot|>", "<|eom|>"),
        source=_HF + "meta-llama/Llama-4-Scout-17B-16E-Instruct", seen=_MUXUP),
    Row("llama", "3", r"llama-?3(?!b)", tool_format="llama3", sampling=_LLAMA, stops=_LLAMA_TURN,
        source=_HF + "meta-llama/Llama-3.1-8B-Instruct",
        seen=_HF + "ngxson/MiniThinky-1B-Llama-3.2/blob/main/generation_config.json"),
    Row("llama", "2", r"llama-?2(?!b)", sampling=_LLAMA,
        source=_HF + "meta-llama/Llama-2-7b-chat-hf"),
)  # fmt: skip

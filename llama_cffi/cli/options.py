"""Options that several commands have: the model, how it runs, sampling, the environment.

The names are llama-cli's. Each option sets a field of `LlamaConfig` or `SamplingParams`; one that
is not given leaves the field's default, so that every way to a model answers alike.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import output

__all__ = [
    "BUILDS",
    "ENGINE",
    "MODELS",
    "RUNNING",
    "SAMPLING",
    "VARIABLES",
    "HelpFormatter",
    "Option",
    "add_json",
    "add_model",
    "add_running",
    "add_sampling",
    "add_thinking",
    "at_least",
    "epilog",
    "given_options",
    "model_source",
    "one_of",
    "resolve",
    "running_options",
    "sampling_options",
    "thinking_options",
]


class HelpFormatter(argparse.HelpFormatter):
    """Wraps descriptions, and keeps the lines of examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return "".join(indent + line for line in text.splitlines(keepends=True))
        return super()._fill_text(text, width, indent)


# What the variables mean, for `--help`; docs/environment.md says more.
VARIABLES = {
    "LLAMA_CFFI_BUILD": "the llama.cpp build to fetch, such as v0.5.0 or npm:3.22.1",
    "LLAMA_CFFI_LIB": "a library file, or its folder, in place of a fetched build",
    "LLAMA_CFFI_BACKEND": "auto, cpu, cuda, vulkan or metal",
    "LLAMA_CFFI_CPU_VARIANT": "the build's CPU variant, such as haswell",
    "LLAMA_CFFI_CACHE": "the folder with the builds",
    "LLAMA_CFFI_OFFLINE": "1: no downloads",
    "LLAMA_CFFI_VERIFY": "1: hash every file of the build at every load",
    "LLAMA_CFFI_WHISPER_LIB": "the libwhisper of llama_cffi.whisper",
    "LLAMA_CFFI_NPM_REGISTRY": "the npm registry with the builds",
    "LLAMA_CFFI_GITHUB": "a mirror of GitHub's releases",
    "LLAMA_CFFI_ABI": "an ABI class by name, or user",
    "LLAMA_CFFI_HEADERS": "for ABI=user: the folder with the build's headers",
    "LLAMA_CFFI_CHECK": "how a model is checked before loading: auto, rules or child",
    "LLAMA_CFFI_N_THREADS": "number of threads without -t",
    "LLAMA_CFFI_TUNED": "0: without what `llama-cffi tune` has kept",
    "LLAMA_CFFI_API_KEY": "key of the server, or several with commas",
    "LLAMA_CFFI_N_GPU_LAYERS": "layers on the GPU without -ngl; -1: all",
    "LLAMA_CFFI_BATCH": "most tokens of a prompt in one call of C",
    "LLAMA_CFFI_UBATCH": "most tokens computed together",
    "LLAMA_CFFI_SAFETY": "tokens of the context that stay free",
    "LLAMA_CFFI_RESET_KV": "0: the prompt continues the session",
    "LLAMA_CFFI_JINJA": "0: Polaris Core's ChatML in place of the model's template",
    "LLAMA_CFFI_SPECIAL": "1: write control tokens as text",
    "LLAMA_CFFI_SUPPRESS_THINK": "1: no reasoning",
    "LLAMA_CFFI_STAGE": "end at prompt, tokenize, prefill, sample, piece or push",
    "LLAMA_CFFI_FLUSH": "a callback gets bytes when there are this many",
    "LLAMA_CFFI_TOKFLUSH": "... or after this many tokens",
    "LLAMA_CFFI_MS_FLUSH": "... or after this many milliseconds",
}
BUILDS = (
    "BUILD", "LIB", "BACKEND", "CPU_VARIANT", "CACHE", "OFFLINE", "VERIFY", "NPM_REGISTRY",
    "GITHUB", "ABI", "HEADERS", "WHISPER_LIB",
)  # fmt: skip
MODELS = (*BUILDS, "CHECK", "N_THREADS", "TUNED")
ENGINE = (
    "N_GPU_LAYERS", "BATCH", "UBATCH", "SAFETY", "RESET_KV", "JINJA", "SPECIAL", "SUPPRESS_THINK",
    "STAGE", "FLUSH", "TOKFLUSH", "MS_FLUSH",
)  # fmt: skip
_PREFIX = "LLAMA_CFFI_"


class Option(NamedTuple):
    """An option that sets a field.

    Attributes:
        field: The field of the dataclass.
        flags: Its names on the command line.
        parse: Makes the value of the text.
        metavar: Its value in the help.
        help: What it does.
    """

    field: str
    flags: tuple[str, ...]
    parse: Callable[[str], object]
    metavar: str | None
    help: str


def at_least(low: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from *low*."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}") from None
        if value < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, got {value}")
        return value

    return parse


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a parser of one of *choices*, in any case."""

    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(choices)}, got {text!r}")
        return text.lower()

    return parse


def _switch(text: str) -> bool | None:
    return {"on": True, "off": False, "auto": None}[one_of("on", "off", "auto")(text)]


def _size(low: int, **words: int | str) -> Callable[[str], int | str]:
    """Return a parser of whole numbers from *low*, and of words with a value."""

    def parse(text: str) -> int | str:
        if text.lower() in words:
            return words[text.lower()]
        if text.lstrip("-").isdigit():
            return at_least(low)(text)
        known = " or ".join(words)
        raise argparse.ArgumentTypeError(f"must be an integer or {known}, got {text!r}")

    return parse


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.replace("/", ",").split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers with commas, got {text!r}") from None


# Fields of LlamaConfig.
RUNNING = (
    Option(
        "n_ctx", ("-c", "--ctx-size", "--ctx"), _size(0, auto="auto"), "N",
        "context size: tokens of prompt and answer together; 0: the model's, auto: the largest "
        "that fits into the memory (default: 4096, or the model's if that is less)",
    ),
    Option(
        "n_threads", ("-t", "--threads"), at_least(0), "N",
        "number of threads (default: LLAMA_CFFI_N_THREADS, what tune has kept, or physical cores)",
    ),
    Option(
        "n_threads_batch", ("-tb", "--threads-batch"), at_least(0), "N",
        "number of threads for prompts (default: --threads)",
    ),
    Option("n_batch", ("-b", "--batch-size"), at_least(1), "N", "most prompt tokens per decode"),
    Option("n_ubatch", ("-ub", "--ubatch-size"), at_least(1), "N", "most tokens computed together"),
    Option(
        "n_gpu_layers", ("-ngl", "--gpu-layers", "--n-gpu-layers"), _size(-1, all=-1, auto="auto"),
        "N", "layers on the GPU; all or -1 (default): all, 0: none, auto: as many as fit",
    ),
    Option(
        "n_cpu_moe", ("-ncmoe", "--n-cpu-moe"), at_least(0), "N",
        "layers, from the first on, whose experts stay on the CPU",
    ),
    Option("main_gpu", ("-mg", "--main-gpu"), at_least(0), "N", "the GPU with --split-mode none"),
    Option(
        "split_mode", ("-sm", "--split-mode"), str, "MODE",
        "how to use several GPUs: none, layer or row",
    ),
    Option(
        "tensor_split", ("-ts", "--tensor-split"), _numbers, "A,B",
        "share of the model for each GPU (default: by free memory)",
    ),
    Option(
        "flash_attn", ("-fa", "--flash-attn"), _switch, "on|off|auto",
        "flash attention (default: auto, where it is supported and not known to be slow)",
    ),
    Option(
        "type_k", ("-ctk", "--cache-type-k"), str, "TYPE",
        "type of the keys in the KV cache, such as f32 or q8_0 (default: f16)",
    ),
    Option(
        "type_v", ("-ctv", "--cache-type-v"), str, "TYPE",
        "type of the values in the KV cache (default: f16)",
    ),
    Option(
        "rope_scaling", ("--rope-scaling",), str, "METHOD",
        "context scaling: none, linear, yarn or longrope (default: the model's)",
    ),
    Option("rope_freq_base", ("--rope-freq-base",), float, "N", "RoPE base frequency"),
    Option("rope_freq_scale", ("--rope-freq-scale",), float, "N", "RoPE frequency scale"),
    Option(
        "chat_format", ("--chat-template",), str, "NAME",
        "a built-in chat template, or Jinja's source (default: the model's)",
    ),
    Option("lora_path", ("--lora",), str, "FILE", "a LoRA adapter"),
    Option(
        "mmproj", ("-mm", "--mmproj"), str, "FILE",
        "the projector for pictures and sounds: a GGUF file, or hf:OWNER/REPO:FILE (default: the "
        "one beside the model)",
    ),
    Option(
        "image_min_tokens", ("--image-min-tokens",), at_least(1), "N",
        "least tokens of a picture, for models with pictures of any size (default: the model's)",
    ),
    Option(
        "image_max_tokens", ("--image-max-tokens",), at_least(1), "N",
        "most tokens of a picture, likewise",
    ),
)  # fmt: skip

# Fields of SamplingParams.
SAMPLING = (
    Option("top_k", ("--top-k",), int, "K", "keep the K most probable tokens; 0: all"),
    Option(
        "top_p", ("--top-p",), float, "P",
        "keep the most probable tokens up to this total probability",
    ),
    Option(
        "min_p", ("--min-p",), float, "P", "keep tokens with this fraction of the highest "
        "probability",
    ),
    Option(
        "typical_p", ("--typical", "--typical-p"), float, "P", "locally typical sampling; 1: off"
    ),
    Option(
        "top_n_sigma", ("--top-n-sigma",), float, "N",
        "keep tokens within N standard deviations of the largest logit; -1: off",
    ),
    Option("xtc_probability", ("--xtc-probability",), float, "P", "probability of XTC; 0: off"),
    Option("xtc_threshold", ("--xtc-threshold",), float, "P", "threshold of XTC; above 0.5: off"),
    Option(
        "dynatemp_range", ("--dynatemp-range",), float, "T",
        "dynamic temperature: --temperature plus or minus this; 0: off",
    ),
    Option("dynatemp_exponent", ("--dynatemp-exp",), float, "N", "its exponent"),
    Option("mirostat_mode", ("--mirostat",), int, "N", "Mirostat 1 or 2; 0: off"),
    Option("mirostat_tau", ("--mirostat-ent",), float, "N", "target entropy of Mirostat"),
    Option("mirostat_eta", ("--mirostat-lr",), float, "N", "learning rate of Mirostat"),
    Option(
        "adaptive_target", ("--adaptive-target",), float, "P",
        "target probability of the sampler adaptive_p; below 0: off",
    ),
    Option("adaptive_decay", ("--adaptive-decay",), float, "N", "its decay, 0 to 0.99"),
    Option(
        "repeat_penalty", ("--repeat-penalty",), float, "Y", "penalize repeated tokens; 1.0: off"
    ),
    Option(
        "frequency_penalty", ("--frequency-penalty",), float, "Y",
        "penalize each occurrence of a token; 0: off",
    ),
    Option(
        "presence_penalty", ("--presence-penalty",), float, "Y",
        "penalize tokens that occurred; 0: off",
    ),
    Option(
        "penalty_last_n", ("--repeat-last-n",), int, "N", "recent tokens that penalties consider"
    ),
    Option("dry_multiplier", ("--dry-multiplier",), float, "N", "strength of DRY; 0: off"),
    Option("dry_base", ("--dry-base",), float, "N", "growth factor of DRY"),
    Option(
        "dry_allowed_length", ("--dry-allowed-length",), int, "N",
        "longest repetition without a DRY penalty",
    ),
    Option(
        "dry_penalty_last_n", ("--dry-penalty-last-n",), int, "N",
        "recent tokens that DRY considers; -1: the context, 0: off",
    ),
    Option("min_keep", ("--min-keep",), int, "N", "fewest tokens that a sampler keeps"),
    Option(
        "samplers", ("--samplers",), str, "NAMES", "the samplers in order, separated by ;"
    ),
    Option("seed", ("--seed",), int, "D", "the same seed gives the same text (default: random)"),
)  # fmt: skip


def add_model(
    parser: Any, *, default: str = "the included demo model", flag_dest: str = "model"
) -> None:
    """Add the model: -m and -hf.

    Args:
        parser: The parser of the command.
        default: What is used without them; empty: they are needed.
        flag_dest: The attribute that they set.
    """
    what = "a GGUF file, or hf:OWNER/REPO[@REVISION][:FILE or QUANT] from the Hugging Face hub"
    what += f"; default: {default}" if default else ""
    parser.add_argument("-m", "--model", dest=flag_dest, help=what)
    parser.add_argument(
        "-hf", "--hf-repo", dest=flag_dest, type=_hub_name, metavar="OWNER/REPO[:QUANT]",
        help="-m hf:OWNER/REPO[:QUANT]",
    )  # fmt: skip


def _hub_name(text: str) -> str:
    return text if text.startswith("hf:") else f"hf:{text}"


def model_source(args: argparse.Namespace, command: str) -> Path:
    """Return the file of -m, or of the demo model, of which a person is told.

    With --image it is the demo model of pictures.
    """
    return resolve(args.model, command, pictures=bool(getattr(args, "images", None)))


def resolve(model: str | None, command: str, *, pictures: bool = False) -> Path:
    """Return the file of a model; None: the demo model's, of which a person is told."""
    if model is None:
        return output.demo_path(command, pictures=pictures)
    from ..hub import resolve_model

    return resolve_model(model)


def add_running(parser: Any, fields: Sequence[str] | None = None, **texts: str) -> Any:
    """Add the options that set fields of `LlamaConfig`; return their group.

    Args:
        parser: The parser of the command.
        fields: Only these; None: all. `use_mmap`: --no-mmap and --mlock.
        **texts: Help of a field that differs here.
    """
    chosen = [option for option in RUNNING if fields is None or option.field in fields]
    group = parser.add_argument_group("running")
    _add(group, chosen, texts)
    if fields is None or "use_mmap" in fields:
        parser.add_argument(
            "--no-mmap", action="store_true", help="read the file instead of mapping it"
        )
        parser.add_argument("--mlock", action="store_true", help="keep the weights in RAM")
    return group


def running_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of `LlamaConfig` that are given.

    The demo model is so small that a second thread would slow it down, so it gets one.
    """
    found = given_options(args)
    if args.model is None:
        found.setdefault("n_threads", 1)
    return found


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of `LlamaConfig` that are given, of any model."""
    found = _given(args, RUNNING)
    if getattr(args, "no_mmap", False):
        found["use_mmap"] = False
    if getattr(args, "mlock", False):
        found["use_mlock"] = True
    return found


def add_sampling(parser: Any, temperature: float | None = None, **texts: str) -> None:
    """Add the options that set fields of `SamplingParams`.

    Args:
        parser: The parser of the command.
        temperature: Its default; None: that of `SamplingParams`.
        **texts: Help of a field that differs here.
    """
    group = parser.add_argument_group("sampling")
    shown = "0 (default)" if temperature == 0 else "0"
    group.add_argument(
        "--temperature", "--temp", type=float, default=temperature, metavar="T",
        help=f"randomness; {shown}: greedy, the same answer each time; 0.7: varied answers",
    )  # fmt: skip
    _add(group, SAMPLING, texts)
    group.add_argument(
        "--dry-sequence-breaker", action="append", metavar="TEXT",
        help="text at which a repeated sequence ends; several times for several",
    )  # fmt: skip
    group.add_argument(
        "--logit-bias", action="append", type=_bias, default=[], metavar="ID(+|-)BIAS",
        help="change the logit of a token, such as 15043+1 or 15043-inf",
    )  # fmt: skip
    group.add_argument(
        "--ignore-eos", action="store_true",
        help="go on to --max-tokens even where the model would end the answer",
    )  # fmt: skip


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of `SamplingParams` that are given."""
    found = _given(args, SAMPLING)
    if args.temperature is not None:
        found["temperature"] = args.temperature
    if args.dry_sequence_breaker:
        found["dry_sequence_breakers"] = args.dry_sequence_breaker
    if args.logit_bias:
        found["logit_bias"] = dict(args.logit_bias)
    if args.ignore_eos:
        found["ignore_eos"] = True
    return found


def add_thinking(parser: Any) -> Any:
    """Add the options of reasoning models; return their group."""
    group = parser.add_argument_group("reasoning models")
    group.add_argument(
        "--thinking", action=argparse.BooleanOptionalAction,
        help="reason before answering; default: the model's",
    )  # fmt: skip
    group.add_argument(
        "--reasoning-effort", choices=("none", "minimal", "low", "medium", "high"),
        help="how much to reason, for models with such a setting",
    )  # fmt: skip
    return group


def thinking_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `add_thinking` that are given."""
    found = {name: getattr(args, name) for name in ("thinking", "reasoning_effort")}
    return {name: value for name, value in found.items() if value is not None}


def _bias(text: str) -> tuple[int, float]:
    for sign in "+-":
        token, found, bias = text.partition(sign)
        if found and token.isdigit():
            try:
                return int(token), float(sign + bias)
            except ValueError:
                break
    raise argparse.ArgumentTypeError(f"must be a token id, + or -, and a number, got {text!r}")


def _add(group: Any, options: Sequence[Option], texts: dict[str, str]) -> None:
    for option in options:
        group.add_argument(
            *option.flags, dest=option.field, type=option.parse, metavar=option.metavar,
            help=texts.get(option.field, option.help),
        )  # fmt: skip


def _given(args: argparse.Namespace, options: Sequence[Option]) -> dict[str, Any]:
    found = {o.field: getattr(args, o.field, None) for o in options}
    return {name: value for name, value in found.items() if value is not None}


def add_json(parser: Any, what: str) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON")


def epilog(examples: str, *variables: str) -> str:
    """Return the end of a command's help: examples, and the variables that it reads."""
    parts = []
    if examples:
        parts.append("examples:\n" + textwrap.indent(textwrap.dedent(examples).strip(), "  "))
    if variables:
        width = max(map(len, variables)) + len(_PREFIX)
        rows = (
            f"  {_PREFIX + name:{width}}  {VARIABLES[_PREFIX + name]}"
            for name in dict.fromkeys(variables)
        )
        parts.append("environment:\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"

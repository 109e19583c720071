"""Make a plan: measure the buffers where the build can, else use the formulae."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..binding import Model, compat
from ..binding.context.defaults import DEFAULT_N_UBATCH, context_defaults
from ..binding.context.memory_estimate import CACHE_TYPES, context_sizes
from ..binding.loading.library import library_for
from ..binding.memory_lines import MemoryLines
from ..binding.memory_meter import MemoryMeter
from ..binding.model.files import open_files
from ..errors import LlamaError, ValidationError
from ..generation.context_size import DEFAULT_N_CTX, default_n_ctx, n_sequences
from ..generation.model_source import ModelOptions, ModelSource
from ..gguf.header_check import GgufSummary, check_gguf
from ..system_memory import SystemMemory, system_memory
from ..validation import (
    INT32_MAX,
    as_path,
    check_choice,
    check_int,
    check_type,
    reject_unknown,
    shown,
)
from .hub_headers import remote_model_files, resolve_if_here
from .memory_plan import DevicePlan, MemoryPlan
from .placement import HOST, assign_layers, repacked_bytes, weights_by_device
from .projectors import n_together, projector_bytes, read_projector

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ..binding.loading.library import Device, Library

__all__ = ["PlanOptions", "Planner", "estimate", "options_of", "plan"]

Auto = Literal["auto"]
_MIB = 2**20
_MAX_PARALLEL, _MAX_LAYERS = 256, 4096
_MARGIN_BYTES = 2**30  # what the searches leave free, as llama.cpp does; or a tenth
_CELL_BYTES = 32
_FLOATS = (None, "f32", "f16", "bf16")  # values of these types need no flash attention
_TOKEN_BYTES, _MERGE_BYTES, _BASE_BYTES = 64, 104, 5 * _MIB
# Fields of a context that decide about its size, beside those of the plan itself.
_CONTEXT = (
    "n_batch", "n_ubatch", "type_k", "type_v", "flash_attn", "kv_unified", "swa_full",
    "offload_kqv", "op_offload", "embeddings", "pooling", "attention",
)  # fmt: skip
# The same of `Model`.
_MODEL = (
    "split_mode", "main_gpu", "tensor_split", "devices", "n_cpu_moe", "override_tensors",
    "kv_overrides", "load_mtp",
)  # fmt: skip
_SHOWN = ("n_batch", "n_ubatch", "type_k", "type_v", "flash_attn", "kv_unified", "swa_full")


class PlanOptions(ModelOptions, total=False):
    """The options of `plan`: fields of `LlamaConfig` and arguments of `InferenceEngine`.

    `n_ctx`: tokens of each answer, as for `Llama`; `"auto"`: the largest that fits. `n_parallel`:
    answers that are generated together. `n_kv_tokens`: tokens of a cache that they share, see
    `InferenceEngine`. `n_gpu_layers`: see `Model`; `"auto"`: the most that fit. `mmproj`: the
    projector for images and audio; `image_max_tokens`: see `Projector`. `draft`: the draft model: a
    file, `hf:…`, or the `Drafter`. `adapters`: LoRA files, or files and scales. `lora_path`: one
    more. The others are those of `ContextParams` and `Model`.
    """

    n_ctx: int | Auto | None
    n_parallel: int
    n_kv_tokens: int | None
    n_seq_max: int
    n_batch: int
    n_ubatch: int
    type_k: str | None
    type_v: str | None
    flash_attn: bool | None
    kv_unified: bool | None
    swa_full: bool | None
    offload_kqv: bool | None
    op_offload: bool | None
    embeddings: bool | None
    pooling: str | None
    attention: str | None
    mmproj: str | os.PathLike[str] | None
    image_max_tokens: int | None
    draft: object
    adapters: Mapping[str, float] | Sequence[str] | None
    lora_path: str | os.PathLike[str] | None


class Config(Protocol):
    """What a plan reads of a `LlamaConfig`."""

    n_ctx: Any
    n_gpu_layers: Any
    n_parallel: int
    draft: Any
    adapters: Any
    lora_path: Any
    mmproj: Any
    image_max_tokens: Any

    def context_options(self) -> Any:
        """Return arguments of `Context`."""

    def model_options(self) -> Any:
        """Return arguments of `Model`."""


def plan(
    model: ModelSource, config: Config | None = None, **options: Unpack[PlanOptions]
) -> MemoryPlan:
    """Plan the memory that a model takes, without loading it.

    Builds since b7698 compute the sizes of all buffers themselves, in a child process; for older
    ones formulae do. Nothing of the weights is read.

    Args:
        model: A GGUF file, `hf:owner/repo:file`, or a loaded `Model`, whose weights do not count as
            needed.
        config: The settings of a `Llama`; single options override it.
        **options: See `PlanOptions`.

    Raises:
        ModelLoadError: The file is missing or damaged, or the build cannot load it.
        FetchError: The model cannot be fetched.
        ValidationError: An option is out of range, or not supported by the model or the build.
        UnknownOptionError: An option does not exist; a TypeError.
    """
    given = {} if config is None else options_of(config)
    reject_unknown(options, _known(), "plan")
    with Planner(model, {**given, **options}) as planner:
        return planner.plan()


def estimate(model: ModelSource, options: Mapping[str, Any]) -> tuple[MemoryPlan, GgufSummary]:
    """Return a plan by formulae alone, and the model's header. It takes milliseconds.

    Args:
        model: See `plan`.
        options: See `PlanOptions`.

    Raises:
        ModelLoadError: The file is missing or damaged.
        ValidationError: An option is out of range.
    """
    with Planner(model, options, measures=False) as planner:
        return planner.plan(limits=False), planner.gguf


def options_of(config: Config) -> dict[str, Any]:
    """Return the settings of a `LlamaConfig` as `PlanOptions`."""
    names = (
        "n_ctx", "n_gpu_layers", "n_parallel", "n_kv_tokens", "draft", "adapters", "lora_path",
        "mmproj", "image_max_tokens",
    )  # fmt: skip
    found = {
        **config.model_options(),
        **config.context_options(),
        **{name: getattr(config, name) for name in names},
    }
    if not hasattr(found["draft"], "open"):  # loading tells that it is no drafter
        found["draft"] = None
    return {name: value for name, value in found.items() if name in _known()}


def _known() -> set[str]:
    return {*PlanOptions.__annotations__, *ModelOptions.__annotations__}


@dataclass
class _Sizes:
    """Bytes by device; `host` are those of the vocabulary, which are no buffers."""

    weights: Counter[str] = field(default_factory=Counter)
    kv: Counter[str] = field(default_factory=Counter)
    recurrent: Counter[str] = field(default_factory=Counter)
    compute: Counter[str] = field(default_factory=Counter)
    output: Counter[str] = field(default_factory=Counter)
    repacked: int = 0
    exact: bool = False


class Planner:
    """The sizes of one model with any settings; each is computed once.

    Args:
        model: See `plan`.
        options: See `PlanOptions`.
        measures: Whether the build may measure.
    """

    def __init__(
        self, model: ModelSource, options: Mapping[str, Any], *, measures: bool = True
    ) -> None:
        self._options = options = {k: v for k, v in options.items() if v is not None}
        self._loaded = model if isinstance(model, Model) else None
        if self._loaded is not None:
            self._loaded.ptr  # noqa: B018  # raises if it is closed
            self.files = self._loaded.files
        else:
            path = model if isinstance(model, str) else as_path("model", model)
            local = resolve_if_here(path)
            if local is not None:
                self.files = open_files(local, options.get("kv_overrides"))
            else:
                self.files = remote_model_files(str(path), options.get("kv_overrides"))
                measures = False
        self.gguf: GgufSummary = self.files.summary
        self.notes: list[str] = []
        if not measures and self._loaded is None and not self.files.paths[0].is_file():
            self.notes.append("estimated by formulae, from the header of the file on the hub")
        self._library = self._loaded.library if self._loaded is not None else self._find_library()
        self._check()
        self._devices = self._usable_devices()
        self._ram = system_memory()
        mmproj = options.get("mmproj")
        self._projector = None if mmproj is None else read_projector(mmproj)
        self._extras = self._extra_bytes()
        self._sizes: dict[tuple[int, int, int], _Sizes] = {}
        self._drafts: dict[tuple[int, int], Counter[str]] = {}
        self._meter: MemoryMeter | None = None
        if self._library is not None and measures:
            self._meter = MemoryMeter(self.files.paths, self._library)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._meter is not None:
            self._meter.close()

    @property
    def n_ctx_train(self) -> int:
        """Context size that the model was trained for; 0: unknown."""
        return self.gguf.number("context_length")

    @property
    def n_layer(self) -> int:
        """Layers with the output."""
        return min(max(0, self.gguf.number("block_count")), _MAX_LAYERS) + 1

    @property
    def ram(self) -> SystemMemory | None:
        """The RAM when the planner was made."""
        return self._ram

    def plan(self, *, limits: bool = True) -> MemoryPlan:
        """Return the plan.

        Args:
            limits: Whether to search the largest settings that fit.
        """
        n_parallel = self._options.get("n_parallel", 1)
        n_ctx, n_gpu_layers = self.choose()
        sizes = self.sizes(n_ctx, n_parallel, n_gpu_layers)
        found = self._plan(n_ctx, n_parallel, n_gpu_layers, sizes)
        if not limits:
            return found
        on_gpu, most = bool(self._devices), _MAX_PARALLEL
        if self._library is not None:
            most = min(most, compat.max_sequences(self._library))
        return replace(
            found,
            max_n_ctx=self._largest_n_ctx(n_parallel, n_gpu_layers, n_ctx),
            max_n_parallel=self._largest(lambda n: (n_ctx, n, n_gpu_layers), 1, most, 1),
            max_n_gpu_layers=self._largest_layers(n_ctx, n_parallel) if on_gpu else 0,
            notes=tuple(self.notes),
        )

    def choose(self) -> tuple[int, int]:
        """Return n_ctx, and the number of layers on GPUs, with `"auto"` resolved."""
        trained = self.n_ctx_train
        n_parallel = self._options.get("n_parallel", 1)
        n_ctx, layers = self._options.get("n_ctx"), self._options.get("n_gpu_layers", -1)
        least = default_n_ctx(trained)
        all_layers = self.n_layer if self._devices else 0
        n_layers = all_layers
        if layers != "auto" and layers >= 0:
            n_layers = min(layers, all_layers)
        if n_ctx is None:
            n_ctx = least
        elif n_ctx == "auto":
            n_ctx = self._largest_n_ctx(n_parallel, n_layers, trained or DEFAULT_N_CTX)
            n_ctx = max(n_ctx, least)
        elif n_ctx == 0:
            n_ctx = trained or DEFAULT_N_CTX
        if layers == "auto" and self._devices:
            n_layers = self._largest_layers(n_ctx, n_parallel)
        return n_ctx, n_layers

    def sizes(self, n_ctx: int, n_parallel: int, n_gpu_layers: int) -> _Sizes:
        """Return the sizes with these settings."""
        key = n_ctx, n_parallel, n_gpu_layers
        if key not in self._sizes:
            context = self._context_options(n_ctx, n_parallel, n_gpu_layers)
            found = self._estimated(context, n_gpu_layers)
            # C allocates these also while it measures.
            taken = _CELL_BYTES * context["n_ctx"] + sum(found.recurrent.values())
            if taken <= (self._memory(HOST)[0] or 2**32) // 4:
                lines = self._measure(context, n_gpu_layers)
                if lines is not None:
                    found = self._measured(lines, n_gpu_layers)
            self._sizes[key] = found
        return self._sizes[key]

    # Settings

    def _find_library(self) -> Library | None:
        try:
            return library_for(self.gguf)
        except LlamaError as e:
            self.notes.append(f"planned without a build of llama.cpp: {e}")
            return None

    def _check(self) -> None:
        options = self._options
        for name, least in (
            ("n_ctx", 0), ("n_parallel", 1), ("n_kv_tokens", 1), ("n_batch", 1), ("n_ubatch", 1),
            ("n_seq_max", 1), ("n_cpu_moe", 0),
        ):  # fmt: skip
            if name in options and options[name] != "auto":
                check_int(name, options[name], least)
        if "n_gpu_layers" in options and options["n_gpu_layers"] != "auto":
            check_int("n_gpu_layers", options["n_gpu_layers"], -INT32_MAX)
        if options.get("n_parallel", 1) > _MAX_PARALLEL:
            raise ValidationError(f"n_parallel={options['n_parallel']} is above {_MAX_PARALLEL}")
        for name in ("type_k", "type_v"):
            if name in options:
                check_choice(name, options[name], CACHE_TYPES)
        if "override_tensors" in options:
            check_type("override_tensors", options["override_tensors"], Mapping)
        adapters = options.get("adapters", ())
        if isinstance(adapters, str) or not isinstance(adapters, (Mapping, Sequence)):
            raise ValidationError(
                f"adapters must be files, or files and scales, got {shown(adapters)}"
            )

    def _context_options(self, n_ctx: int, n_parallel: int, n_gpu_layers: int) -> dict[str, Any]:
        """Return the arguments of `Context`, as the engines give them, with its defaults."""
        options = self._options
        found = {name: options[name] for name in _CONTEXT if name in options}
        shared = options.get("n_kv_tokens")
        n_seqs = n_parallel if n_parallel > 1 else options.get("n_seq_max", 1)
        if shared is not None:
            found["kv_unified"] = True
            n_seqs = n_sequences(n_parallel, shares_cells=True, keeps_states=self._keeps_states)
        found |= {"n_ctx": shared or n_ctx * n_parallel, "n_seq_max": n_seqs}
        if getattr(options.get("draft"), "reads_hidden", False):
            found["embeddings"] = True
        found["n_batch"] = max(found.get("n_batch", 2048), n_seqs)
        found = {**self._defaults(found, n_gpu_layers), **found}
        if self._projector is not None:
            least = n_together(self._projector, options.get("image_max_tokens"))
            if least > min(DEFAULT_N_UBATCH, found["n_ubatch"]):
                found |= {name: max(found[name], least) for name in ("n_batch", "n_ubatch")}
        return found

    def _defaults(self, context: Mapping[str, Any], n_gpu_layers: int) -> dict[str, Any]:
        """Return the defaults of a context that decide about its size."""
        if self._library is None:
            return {"n_ubatch": DEFAULT_N_UBATCH}
        defaults = context_defaults(
            self._library,
            self.gguf,
            offloads=n_gpu_layers != 0 and bool(self._devices),
            generates=_is_causal(self.gguf) and not context.get("embeddings"),
        )
        found: dict[str, Any] = {"n_ubatch": defaults.n_ubatch}
        if defaults.flash_attn is not None and context.get("type_v") in _FLOATS:
            found["flash_attn"] = defaults.flash_attn
        return found

    @property
    def _keeps_states(self) -> bool:
        keys = ("ssm.state_size", "shortconv.l_cache", "wkv.head_size")
        return any(f"{self.gguf.architecture}.{key}" in self.gguf.values for key in keys)

    def _model_options(self, n_gpu_layers: int) -> dict[str, Any]:
        found = {name: self._options[name] for name in _MODEL if name in self._options}
        if getattr(self._options.get("draft"), "reads_hidden", False):
            found["load_mtp"] = True
        return {**found, "n_gpu_layers": n_gpu_layers}

    def _usable_devices(self) -> dict[str, Device]:
        """Return the GPUs that hold layers, by name."""
        if self._library is None or not self._library.has("ggml_backend_dev_get_props"):
            return {}
        names = self._options.get("devices")
        found = {
            d.name: d
            for d in self._library.devices
            if d.type not in ("cpu", "accel") and (names is None or d.name in names)
        }
        if names is None and any(d.type == "gpu" for d in found.values()):
            found = {name: d for name, d in found.items() if d.type != "igpu"}
        if self._options.get("split_mode") == "none" and found:
            at = min(max(0, self._options.get("main_gpu", 0)), len(found) - 1)
            name = list(found)[at]
            found = {name: found[name]}
        return found

    # Sizes

    def _measure(self, context: Mapping[str, Any], n_gpu_layers: int) -> MemoryLines | None:
        if self._meter is None or self._meter.reason:
            return None
        found = self._meter.measure(self._model_options(n_gpu_layers), {**context, "n_threads": 1})
        if found is None:
            self.notes.append(f"estimated by formulae: {self._meter.reason}")
        return found

    def _measured(self, lines: MemoryLines, n_gpu_layers: int) -> _Sizes:
        n = max(lines.layers, default=0) + 1
        layers = [self._device_of(lines.layers.get(i, HOST)) for i in range(max(n, self.n_layer))]
        found = self._placed(layers)
        found.exact = True
        found.repacked, copied = repacked_bytes(self.gguf, layers, lines.n_not_repacked)
        found.weights[HOST] += copied
        for (kind, name), size in lines.caches.items():
            (found.recurrent if kind == "RS" else found.kv)[self._device_of(name)] += size
        for (kind, name), size in lines.buffers.items():
            if kind in ("compute", "output"):
                (found.compute if kind == "compute" else found.output)[self._device_of(name)] += (
                    size
                )
        return found

    def _estimated(self, context: Mapping[str, Any], n_gpu_layers: int) -> _Sizes:
        library = self._library
        free = {name: d.memory_free_bytes for name, d in self._devices.items()}
        shares = self._options.get("tensor_split")
        layers = assign_layers(self.n_layer - 1, n_gpu_layers, free, shares)
        found = self._placed(layers)
        layout = None if library is None else compat.memory_layout(library)
        options = dict(context)
        for name in ("offload_kqv", "op_offload", "pooling", "attention"):
            options.pop(name, None)
        splits = library is None or compat.separates_hybrids(library)
        hybrid = self._keeps_states and bool(
            self.gguf.arrays.get(f"{self.gguf.architecture}.attention.head_count_kv")
        )
        if hybrid and not splits and context["n_seq_max"] > 1:
            options["kv_unified"] = True
        sizes = context_sizes(self.gguf, layout=layout, **options)
        on_host = context.get("offload_kqv") is False
        for layer, (kv, states) in enumerate(zip(sizes.kv, sizes.recurrent, strict=True)):
            place = HOST if on_host else layers[layer]
            found.kv[place] += kv
            found.recurrent[place] += states
        for place in dict.fromkeys(layers):
            found.compute[place] += sizes.compute
        found.output[HOST] += sizes.output
        return found

    def _placed(self, layers: Sequence[str]) -> _Sizes:
        weights = weights_by_device(
            self.gguf,
            layers,
            self._options.get("override_tensors", {}),
            self._options.get("n_cpu_moe", 0),
            loads_mtp=bool(self._model_options(0).get("load_mtp")),
        )
        return _Sizes(weights=weights)

    def _device_of(self, name: str) -> str:
        """Return the device of a buffer type; `CUDA_Host` and the like are RAM."""
        if name.endswith("_Host"):
            return HOST
        found = [d for d in self._devices if name == d or name.startswith(f"{d}_")]
        if not found and len(self._devices) == 1 and not name.startswith("CPU"):
            only = next(iter(self._devices))
            if name.split("_")[0].rstrip("0123456789") == only.rstrip("0123456789"):
                found = [only]
        return max(found, key=len, default=HOST)

    def _extra_bytes(self) -> dict[str, Counter[str]]:
        """Return the kind -> device -> bytes of what is loaded beside the model."""
        found = {name: Counter[str]() for name in ("mmproj", "draft", "adapter", "other")}
        first = next(iter(self._devices), HOST)
        place = HOST if self._options.get("n_gpu_layers") == 0 else first
        if self._projector is not None:
            most = self._options.get("image_max_tokens")
            found["mmproj"][place] += projector_bytes(self._projector, most)
        for adapter in _adapter_paths(self._options):
            summary = check_gguf(Path(adapter).expanduser(), kind="LoRA")
            found["adapter"][place] += sum(t.size_bytes or 0 for t in summary.tensors)
        tokens, merges = (
            self.gguf.arrays.get(f"tokenizer.ggml.{name}") for name in ("tokens", "merges")
        )
        found["other"][HOST] = (
            _BASE_BYTES
            + _TOKEN_BYTES * (tokens.count if tokens else 0)
            + _MERGE_BYTES * (merges.count if merges else 0)
        )
        draft = self._options.get("draft")
        source = getattr(draft, "model_path", draft)
        if isinstance(source, (str, os.PathLike, Model)):
            options = {"n_gpu_layers": getattr(draft, "n_gpu_layers", -1)}
            self._draft_source: tuple[Any, dict[str, Any]] | None = source, options
        else:
            self._draft_source = None
            if getattr(draft, "reads_hidden", False):
                self.notes.append("the context of the multi-token head is not counted")
        return found

    def _draft_bytes(self, n_ctx: int, n_parallel: int) -> Counter[str]:
        """Return the bytes of the draft model, by formulae."""
        key = n_ctx, n_parallel
        found = self._drafts.setdefault(key, Counter())
        if self._draft_source is not None and not found:
            source, options = self._draft_source
            options = {**options, "n_ctx": n_ctx, "n_parallel": n_parallel}
            with Planner(source, options, measures=False) as planner:
                for device in planner.plan(limits=False).devices:
                    found[device.name] += device.total_bytes
        return found

    # Plans

    def _plan(self, n_ctx: int, n_parallel: int, n_gpu_layers: int, sizes: _Sizes) -> MemoryPlan:
        extras = {**self._extras, "draft": self._draft_bytes(n_ctx, n_parallel)}
        maps = self._options.get("use_mmap", True) and not self._options.get("use_mlock")
        devices = []
        for name in (HOST, *self._devices):
            device = self._devices.get(name)
            free, whole = self._memory(name)
            mapped = sizes.weights[HOST] - sizes.repacked if name == HOST and maps else 0
            found = DevicePlan(
                name=name,
                description=device.description if device is not None else "RAM",
                type=device.type if device is not None else "cpu",
                weights_bytes=sizes.weights[name],
                kv_bytes=sizes.kv[name],
                recurrent_bytes=sizes.recurrent[name],
                compute_bytes=sizes.compute[name],
                output_bytes=sizes.output[name],
                mmproj_bytes=extras["mmproj"][name],
                draft_bytes=extras["draft"][name],
                adapter_bytes=extras["adapter"][name],
                other_bytes=extras["other"][name],
                mapped_bytes=max(0, mapped),
                free_bytes=free,
                device_bytes=whole,
            )
            if self._loaded is not None:
                loaded = found.weights_bytes + found.other_bytes
                found = replace(found, loaded_bytes=loaded)
            devices.append(found)
        build = (
            ""
            if self._library is None
            else str(self._library.build.tag or self._library.build.version)
        )
        settings = {k: self._options[k] for k in _SHOWN if k in self._options}
        if "n_kv_tokens" in self._options:
            settings["n_kv_tokens"] = self._options["n_kv_tokens"]
        return MemoryPlan(
            path=str(self.files.paths[0]),
            build=build,
            exact=sizes.exact,
            n_ctx=n_ctx,
            n_parallel=n_parallel,
            n_ctx_train=self.n_ctx_train,
            n_gpu_layers=n_gpu_layers,
            n_layer=self.n_layer,
            devices=tuple(devices),
            settings=settings,
            notes=tuple(self.notes),
        )

    def _memory(self, name: str) -> tuple[int | None, int | None]:
        """Return the free bytes of a device and all of them; None: unknown."""
        if name == HOST and self._ram is not None:
            return self._ram.free_bytes, self._ram.total_bytes
        device = self._cpu() if name == HOST else self._devices[name]
        if device is None or not device.memory_total_bytes:
            return None, None
        return device.memory_free_bytes, device.memory_total_bytes

    def _cpu(self) -> Device | None:
        if self._library is None or not self._library.has("ggml_backend_dev_get_props"):
            return None
        return next((d for d in self._library.devices if d.type == "cpu"), None)

    # Searches

    def _largest(
        self, settings: Callable[[int], tuple[int, int, int]], low: int, high: int, step: int
    ) -> int:
        """Return the largest number of *low*, *low* + *step*, … and *high* that fits; 0: none.

        Args:
            settings: Number -> n_ctx, n_parallel, n_gpu_layers.
            low: The least.
            high: The most.
            step: The step.
        """
        high = max(low, high)
        if self._room(*settings(high)) >= 0:
            return high
        if self._room(*settings(low)) < 0:
            return 0
        n_steps = -(-(high - low) // step)  # the last may be shorter
        # Where the formulae put the limit, corrected by their error at the ends.
        errors = [
            self._room(*settings(n)) - self._room(*settings(n), estimated=True) for n in (low, high)
        ]

        def estimate(at: int) -> float:
            share = at / n_steps
            error = errors[0] * (1 - share) + errors[1] * share
            return self._room(*settings(low + at * step), estimated=True) + error

        first, last = 0, n_steps  # it fits, and it does not
        guess, width = _bisect(estimate, first, last), 1
        while last - first > 1:
            guess = min(max(guess, first + 1), last - 1)
            if self._room(*settings(low + guess * step)) >= 0:
                first, guess = guess, guess + width
            else:
                last, guess = guess, guess - width
            width *= 4  # the formulae are wrong by more
        return low + first * step

    def _room(
        self, n_ctx: int, n_parallel: int, n_gpu_layers: int, *, estimated: bool = False
    ) -> float:
        """Return the bytes that are left on the device with the least, beyond the margin."""
        if estimated:
            context = self._context_options(n_ctx, n_parallel, n_gpu_layers)
            sizes = self._estimated(context, n_gpu_layers)
        else:
            sizes = self.sizes(n_ctx, n_parallel, n_gpu_layers)
        devices = self._plan(n_ctx, n_parallel, n_gpu_layers, sizes).devices
        left = [
            d.free_bytes - min(_MARGIN_BYTES, d.free_bytes // 10) - d.needed_bytes
            for d in devices
            if d.free_bytes is not None
        ]
        return min(left, default=0)

    def _largest_n_ctx(self, n_parallel: int, n_gpu_layers: int, n_ctx: int) -> int:
        high = max(self.n_ctx_train, n_ctx)
        step = 256 if high >= 1024 else 32
        return self._largest(lambda n: (n, n_parallel, n_gpu_layers), min(step, high), high, step)

    def _largest_layers(self, n_ctx: int, n_parallel: int) -> int:
        return self._largest(lambda n: (n_ctx, n_parallel, n), 0, self.n_layer, 1)


def _bisect(room: Callable[[int], float], low: int, high: int) -> int:
    """Return the largest number from *low* with room, which falls; *high* has none."""
    while high - low > 1:
        middle = (low + high) // 2
        if room(middle) >= 0:
            low = middle
        else:
            high = middle
    return low


def _is_causal(gguf: GgufSummary) -> bool:
    return gguf.values.get(f"{gguf.architecture}.attention.causal") is not False


def _adapter_paths(options: Mapping[str, Any]) -> list[str]:
    found = [str(path) for path in options.get("adapters", ())]
    if "lora_path" in options:
        found.append(os.fspath(options["lora_path"]))
    return found

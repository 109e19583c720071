"""MemoryPlan: what a model takes on each device, and whether that fits."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields

from ..html_repr import shown_by

__all__ = ["DevicePlan", "MemoryPlan", "gib"]

_MIB = 2**20
_PARTS = {
    "weights_bytes": "weights",
    "kv_bytes": "KV cache",
    "recurrent_bytes": "states",
    "compute_bytes": "compute",
    "output_bytes": "output",
    "mmproj_bytes": "mmproj",
    "draft_bytes": "draft",
    "adapter_bytes": "adapters",
    "other_bytes": "other",
}
_ALWAYS = ("weights_bytes", "kv_bytes", "compute_bytes", "output_bytes")


@dataclass(frozen=True)
class DevicePlan:
    """The memory of one device, in bytes.

    Attributes:
        name: Name in llama.cpp, such as `CPU` (the RAM) or `CUDA0`.
        description: Name of the hardware.
        type: `cpu`, `gpu`, `igpu`, …
        weights_bytes: The weights, also those that are mapped.
        kv_bytes: The KV cache.
        recurrent_bytes: The states of recurrent layers.
        compute_bytes: The compute buffer.
        output_bytes: Logits and embeddings.
        mmproj_bytes: The projector for images and audio, and its compute buffer.
        draft_bytes: Everything that the draft model takes.
        adapter_bytes: LoRA adapters.
        other_bytes: The vocabulary and bookkeeping.
        mapped_bytes: Part of the weights that is mapped from the file: the system can drop these
            pages and read them again, which is slow.
        loaded_bytes: Part of the total that is allocated already, because the model is loaded.
        free_bytes: Free memory; of the RAM what the machine or a container leaves. None:
            unknown.
        device_bytes: Size of the memory; None: unknown.
    """

    name: str
    description: str = ""
    type: str = "cpu"
    weights_bytes: int = 0
    kv_bytes: int = 0
    recurrent_bytes: int = 0
    compute_bytes: int = 0
    output_bytes: int = 0
    mmproj_bytes: int = 0
    draft_bytes: int = 0
    adapter_bytes: int = 0
    other_bytes: int = 0
    mapped_bytes: int = 0
    loaded_bytes: int = 0
    free_bytes: int | None = None
    device_bytes: int | None = None

    @property
    def label(self) -> str:
        """Name for people: `RAM` for that of the CPU."""
        return "RAM" if self.type == "cpu" else self.name

    @property
    def parts(self) -> dict[str, int]:
        """The parts of the total in bytes, by their names for people."""
        return {label: getattr(self, name) for name, label in _PARTS.items()}

    @property
    def total_bytes(self) -> int:
        """Sum of all parts."""
        return sum(self.parts.values())

    @property
    def needed_bytes(self) -> int:
        """Part of the total that must still be allocated or mapped."""
        return self.total_bytes - self.loaded_bytes

    @property
    def missing_bytes(self) -> int:
        """What is missing to fit; 0: it fits, or the free memory is unknown."""
        return 0 if self.free_bytes is None else max(0, self.needed_bytes - self.free_bytes)

    @property
    def fits(self) -> bool:
        """Whether the free memory is enough."""
        return self.missing_bytes == 0

    def to_dict(self) -> dict[str, object]:
        """Return all numbers as a dict for JSON."""
        sums = {name: getattr(self, name) for name in ("total_bytes", "needed_bytes", "fits")}
        return {**asdict(self), **sums}


@dataclass(frozen=True)
class MemoryPlan:
    """What a model takes with given settings; `plan` makes it. `str` gives a table.

    Attributes:
        path: The first file of the model.
        build: The build of llama.cpp it is planned for; empty if none could be loaded.
        exact: Whether the build itself computed the sizes; else they are by formulae, within about
            10 %.
        n_ctx: Context size of each answer in tokens.
        n_parallel: Answers that are generated together.
        n_ctx_train: Context size that the model was trained for; 0: unknown.
        n_gpu_layers: Layers on a GPU, with the output layer.
        n_layer: Layers, with the output layer.
        devices: The RAM first, then the GPUs in use.
        max_n_ctx: The largest n_ctx that fits, up to n_ctx_train or n_ctx; 0: none.
        max_n_parallel: The largest n_parallel that fits; 0: none.
        max_n_gpu_layers: The largest n_gpu_layers that fits; 0: none, or there is no GPU.
        settings: The other settings that decide about the sizes.
        notes: What else should be known.
    """

    path: str
    build: str
    exact: bool
    n_ctx: int
    n_parallel: int
    n_ctx_train: int
    n_gpu_layers: int
    n_layer: int
    devices: tuple[DevicePlan, ...]
    max_n_ctx: int = 0
    max_n_parallel: int = 0
    max_n_gpu_layers: int = 0
    settings: dict[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether it fits on every device."""
        return all(device.fits for device in self.devices)

    @property
    def total_bytes(self) -> int:
        """Sum over all devices."""
        return sum(device.total_bytes for device in self.devices)

    @property
    def missing_bytes(self) -> int:
        """What is missing on the devices where it does not fit, together."""
        return sum(device.missing_bytes for device in self.devices)

    @property
    def verdict(self) -> str:
        """Whether it fits and by how much, in a sentence."""
        lacking = [d for d in self.devices if not d.fits]
        if lacking:
            parts = " and ".join(
                f"{gib(d.missing_bytes)} of {d.label} ({gib(d.needed_bytes)} needed, "
                f"{gib(d.free_bytes or 0)} free)"
                for d in lacking
            )
            return f"does not fit: it lacks {parts}"
        known = [d for d in self.devices if d.free_bytes is not None]
        parts = ", ".join(
            f"{gib((d.free_bytes or 0) - d.needed_bytes)} of {d.label}" for d in known
        )
        return f"fits, and leaves {parts}" if parts else "the free memory is unknown"

    def to_dict(self) -> dict[str, object]:
        """Return the plan as a dict for JSON."""
        found: dict[str, object] = {f.name: getattr(self, f.name) for f in fields(self)}
        found["devices"] = [device.to_dict() for device in self.devices]
        found["notes"] = list(self.notes)
        found["fits"], found["verdict"] = self.fits, self.verdict
        found["total_bytes"], found["missing_bytes"] = self.total_bytes, self.missing_bytes
        return found

    def __str__(self) -> str:
        return "\n".join([*self._head(), "", *self._table(), "", *self._foot()])

    _repr_html_ = shown_by("memory_plan")

    def _head(self) -> list[str]:
        trained = f" (trained for {self.n_ctx_train:,})" if self.n_ctx_train else ""
        how = "measured by" if self.exact else "estimated (about ±10 %) for"
        lines = [
            self.path,
            f"n_ctx {self.n_ctx:,}{trained}, n_parallel {self.n_parallel}, "
            f"{self.n_gpu_layers} of {self.n_layer} layers on a GPU; {how} "
            f"{self.build or 'the newest known build'}",
        ]
        if given := ", ".join(f"{k} {v}" for k, v in self.settings.items()):
            lines.append(given)
        return lines

    def _table(self) -> list[str]:
        shown = [
            name
            for name in _PARTS
            if name in _ALWAYS or any(getattr(d, name) for d in self.devices)
        ]
        rows = [["MiB", *(_PARTS[name] for name in shown), "total", "free", "of"]]
        for d in self.devices:
            numbers = [getattr(d, name) for name in shown]
            rows.append([d.label, *map(_mib, [*numbers, d.total_bytes, d.free_bytes])])
            rows[-1].append(_mib(d.device_bytes))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]

    def _foot(self) -> list[str]:
        lines = [f"It {self.verdict}." if self.fits or self.missing_bytes else self.verdict]
        limits = [f"n_ctx {self.max_n_ctx:,}", f"n_parallel {self.max_n_parallel}"]
        if len(self.devices) > 1:
            limits.append(f"n_gpu_layers {self.max_n_gpu_layers}")
        lines.append(f"Largest that fit, each alone: {', '.join(limits)}.")
        return lines + [f"Note: {note}" for note in self.notes]


def gib(n_bytes: int) -> str:
    """Return a size in words, in MiB below 1 GiB."""
    if n_bytes < 2**30:
        return f"{n_bytes / _MIB:,.0f} MiB"
    return f"{n_bytes / 2**30:,.1f} GiB"


def _mib(n_bytes: int | None) -> str:
    return "?" if n_bytes is None else f"{n_bytes / _MIB:,.1f}"

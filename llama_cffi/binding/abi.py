"""Which ABI class is this build? Evidence and verdict; nothing here is called through a guess.

A wrong declaration is a crash or silently wrong tokens, and no version call of llama.cpp tells
the layouts of its structs. So the build is measured: the functions its file exports, and which
bytes its default-params functions and `ggml_backend_dev_get_props` really write. Only functions
whose arguments are integers and pointers, with the same type in every known class, are called
before the verdict (`BOOTSTRAP`).
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..errors import AbiMismatchError

if TYPE_CHECKING:
    from ..cdefs import AbiClass, Layout

__all__ = ["BOOTSTRAP", "AbiIdentity", "Fit", "Measurement", "fit", "identify", "probe_params"]

# Declarations for what runs before the build is known. The default-params functions return their
# struct through a hidden pointer; `probe_params` calls them through casts of their address.
BOOTSTRAP = """
typedef struct { unsigned char bytes[512]; } probe_t;
void llama_model_default_params(void);
void llama_context_default_params(void);
void llama_model_quantize_default_params(void);
void llama_log_set(void (*callback)(int, const char *, void *), void *user_data);
void ggml_log_set(void (*callback)(int, const char *, void *), void *user_data);
void ggml_backend_load_all_from_path(const char *folder);
size_t ggml_backend_dev_count(void);
void *ggml_backend_dev_get(size_t index);
void ggml_backend_dev_get_props(void *device, void *props);
"""

_PROBED = {
    "llama_model_params": "llama_model_default_params",
    "llama_context_params": "llama_context_default_params",
    "llama_model_quantize_params": "llama_model_quantize_default_params",
}
_PROBE_BYTES = 512
_FILLS = (0xAA, 0x55)

Verdict = Literal["exact", "compatible", "user", "unknown"]


@dataclass(frozen=True)
class Measurement:
    """What a build says of itself, as measured.

    Attributes:
        exports: Names that the library file exports (`llama_*` at least).
        written: For each probed struct, one byte per byte of a 512-byte buffer: 1 = written.
        tag: The upstream tag that the build's packaging names, if any.
    """

    exports: frozenset[str]
    written: Mapping[str, bytes]
    tag: str | None = None


@dataclass(frozen=True)
class Fit:
    """How one class fits a measurement. It fits when `missing` and `layouts` are empty.

    Attributes:
        name: The class.
        missing: Declared `llama_` functions that the build does not export.
        extra: `llama_` functions that the build exports and the class does not declare.
        layouts: Struct name -> what differs.
    """

    name: str
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    layouts: Mapping[str, str]

    @property
    def fits(self) -> bool:
        """Whether every declared function is there and every probe agrees."""
        return not self.missing and not self.layouts

    def describe(self) -> str:
        """Say in one line what keeps the class from fitting, or what is new in the build."""
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} functions missing ({_some(self.missing)})")
        parts += [f"{name}: {what}" for name, what in self.layouts.items()]
        if self.extra:
            parts.append(f"{len(self.extra)} functions unknown to it ({_some(self.extra)})")
        return f"{self.name}: {'; '.join(parts) or 'fits'}"


@dataclass(frozen=True)
class AbiIdentity:
    """The verdict on a build, with its evidence as data.

    Attributes:
        verdict: `exact`: the build's tag is known and everything measured agrees with its class.
            `compatible`: an unknown build, everything measured agrees with a known class.
            `user`: declarations generated from the build's own headers, and measured to agree.
            `unknown`: nothing agrees; nothing is bound.
        abi_class: The class, None when unknown.
        measurement: What was measured.
        fits: Every class that was compared.
        forced: The class was asked for through `LLAMA_CFFI_ABI`.
    """

    verdict: Verdict
    abi_class: AbiClass | None
    measurement: Measurement
    fits: tuple[Fit, ...] = field(repr=False, default=())
    forced: bool = False

    @property
    def name(self) -> str | None:
        """Name of the class."""
        return self.abi_class.name if self.abi_class else None

    def as_dict(self) -> dict[str, object]:
        """Return verdict and evidence as plain JSON types."""
        sizes = {k: _extent(v) for k, v in self.measurement.written.items()}
        own = next((f for f in self.fits if f.name == self.name), None)
        return {
            "verdict": self.verdict,
            "class": self.name,
            "forced": self.forced,
            "tag": self.measurement.tag,
            "llama_functions": len(_llama(self.measurement.exports)),
            "unknown_functions": sorted(own.extra) if own else [],
            "struct_bytes": sizes,
            "classes_that_fit": [f.name for f in self.fits if f.fits],
            "classes_compared": len(self.fits),
        }

    def __str__(self) -> str:
        d = self.as_dict()
        structs = ", ".join(f"{k} {v}" for k, v in self.measurement_sizes().items())
        lines = [
            f"{self.verdict}: ABI class {self.name or 'none'}"
            + (" (forced by LLAMA_CFFI_ABI)" if self.forced else ""),
            f"  build tag    {self.measurement.tag or 'not named by its packaging'}",
            f"  functions    {d['llama_functions']} llama_* exported",
            f"  probed bytes {structs}",
        ]
        if d["unknown_functions"]:
            lines.append(f"  new to us    {', '.join(d['unknown_functions'])}")  # type: ignore[arg-type]
        return "\n".join(lines)

    def measurement_sizes(self) -> dict[str, int]:
        """Measured struct sizes in bytes, rounded up to 8."""
        return {k: _extent(v) for k, v in self.measurement.written.items()}


def probe_params(ffi: Any, lib: Any) -> dict[str, bytes]:
    """Measure which bytes the default-params functions write.

    The callee stores its result through a hidden pointer for every struct above 16 bytes, so a
    prefilled buffer shows exactly what it wrote, whatever the struct really is.

    Returns:
        Struct name -> 512 flags, 1 = written.
    C: llama_model_default_params, llama_context_default_params,
        llama_model_quantize_default_params
    """
    probe = _through_register if platform.machine().lower() in _X86 else _through_callback
    return {
        struct: _written(lambda fill, f=function: probe(ffi, ffi.addressof(lib, f), fill))
        for struct, function in _PROBED.items()
    }


def probe_device_props(ffi: Any, lib: Any) -> bytes | None:
    """Measure which bytes `ggml_backend_dev_get_props` writes; None when there is no device."""
    if not lib.ggml_backend_dev_count():
        return None
    device = lib.ggml_backend_dev_get(0)

    def call(fill: int) -> bytes:
        buffer = ffi.new("unsigned char[]", bytes([fill]) * _PROBE_BYTES)
        lib.ggml_backend_dev_get_props(device, buffer)
        return bytes(ffi.buffer(buffer))

    return _written(call)


_X86 = {"x86_64", "amd64", "x64"}


def _through_register(ffi: Any, function: Any, fill: int) -> bytes:
    """Pass the buffer as first argument: the hidden pointer of the x86-64 calling conventions."""
    buffer = ffi.new("unsigned char[]", bytes([fill]) * _PROBE_BYTES)
    ffi.cast("void (*)(void *)", function)(buffer)
    return bytes(ffi.buffer(buffer))


def _through_callback(ffi: Any, function: Any, fill: int) -> bytes:
    """Let libffi place the hidden pointer (AArch64: x8), with result memory filled just before.

    cffi allocates the result of a call and frees it after; a callback of the same signature called
    just before leaves its bytes in the block that the next call gets.
    """
    full = ffi.new("probe_t *", [bytes([fill]) * _PROBE_BYTES])[0]
    before = ffi.callback("probe_t (*)(void)", lambda: full)
    call = ffi.cast("probe_t (*)(void)", function)
    before()
    result = call()
    return bytes(ffi.buffer(ffi.addressof(result)))


def _written(call: Any) -> bytes:
    results = [call(fill) for fill in _FILLS]
    return bytes(
        not all(r[i] == fill for r, fill in zip(results, _FILLS, strict=True))
        for i in range(_PROBE_BYTES)
    )


def fit(abi_class: AbiClass, measured: Measurement) -> Fit:
    """Compare one class with what was measured."""
    exported = _llama(measured.exports)
    declared = _llama(abi_class.functions)
    layouts = {
        name: what
        for name, written in measured.written.items()
        if (what := _layout_difference(abi_class.layouts[name], written))
    }
    return Fit(
        abi_class.name,
        tuple(sorted(declared - exported - abi_class.optional)),
        tuple(sorted(exported - declared)),
        layouts,
    )


def _layout_difference(layout: Layout, written: bytes) -> str:
    """Say how the written bytes differ from the layout; empty when they agree.

    Compilers write the padding of a struct either not at all or all of it (builds up to b5640).
    """
    size = _extent(written)
    if size != layout.size:
        return f"{size} bytes measured, {layout.size} declared"
    body = written[: layout.size]
    if body in (layout.written, b"\x01" * layout.size):
        return ""
    at = [i for i, (a, b) in enumerate(zip(body, layout.written, strict=True)) if a != b]
    return f"{len(at)} of {size} bytes differ from the declared fields, first at offset {at[0]}"


def identify(
    measured: Measurement, classes: Iterable[AbiClass], *, forced: str | None = None
) -> AbiIdentity:
    """Choose the class whose declarations are proven to fit.

    Args:
        measured: Exports and probes of the build.
        classes: The known classes, oldest first.
        forced: Accept only this class; it must still fit as well as any other.

    Raises:
        AbiMismatchError: No class fits, or the forced one does not.
    """
    classes = {c.name: c for c in classes}
    fits = tuple(fit(c, measured) for c in classes.values())
    known = next((c.name for c in classes.values() if measured.tag in c.builds), None)
    fitting = [f for f in fits if f.fits]
    fewest = min((len(f.extra) for f in fitting), default=0)
    best = [f.name for f in fitting if len(f.extra) == fewest]
    # The tag decides between classes that measure alike; it never overrides a measurement.
    chosen = known if known in best else (best[-1] if best else None)
    if forced is not None:
        _check_forced(forced, chosen, best if known is None else [known], fits, measured)
        chosen = forced
    if chosen is None:
        raise AbiMismatchError(_unknown_message(measured, fits))
    verdict: Verdict = "exact" if chosen == known else "compatible"
    return AbiIdentity(verdict, classes[chosen], measured, fits, forced is not None)


def identify_user(measured: Measurement, generated: AbiClass) -> AbiIdentity:
    """Accept declarations generated from the build's own headers, if the probes agree.

    Raises:
        AbiMismatchError: The headers are not this build's.
    """
    result = fit(generated, measured)
    if not result.fits:
        raise AbiMismatchError(
            f"the headers do not belong to this build: {result.describe()}. "
            "Give the headers of the very build (LLAMA_CFFI_HEADERS=DIR)."
        )
    return AbiIdentity("user", generated, measured, (result,))


def _check_forced(
    forced: str,
    chosen: str | None,
    accepted: list[str],
    fits: tuple[Fit, ...],
    measured: Measurement,
) -> None:
    own = next((f for f in fits if f.name == forced), None)
    if own is None:
        names = ", ".join(f.name for f in fits)
        raise AbiMismatchError(f"LLAMA_CFFI_ABI={forced} is no known ABI class; known: {names}")
    if own.fits and forced in accepted:
        return
    why = own.describe()
    if own.fits and measured.tag:
        why = f"the build is {measured.tag}"
    better = f" {chosen} fits: unset LLAMA_CFFI_ABI to use it." if chosen else ""
    raise AbiMismatchError(
        f"LLAMA_CFFI_ABI={forced} does not fit this build: {why}. Nothing was called.{better}"
    )


def _unknown_message(measured: Measurement, fits: tuple[Fit, ...]) -> str:
    nearest = min(fits, key=lambda f: (len(f.layouts), len(f.missing), len(f.extra)), default=None)
    sizes = ", ".join(f"{k} {_extent(v)} bytes" for k, v in measured.written.items())
    return (
        f"no known ABI class fits this build of llama.cpp (tag {measured.tag or 'unknown'}, "
        f"{len(_llama(measured.exports))} llama_ functions, {sizes}). "
        + (f"Nearest is {nearest.describe()}. " if nearest else "")
        + "Nothing was called. What to do: LLAMA_CFFI_ABI=user generates declarations from the "
        "build's own headers (LLAMA_CFFI_HEADERS=DIR where they cannot be fetched); or unset "
        "LLAMA_CFFI_LIB and LLAMA_CFFI_BUILD to use the default build; or upgrade llama-cffi."
    )


def _extent(written: bytes) -> int:
    """Size in bytes of the struct that was written: the last written byte, rounded up to 8."""
    return -(-(written.rfind(1) + 1) // 8) * 8


def _llama(names: Iterable[str]) -> frozenset[str]:
    return frozenset(n for n in names if n.startswith("llama_"))


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:4])
    return shown + (", …" if len(names) > 4 else "")

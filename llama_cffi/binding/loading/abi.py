"""Which ABI class is this build? Evidence in, verdict out; pure.

A wrong declaration is a crash or silently wrong tokens, and no version call of llama.cpp tells
the layouts of its structs. So a build is measured (probe.py): the functions its files export, and
the bytes it really writes into the structs that are passed by value. Every class of the table is
compared with that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ... import cdefs
from ...errors import AbiMismatchError

if TYPE_CHECKING:
    from ...cdefs import AbiClass, Layout

__all__ = [
    "AbiIdentity",
    "Fit",
    "Measurement",
    "fit",
    "identify",
    "identify_user",
    "unknown_message",
]

Verdict = Literal["exact", "compatible", "user", "unknown"]


@dataclass(frozen=True)
class Measurement:
    """What a build says of itself, as measured.

    Attributes:
        exports: Names that the library files export: libllama and the ggml beside it.
        monolithic: ggml is linked into the library file; the linker drops functions that nothing
            in it uses, so a missing ggml function proves nothing.
        written: For each probed struct, one byte per byte of a 512-byte buffer: 1 = written.
        sizes: For structs of which only the size can be measured, that size in bytes.
        tag: The upstream tag that the build's packaging names, if any.
    """

    exports: frozenset[str]
    written: Mapping[str, bytes]
    tag: str | None = None
    monolithic: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Fit:
    """How one class fits a measurement. It fits when `missing` and `layouts` are empty.

    Attributes:
        name: The class.
        missing: Declared functions that every build of the class exports and this one does not.
        foreign: Exported functions that other classes declare and this one does not: the build
            is another class, or one between two.
        new: Exported `llama_` functions that no known class declares.
        layouts: Struct name -> what differs.
    """

    name: str
    missing: tuple[str, ...]
    foreign: tuple[str, ...]
    new: tuple[str, ...]
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
        if self.foreign:
            parts.append(f"{len(self.foreign)} functions of other classes ({_some(self.foreign)})")
        if self.new:
            parts.append(f"{len(self.new)} functions that no class has ({_some(self.new)})")
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

    @property
    def struct_bytes(self) -> dict[str, int]:
        """Measured struct sizes in bytes, rounded up to 8."""
        measured = {k: _extent(v) for k, v in self.measurement.written.items()}
        return {**measured, **self.measurement.sizes}

    @property
    def new_functions(self) -> tuple[str, ...]:
        """`llama_` functions of the build that no known class declares; they are not bound."""
        return next((f.new for f in self.fits if f.name == self.name), ())

    def as_dict(self) -> dict[str, object]:
        """Return verdict and evidence as plain JSON types."""
        return {
            "verdict": self.verdict,
            "class": self.name,
            "forced": self.forced,
            "tag": self.measurement.tag,
            "exported_functions": len(_api(self.measurement.exports)),
            "new_functions": list(self.new_functions),
            "struct_bytes": self.struct_bytes,
            "classes_that_fit": [f.name for f in self.fits if f.fits],
            "classes_compared": len(self.fits),
        }

    def __str__(self) -> str:
        structs = ", ".join(f"{k} {v}" for k, v in self.struct_bytes.items())
        fitting = ", ".join(f.name for f in self.fits if f.fits)
        lines = [
            f"{self.verdict}: ABI class {self.name or 'none'}"
            + (" (forced by LLAMA_CFFI_ABI)" if self.forced else ""),
            f"  build tag    {self.measurement.tag or 'not named by its packaging'}",
            f"  functions    {len(_api(self.measurement.exports))} exported",
            f"  probed bytes {structs}",
            f"  classes      {fitting} of {len(self.fits)} compared",
        ]
        if self.new_functions:
            lines.append(f"  not bound    {', '.join(self.new_functions)} (in no known class)")
        return "\n".join(lines)


def fit(abi_class: AbiClass, measured: Measurement, known: frozenset[str] = frozenset()) -> Fit:
    """Compare one class with what was measured.

    Args:
        abi_class: The class.
        measured: The build.
        known: Every function that any known class declares.
    """
    exported, declared = measured.exports, abi_class.functions
    layouts = {
        name: what
        for name, written in measured.written.items()
        if (what := _layout_difference(abi_class.layouts[name], written))
    }
    for name, size in measured.sizes.items():
        if size != abi_class.layouts[name].size:
            declared_bytes = abi_class.layouts[name].size
            layouts[name] = f"{size} bytes measured, {declared_bytes} declared"
    # ggml exports internal helpers under its prefix too; only libllama's are all declared.
    llama = {n for n in exported if n.startswith("llama_")}
    missing = declared - exported - abi_class.optional
    if measured.monolithic:
        missing = frozenset(n for n in missing if n.startswith("llama_"))
    return Fit(
        abi_class.name,
        missing=tuple(sorted(missing)),
        foreign=tuple(sorted((exported & known) - declared - cdefs.EXPORTED_EARLY)),
        new=tuple(sorted(llama - known - declared)),
        layouts=layouts,
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
    by_name = {c.name: c for c in classes}
    functions = frozenset(f for c in by_name.values() for f in c.functions)
    fits = tuple(fit(c, measured, functions) for c in by_name.values())
    known = next((c.name for c in by_name.values() if measured.tag in c.builds), None)
    fitting = [f for f in fits if f.fits]
    fewest = min((len(f.foreign) for f in fitting), default=0)
    best = [f.name for f in fitting if len(f.foreign) == fewest]
    # The tag decides between classes that measure alike; it never overrides a measurement.
    chosen = known if known in best else (best[-1] if best else None)
    if forced is not None:
        _check_forced(forced, chosen, best if known is None else [known], fits, measured)
        chosen = forced
    if chosen is None:
        raise AbiMismatchError(unknown_message(measured, fits))
    verdict: Verdict = "exact" if chosen == known else "compatible"
    return AbiIdentity(verdict, by_name[chosen], measured, fits, forced is not None)


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


def unknown_message(measured: Measurement, fits: tuple[Fit, ...]) -> str:
    """Say that no class fits, which is nearest and what to do."""
    nearest = min(
        fits, key=lambda f: (len(f.layouts), len(f.missing), len(f.foreign)), default=None
    )
    sizes = ", ".join(f"{k} {_extent(v)} bytes" for k, v in measured.written.items())
    return (
        f"no known ABI class fits this build of llama.cpp (tag {measured.tag or 'unknown'}, "
        f"{len(_api(measured.exports))} functions, {sizes}). "
        + (f"Nearest is {nearest.describe()}. " if nearest else "")
        + "Nothing was called. What to do: LLAMA_CFFI_ABI=user generates declarations from the "
        "build's own headers (LLAMA_CFFI_HEADERS=DIR where they cannot be fetched); or unset "
        "LLAMA_CFFI_LIB and LLAMA_CFFI_BUILD to use the default build; or upgrade llama-cffi."
    )


def _extent(written: bytes) -> int:
    """Size in bytes of the struct that was written: the last written byte, rounded up to 8."""
    return -(-(written.rfind(1) + 1) // 8) * 8


def _api(names: Iterable[str]) -> frozenset[str]:
    return frozenset(n for n in names if n.startswith(("llama_", "ggml_", "gguf_", "mtmd_")))


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:4])
    return shown + (", …" if len(names) > 4 else "")

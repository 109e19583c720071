"""Identify the ABI class of a build: evidence in, verdict out; pure functions.

A wrong declaration crashes or silently gives wrong tokens, and no version function of llama.cpp
reports the layout of its structs. So a build is measured (probe.py): the functions that its files
export, and the bytes that it really writes into structs passed by value. Every known class is
compared with that. whisper.cpp is identified by the same rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ... import cdefs
from ...errors import AbiMismatchError
from ...html_repr import shown_by

if TYPE_CHECKING:
    from ...cdefs import AbiClass, Layout

__all__ = [
    "LLAMA",
    "WHISPER",
    "AbiIdentity",
    "ClassMatch",
    "Measurement",
    "Project",
    "identify",
    "identify_user",
    "layout_difference",
    "match_class",
    "unknown_message",
]

Verdict = Literal["exact", "compatible", "user", "unknown"]


@dataclass(frozen=True)
class Project:
    """A project whose builds are identified.

    Attributes:
        name: Its name.
        prefix: The prefix of its own functions, all of which its headers declare.
        advice: What to do about a build that no class fits.
    """

    name: str
    prefix: str
    advice: str


LLAMA = Project(
    "llama.cpp",
    "llama_",
    "set LLAMA_CFFI_ABI=user to generate declarations from the build's own headers (and "
    "LLAMA_CFFI_HEADERS=DIR if they cannot be fetched); or unset LLAMA_CFFI_LIB and "
    "LLAMA_CFFI_BUILD to use the default build; or upgrade llama-cffi.",
)
WHISPER = Project(
    "whisper.cpp",
    "whisper_",
    "use a libwhisper of v1.6.0 to v1.9.3, such as the one in pywhispercpp 1.5.1; or upgrade "
    "llama-cffi.",
)


@dataclass(frozen=True)
class Measurement:
    """The measurements of a build.

    Attributes:
        exports: Names that the library files export: libllama and the ggml beside it.
        monolithic: ggml is linked into the library file. The linker drops functions that nothing
            in it uses, so a missing ggml function proves nothing.
        written: For each probed struct, one byte per byte of a 512-byte buffer: 1 = written.
        sizes: Size in bytes of structs of which only the size can be measured.
        tag: The upstream tag that the build's packaging names, if any.
    """

    exports: frozenset[str]
    written: Mapping[str, bytes]
    tag: str | None = None
    monolithic: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassMatch:
    """A class compared with a measurement. It fits if `missing` and `layouts` are empty.

    Attributes:
        name: The class.
        missing: Declared functions that every build of the class exports and this one does not.
        foreign: Exported functions that other classes declare and this one does not: the build
            belongs to another class, or lies between two.
        new: Exported functions of the project that no known class declares.
        layouts: Struct name -> the difference.
    """

    name: str
    missing: tuple[str, ...]
    foreign: tuple[str, ...]
    new: tuple[str, ...]
    layouts: Mapping[str, str]

    @property
    def fits(self) -> bool:
        """Whether every declared function exists and every probe agrees."""
        return not self.missing and not self.layouts

    def describe(self) -> str:
        """Describe in one line why the class does not fit, or what is new in the build."""
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} functions missing ({_some(self.missing)})")
        parts += [f"{name}: {difference}" for name, difference in self.layouts.items()]
        if self.foreign:
            parts.append(f"{len(self.foreign)} functions of other classes ({_some(self.foreign)})")
        if self.new:
            parts.append(f"{len(self.new)} functions that no class has ({_some(self.new)})")
        return f"{self.name}: {'; '.join(parts) or 'fits'}"


@dataclass(frozen=True)
class AbiIdentity:
    """The verdict on a build, with its evidence as data.

    Attributes:
        verdict: `exact`: the build's tag is known, and all measurements agree with its class.
            `compatible`: the build is unknown, and all measurements agree with a known class.
            `user`: declarations were generated from the build's own headers, and all
            measurements agree. `unknown`: no class agrees, and nothing is bound.
        abi_class: The class; None if unknown.
        measurement: The measurements.
        matches: Every class, compared with them.
        forced: Whether the class was chosen by `LLAMA_CFFI_ABI`.
    """

    verdict: Verdict
    abi_class: AbiClass | None
    measurement: Measurement
    matches: tuple[ClassMatch, ...] = field(repr=False, default=())
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
        """Functions of the project that no known class declares; they are not bound."""
        return next((m.new for m in self.matches if m.name == self.name), ())

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
            "classes_that_fit": [m.name for m in self.matches if m.fits],
            "classes_compared": len(self.matches),
        }

    def __str__(self) -> str:
        structs = ", ".join(f"{k} {v}" for k, v in self.struct_bytes.items())
        fitting = ", ".join(m.name for m in self.matches if m.fits)
        lines = [
            f"{self.verdict}: ABI class {self.name or 'none'}"
            + (" (forced by LLAMA_CFFI_ABI)" if self.forced else ""),
            f"  build tag    {self.measurement.tag or 'not named by its packaging'}",
            f"  functions    {len(_api(self.measurement.exports))} exported",
            f"  probed bytes {structs}",
            f"  classes      {fitting} of {len(self.matches)} compared",
        ]
        if self.new_functions:
            lines.append(f"  not bound    {', '.join(self.new_functions)} (in no known class)")
        return "\n".join(lines)

    _repr_html_ = shown_by("abi")


def match_class(
    abi_class: AbiClass,
    measured: Measurement,
    known: frozenset[str] = frozenset(),
    project: Project = LLAMA,
) -> ClassMatch:
    """Compare one class with the measurements.

    Args:
        abi_class: The class.
        measured: The build.
        known: Every function that any known class declares.
        project: Whose class it is.
    """
    exported, declared = measured.exports, abi_class.functions
    layouts = {
        name: difference
        for name, written in measured.written.items()
        if (difference := layout_difference(abi_class.layouts[name], written))
    }
    for name, size in measured.sizes.items():
        if size != abi_class.layouts[name].size:
            declared_bytes = abi_class.layouts[name].size
            layouts[name] = f"{size} bytes measured, {declared_bytes} declared"
    # ggml also exports internal helpers under its prefix; only the project's are all declared.
    own = {n for n in exported if n.startswith(project.prefix)}
    missing = declared - exported - abi_class.optional
    if measured.monolithic:
        missing = frozenset(n for n in missing if n.startswith(project.prefix))
    return ClassMatch(
        abi_class.name,
        missing=tuple(sorted(missing)),
        foreign=tuple(sorted((exported & known) - declared - cdefs.EXPORTED_EARLY)),
        new=tuple(sorted(own - known - declared)),
        layouts=layouts,
    )


def layout_difference(layout: Layout, written: bytes) -> str:
    """Describe how the written bytes differ from the layout; empty if they agree.

    Compilers write either none or all of the padding of a struct (builds up to b5640).
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
    measured: Measurement,
    classes: Iterable[AbiClass],
    *,
    forced: str | None = None,
    project: Project = LLAMA,
) -> AbiIdentity:
    """Choose the class whose declarations are proven to fit.

    Args:
        measured: The measurements of the build.
        classes: The known classes, oldest first.
        forced: Accept only this class, which must still fit as well as any other.
        project: Whose classes they are.

    Raises:
        AbiMismatchError: No class fits, or the forced one does not.
    """
    by_name = {c.name: c for c in classes}
    functions = frozenset(f for c in by_name.values() for f in c.functions)
    matches = tuple(match_class(c, measured, functions, project) for c in by_name.values())
    known = next((c.name for c in by_name.values() if measured.tag in c.builds), None)
    fitting = [m for m in matches if m.fits]
    fewest = min((len(m.foreign) for m in fitting), default=0)
    best = [m.name for m in fitting if len(m.foreign) == fewest]
    # The tag decides between classes that measure the same; it never overrides a measurement.
    chosen = known if known in best else (best[-1] if best else None)
    if forced is not None:
        _check_forced(forced, chosen, best if known is None else [known], matches, measured)
        chosen = forced
    if chosen is None:
        raise AbiMismatchError(unknown_message(measured, matches, project))
    verdict: Verdict = "exact" if chosen == known else "compatible"
    return AbiIdentity(verdict, by_name[chosen], measured, matches, forced is not None)


def identify_user(measured: Measurement, generated: AbiClass) -> AbiIdentity:
    """Accept declarations generated from the build's own headers, if the probes agree.

    Raises:
        AbiMismatchError: The headers belong to another build.
    """
    match = match_class(generated, measured)
    if not match.fits:
        raise AbiMismatchError(
            f"the headers do not belong to this build: {match.describe()}. "
            "Use the headers of exactly this build (LLAMA_CFFI_HEADERS=DIR)."
        )
    return AbiIdentity("user", generated, measured, (match,))


def _check_forced(
    forced: str,
    chosen: str | None,
    accepted: list[str],
    matches: tuple[ClassMatch, ...],
    measured: Measurement,
) -> None:
    match = next((m for m in matches if m.name == forced), None)
    if match is None:
        names = ", ".join(m.name for m in matches)
        raise AbiMismatchError(f"LLAMA_CFFI_ABI={forced} is not a known ABI class; known: {names}")
    if match.fits and forced in accepted:
        return
    reason = match.describe()
    if match.fits and measured.tag:
        reason = f"the build is {measured.tag}"
    better = f" {chosen} fits: unset LLAMA_CFFI_ABI to use it." if chosen else ""
    raise AbiMismatchError(
        f"LLAMA_CFFI_ABI={forced} does not fit this build: {reason}. Nothing was called.{better}"
    )


def unknown_message(
    measured: Measurement, matches: tuple[ClassMatch, ...], project: Project = LLAMA
) -> str:
    """Return the message for a build that no class fits: the nearest class and what to do."""
    nearest = min(
        matches, key=lambda m: (len(m.layouts), len(m.missing), len(m.foreign)), default=None
    )
    sizes = ", ".join(f"{k} {_extent(v)} bytes" for k, v in measured.written.items())
    return (
        f"no known ABI class fits this build of {project.name} (tag {measured.tag or 'unknown'}, "
        f"{len(_api(measured.exports))} functions, {sizes}). "
        + (f"Nearest is {nearest.describe()}. " if nearest else "")
        + f"Nothing was called. What to do: {project.advice}"
    )


def _extent(written: bytes) -> int:
    """Return the size in bytes of a written struct: its last written byte, rounded up to 8."""
    return -(-(written.rfind(1) + 1) // 8) * 8


def _api(names: Iterable[str]) -> frozenset[str]:
    return frozenset(
        n for n in names if n.startswith(("llama_", "ggml_", "gguf_", "mtmd_", "whisper_"))
    )


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:4])
    return shown + (", …" if len(names) > 4 else "")

"""Whether the libmtmd of a build can be used: its own identity, beside that of libllama.

Its structs moved more often than those of llama.h, and it may come in a file of its own. So its
exports and the parameters that it writes are compared with the declarations, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING

from .abi import layout_difference

if TYPE_CHECKING:
    from ...cdefs import AbiClass
    from ...libs_fetch import InstalledBuild
    from .abi import AbiIdentity

__all__ = ["has_mtmd", "mtmd_beside", "why_unusable"]

_FILE = re.compile(r"(lib)?mtmd(\.[^-]*)?\.(so|dylib|dll)[.\d]*")
_PREFIX, _HELPER = "mtmd_", "mtmd_helper_"
_FIRST, _FIRST_FUNCTION = "b9842", "mtmd_batch_init"
_PARAMS = "mtmd_context_params"
# Passed to or from C, beside the parameters.
_STRUCTS = ("mtmd_input_text", "mtmd_decoder_pos", "mtmd_caps")
_ELSEWHERE = (
    f"llama.cpp's own releases have it from {_FIRST} on: `llama-cffi libs fetch github:b11549`, "
    "and LLAMA_CFFI_BUILD=github:b11549"
)


def mtmd_beside(build: InstalledBuild) -> Path | None:
    """Return the file of libmtmd in the folder of a build; None if there is none."""
    files = sorted(p for p in build.folder.iterdir() if _FILE.fullmatch(p.name) and p.is_file())
    return files[0].resolve() if files else None


def has_mtmd(build: InstalledBuild) -> bool:
    """Return whether a build has libmtmd, in a file of its own or in the library's; not loaded."""
    if mtmd_beside(build) is not None:
        return True
    with Path(build.library).open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        return data.find(b"mtmd_init_from_file\0") >= 0


def why_unusable(identity: AbiIdentity, written: bytes | None, classes: Iterable[AbiClass]) -> str:
    """Return why pictures and sounds do not work with a build; empty if they do.

    Args:
        identity: The verdict on the build.
        written: What `mtmd_context_params_default` writes: 512 flags, 1 = written.
        classes: Every known class.
    """
    abi_class = identity.abi_class
    assert abi_class is not None
    exported = _mtmd(identity.measurement.exports)
    if not exported or written is None:
        return f"this build of llama.cpp has no libmtmd; {_ELSEWHERE}"
    if _FIRST_FUNCTION not in abi_class.functions:
        return f"the libmtmd of this build (ABI class {abi_class.name}) is too old; {_ELSEWHERE}"
    if difference := layout_difference(abi_class.layouts[_PARAMS], written):
        return f"libmtmd does not fit ABI class {abi_class.name}: {_PARAMS}: {difference}"
    if identity.verdict != "compatible":
        return ""
    # No tag names the build, and neither symbols nor values of libllama reveal libmtmd's.
    fitting = [c for c in classes if _fits(c, exported, written)]
    if abi_class not in fitting:
        return (
            f"libmtmd does not fit ABI class {abi_class.name}: its {len(exported)} functions are "
            "not those of the class"
        )
    for struct in _STRUCTS:
        if len({c.layouts[struct] for c in fitting}) > 1:
            return f"libmtmd fits several ABI classes with different layouts of {struct}"
    return ""


def _mtmd(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name for name in names if name.startswith(_PREFIX))


def _fits(abi_class: AbiClass, exported: frozenset[str], written: bytes) -> bool:
    declared = _mtmd(abi_class.functions)
    # A library may leave out helpers, such as those for video.
    needed = {name for name in declared if not name.startswith(_HELPER)}
    return needed <= exported <= declared and not layout_difference(
        abi_class.layouts[_PARAMS], written
    )

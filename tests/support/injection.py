"""Ctrl-C, or anything else, at each point of some functions where Python checks for signals."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

__all__ = ["interrupted_everywhere"]

# The interpreter checks for signals after these instructions only.
_CHECKS = ("CALL", "RESUME", "GEN_START", "JUMP_BACKWARD", "JUMP_ABSOLUTE")


def _ctrl_c() -> None:
    raise KeyboardInterrupt


def interrupted_everywhere(
    run: Callable[[], object], *functions: Any, by: Callable[[], object] = _ctrl_c
) -> Iterator[int]:
    """Call *run* repeatedly, and in it *by* one point later each time.

    Yields the index of the point after each interrupted call, and ends when a call completes. Only
    points in *functions* count.
    """
    codes: set[CodeType] = {getattr(f, "__wrapped__", f).__code__ for f in functions}
    for target in range(1, 10_000):
        seen, last = 0, ""

        def trace(frame: FrameType, event: str, _: object, target: int = target) -> Any:
            nonlocal seen, last
            if frame.f_code not in codes:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                before, last = last, dis.opname[frame.f_code.co_code[frame.f_lasti]]
                if before.startswith(_CHECKS):
                    seen += 1
                    if seen == target:
                        by()
            return trace

        tracing = sys.gettrace()
        # Python 3.12.1: `settrace` enables opcode events only if a frame requested them before.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(trace)
        try:
            run()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(tracing)
        if seen < target:
            return
        yield target

"""Ctrl-C at every place of some functions where Python looks for signals, one after the other."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

__all__ = ["interrupted_everywhere"]

# The interpreter looks after these instructions, and in no other place.
_LOOKS = ("CALL", "RESUME", "GEN_START", "JUMP_BACKWARD", "JUMP_ABSOLUTE")


def interrupted_everywhere(run: Callable[[], object], *functions: Any) -> Iterator[int]:
    """Call *run* again and again with a KeyboardInterrupt one place further on.

    Yields the number of the place after each call that was interrupted, and ends when *run* came
    through without. Only places in *functions* count.
    """
    codes: set[CodeType] = {getattr(f, "__wrapped__", f).__code__ for f in functions}
    for wanted in range(1, 10_000):
        seen, last = 0, ""

        def trace(frame: FrameType, event: str, _: object, wanted: int = wanted) -> Any:
            nonlocal seen, last
            if frame.f_code not in codes:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                before, last = last, dis.opname[frame.f_code.co_code[frame.f_lasti]]
                if before.startswith(_LOOKS):
                    seen += 1
                    if seen == wanted:
                        raise KeyboardInterrupt
            return trace

        tracing = sys.gettrace()
        # Python 3.12.1: `settrace` turns opcode events on only if a frame asked for them before.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(trace)
        try:
            run()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(tracing)
        if seen < wanted:
            return
        yield wanted

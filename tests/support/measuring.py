"""Code for child processes that measure their own memory."""

from __future__ import annotations

__all__ = ["MEASURE"]

MEASURE = """
import ctypes, gc, sys

class MallInfo(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = MallInfo

def measure():
    gc.collect()
    with open("/proc/self/status") as status:
        rss = next(int(l.split()[1]) for l in status if l.startswith("VmRSS"))
    info = mallinfo2()
    return {"held": info.uordblks + info.hblkhd, "blocks": sys.getallocatedblocks(),
            "rss_kb": rss}
"""

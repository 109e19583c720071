"""Check whether generation works on this machine, and find out why if not.

Returns the findings as data, which the command line prints.

    examine.py          runs all checks in order, from the machine to the decoded prompt
    system.py           OS, CPU, memory, Python, CUDA and Vulkan, without loading llama.cpp
    backends.py         which backend files were registered, and why the others were not
    child_process.py    runs child_main.py in child processes, so that a crash is a finding
    child_main.py       runs in the child: load the library, generate, dlopen
"""

from .examine import examine, works
from .finding import Check

__all__ = ["Check", "examine", "works"]

"""Does generation work here, and if not, why: findings as data. The command line prints them.

examine.py    the checks in order, from the machine to the decoded prompt
machine.py    OS, CPU, memory, Python, CUDA and Vulkan, without loading llama.cpp
backends.py   which backend files registered, and why the others did not
children.py   runs inside.py in child processes, so that a crash is a finding
inside.py     what runs there: load, generate, dlopen
"""

from .examine import examine, works
from .finding import Check

__all__ = ["Check", "examine", "works"]

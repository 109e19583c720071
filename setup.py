"""Find the packages; pyproject.toml has everything else.

`packages.find` cannot name the two folders that are installed under another name.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["llama_cffi", "llama_cffi.*"]),
        "llama_cffi.cdefs",
        "llama_cffi.libs_fetch",
    ]
)

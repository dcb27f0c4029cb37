"""Builds llama.cpp for a device: once per release, flags and machine, into the user's cache.

PyPI has llama-cpp-python as source only. Its wheel and llama.cpp's own tools come from that one pinned
source and are compiled with the same flags, so that a benchmark against the tools compares like with like.
The wheel alone has edgekit's attention kernel: the tools stay what others run.

    release.py   which release, and its source on disk
    attention.py edgekit's own attention kernel, put into the source of the wheel
    flags.py     CPU features that truly execute -> CMake options
    wheel.py     the wheel: cached, built, proven, installed
    proof.py     runs a small model with a new wheel in a child process
    tools.py     llama-bench, llama-server, llama-quantize
"""

from __future__ import annotations

from export.toolchain.flags import FlagSet, choose_flag_sets
from export.toolchain.release import LLAMA_CPP_PYTHON
from export.toolchain.tools import TOOL_NAMES, build_tools
from export.toolchain.wheel import BuiltWheel, build_wheel, install_wheel

__all__ = [
    "LLAMA_CPP_PYTHON",
    "TOOL_NAMES",
    "BuiltWheel",
    "FlagSet",
    "build_tools",
    "build_wheel",
    "choose_flag_sets",
    "install_wheel",
]

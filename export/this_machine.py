"""What a profile that means the machine at hand leaves open, read from it."""

from __future__ import annotations

import psutil

from edgekit.engine.llama_library import built_isa
from edgekit.profiles import DeviceProfile

__all__ = ["of_this_machine"]


def of_this_machine(profile: DeviceProfile) -> DeviceProfile:
    """The profile with this machine's memory, and with what its llama.cpp is built for.

    A profile that states its memory means another device: it is returned as it is.
    """
    if profile.memory.total_mib is not None:
        return profile
    return profile.resolved(memory_mib=int(psutil.virtual_memory().total // 2**20), isa=built_isa())

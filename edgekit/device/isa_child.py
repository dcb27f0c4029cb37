"""Runs machine code that may end the process. Started as a script by `edgekit.device.isa`, never imported.

Reads a JSON list of [name, code in hex, result, element, rounds, threads, tiles] from standard input and
writes `run NAME` before and `done NAME RIGHT` (0 or 1) after each, so that the parent knows which one was
fatal.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import struct
import sys
import threading

SYS_ARCH_PRCTL = 158
ARCH_REQ_XCOMP_PERM = 0x1023  # Linux, Documentation/arch/x86/xstate.rst
XFEATURE_XTILEDATA = 18

# Palette 1; tiles 0 to 2 have 16 rows of 64 bytes. Intel SDM volume 1, 18.5.
TILE_CONFIG = struct.pack("<BB14x8H16x8B8x", 1, 0, *(64, 64, 64, 0, 0, 0, 0, 0), *(16, 16, 16, 0, 0, 0, 0, 0))
DATA_BYTES = 4096

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


def executable(code: bytes) -> int:
    # A file mapping: the kernel makes its pages visible to the instruction cache (aarch64 does not by
    # itself), and it is never writable and executable at once.
    file = os.memfd_create("isa-routine")
    os.write(file, code)
    address = libc.mmap(None, len(code), mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE, file, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "executable memory is refused")
    return int(address)


def right(code: bytes, result: int, element: int, rounds: int, threads: int, tiles: bool) -> bool:
    if tiles and libc.syscall(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) != 0:
        return False
    function = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32)(executable(code))
    results: list[int] = []

    def work() -> None:
        data = TILE_CONFIG + struct.pack("<H", element) * ((DATA_BYTES - len(TILE_CONFIG)) // 2)
        buffer = ctypes.create_string_buffer(data, DATA_BYTES)
        results.append(function(ctypes.addressof(buffer), rounds))

    workers = [threading.Thread(target=work) for _ in range(threads - 1)]
    for worker in workers:
        worker.start()
    work()
    for worker in workers:
        worker.join()
    return results == [result] * threads


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, code, *rest in json.load(sys.stdin):
        os.write(1, f"run {name}\n".encode())
        os.write(1, f"done {name} {right(bytes.fromhex(code), *rest):d}\n".encode())


if __name__ == "__main__":
    main()

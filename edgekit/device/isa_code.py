"""The shortest programs that use an instruction set and give a number that only it can give.

Each is a C function `uint32_t f(void *data, uint32_t rounds)` in machine code, so that a device needs no
compiler. The code was assembled with GNU as from the text beside it (tests assemble it again and compare).
The keys are the names that /proc/cpuinfo uses under `flags` (x86_64) and `Features` (aarch64).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

__all__ = ["ROUTINES", "Routine"]


@dataclass(frozen=True, slots=True)
class Routine:
    """A function in machine code.

    `data` points to 4096 bytes: a tile configuration (64 bytes) and then `element` (2 bytes, little endian)
    repeated. AMX runs for many `rounds` and on several threads at once, so that it is interrupted: what has
    to survive is the tile state.
    """

    assembly: str
    """One instruction between semicolons; Intel syntax on x86_64."""
    code: bytes
    result: int
    """What the function returns where the instruction set works."""
    element: int = 0x0101
    rounds: int = 1
    threads: int = 1
    tiles: bool = False
    """Uses AMX tiles, which a process asks the kernel for."""


_X86_64: Final = {
    "sse4_2": Routine(
        assembly="mov ecx, 1; xor eax, eax; crc32 eax, ecx; ret",
        code=bytes.fromhex("b90100000031c0f20f38f1c1c3"),
        result=0xDD45AAB8,
    ),
    "avx": Routine(
        assembly="vxorps ymm0, ymm0, ymm0; vcmpps ymm0, ymm0, ymm0, 0; vmovmskps eax, ymm0; vzeroupper; ret",
        code=bytes.fromhex("c5fc57c0c5fcc2c000c5fc50c0c5f877c3"),
        result=0xFF,
    ),
    "avx2": Routine(
        assembly="vpcmpeqd ymm0, ymm0, ymm0; vpabsd ymm0, ymm0; vpaddd ymm0, ymm0, ymm0; "
        "vextracti128 xmm0, ymm0, 1; vmovd eax, xmm0; vzeroupper; ret",
        code=bytes.fromhex("c5fd76c0c4e27d1ec0c5fdfec0c4e37d39c001c5f97ec0c5f877c3"),
        result=0x2,
    ),
    "fma": Routine(
        assembly="mov eax, 0x3f800000; vmovd xmm0, eax; vfmadd213ps ymm0, ymm0, ymm0; vmovd eax, xmm0; "
        "vzeroupper; ret",
        code=bytes.fromhex("b80000803fc5f96ec0c4e27da8c0c5f97ec0c5f877c3"),
        result=0x40000000,
    ),
    "f16c": Routine(
        assembly="mov eax, 0x3c00; vmovd xmm0, eax; vcvtph2ps ymm0, xmm0; vmovd eax, xmm0; vzeroupper; ret",
        code=bytes.fromhex("b8003c0000c5f96ec0c4e27d13c0c5f97ec0c5f877c3"),
        result=0x3F800000,
    ),
    "bmi2": Routine(
        assembly="mov ecx, 0xf0f0; mov edx, 0xff00; pext eax, ecx, edx; ret",
        code=bytes.fromhex("b9f0f00000ba00ff0000c4e272f5c2c3"),
        result=0xF0,
    ),
    "avx_vnni": Routine(
        assembly="vpcmpeqd ymm0, ymm0, ymm0; vpabsb ymm0, ymm0; vpxor ymm1, ymm1, ymm1; "
        "{vex} vpdpbusd ymm1, ymm0, ymm0; vextracti128 xmm1, ymm1, 1; vmovd eax, xmm1; "
        "vzeroupper; ret",
        code=bytes.fromhex("c5fd76c0c4e27d1cc0c5f5efc9c4e27d50c8c4e37d39c901c5f97ec8c5f877c3"),
        result=0x4,
    ),
    "avx512f": Routine(
        assembly="vpternlogd zmm0, zmm0, zmm0, 0xff; vpabsd zmm0, zmm0; vpaddd zmm0, zmm0, zmm0; "
        "vextracti32x4 xmm0, zmm0, 3; vmovd eax, xmm0; vzeroupper; ret",
        code=bytes.fromhex("62f37d4825c0ff62f27d481ec062f17d48fec062f37d4839c003c5f97ec0c5f877c3"),
        result=0x2,
    ),
    "avx512cd": Routine(
        assembly="vpxord zmm0, zmm0, zmm0; vpconflictd zmm1, zmm0; vextracti32x4 xmm1, zmm1, 3; "
        "vpextrd eax, xmm1, 3; vzeroupper; ret",
        code=bytes.fromhex("62f17d48efc062f27d48c4c862f37d4839c903c4e37916c803c5f877c3"),
        result=0x7FFF,
    ),
    "avx512dq": Routine(
        assembly="vpternlogd zmm0, zmm0, zmm0, 0xff; vpabsq zmm0, zmm0; vpaddq zmm0, zmm0, zmm0; "
        "vpmullq zmm0, zmm0, zmm0; vextracti32x4 xmm0, zmm0, 3; vmovd eax, xmm0; vzeroupper; "
        "ret",
        code=bytes.fromhex(
            "62f37d4825c0ff62f2fd481fc062f1fd48d4c062f2fd4840c062f37d4839c003c5f97ec0c5f877c3"
        ),
        result=0x4,
    ),
    "avx512bw": Routine(
        assembly="vpternlogd zmm0, zmm0, zmm0, 0xff; vpabsb zmm0, zmm0; vpaddb zmm0, zmm0, zmm0; "
        "vextracti32x4 xmm0, zmm0, 3; vmovd eax, xmm0; vzeroupper; ret",
        code=bytes.fromhex("62f37d4825c0ff62f27d481cc062f17d48fcc062f37d4839c003c5f97ec0c5f877c3"),
        result=0x2020202,
    ),
    "avx512vl": Routine(
        assembly="vpternlogd ymm0, ymm0, ymm0, 0xff; vpabsq ymm0, ymm0; vextracti32x4 xmm0, ymm0, 1; "
        "vmovd eax, xmm0; vzeroupper; ret",
        code=bytes.fromhex("62f37d2825c0ff62f2fd281fc062f37d2839c001c5f97ec0c5f877c3"),
        result=0x1,
    ),
    "avx512vbmi": Routine(
        assembly="vpternlogd zmm0, zmm0, zmm0, 0xff; vpermb zmm1, zmm0, zmm0; "
        "vextracti32x4 xmm1, zmm1, 3; vmovd eax, xmm1; vzeroupper; ret",
        code=bytes.fromhex("62f37d4825c0ff62f27d488dc862f37d4839c903c5f97ec8c5f877c3"),
        result=0xFFFFFFFF,
    ),
    "avx512_vnni": Routine(
        assembly="vpternlogd zmm0, zmm0, zmm0, 0xff; vpxord zmm1, zmm1, zmm1; vpdpbusd zmm1, zmm0, zmm0; "
        "vextracti32x4 xmm1, zmm1, 3; vmovd eax, xmm1; vzeroupper; ret",
        code=bytes.fromhex("62f37d4825c0ff62f17548efc962f27d4850c862f37d4839c903c5f97ec8c5f877c3"),
        result=0xFFFFFC04,
    ),
    "avx512_bf16": Routine(
        assembly="mov eax, 0x3f803f80; vpbroadcastd zmm0, eax; vpxord zmm1, zmm1, zmm1; "
        "vdpbf16ps zmm1, zmm0, zmm0; vextracti32x4 xmm1, zmm1, 3; vmovd eax, xmm1; vzeroupper; "
        "ret",
        code=bytes.fromhex("b8803f803f62f27d487cc062f17548efc962f27e4852c862f37d4839c903c5f97ec8c5f877c3"),
        result=0x40000000,
    ),
    "amx_tile": Routine(
        assembly="ldtilecfg [rdi]; mov eax, 64; 1: tilezero tmm0; tileloadd tmm1, [rdi+rax*1+64]; "
        "tileloadd tmm2, [rdi+rax*1+64]; tilestored [rdi+rax*1+1088], tmm1; dec esi; jnz 1b; "
        "tilerelease; mov eax, [rdi+2108]; ret",
        code=bytes.fromhex(
            "c4e2784907b840000000c4e27b49c0c4e27b4b4c0740c4e27b4b540740c4e27a4b8c0740040000ff"
            "ce75dfc4e27849c08b873c080000c3"
        ),
        result=0x1010101,
        rounds=300_000,
        threads=2,
        tiles=True,
    ),
    "amx_int8": Routine(
        assembly="ldtilecfg [rdi]; mov eax, 64; 1: tilezero tmm0; tileloadd tmm1, [rdi+rax*1+64]; "
        "tileloadd tmm2, [rdi+rax*1+64]; tdpbssd tmm0, tmm1, tmm2; "
        "tilestored [rdi+rax*1+1088], tmm0; dec esi; jnz 1b; tilerelease; mov eax, [rdi+2108]; "
        "ret",
        code=bytes.fromhex(
            "c4e2784907b840000000c4e27b49c0c4e27b4b4c0740c4e27b4b540740c4e26b5ec1c4e27a4b8407"
            "40040000ffce75dac4e27849c08b873c080000c3"
        ),
        result=0x40,
        rounds=300_000,
        threads=2,
        tiles=True,
    ),
    "amx_bf16": Routine(
        assembly="ldtilecfg [rdi]; mov eax, 64; 1: tilezero tmm0; tileloadd tmm1, [rdi+rax*1+64]; "
        "tileloadd tmm2, [rdi+rax*1+64]; tdpbf16ps tmm0, tmm1, tmm2; "
        "tilestored [rdi+rax*1+1088], tmm0; dec esi; jnz 1b; tilerelease; mov eax, [rdi+2108]; "
        "ret",
        code=bytes.fromhex(
            "c4e2784907b840000000c4e27b49c0c4e27b4b4c0740c4e27b4b540740c4e26a5cc1c4e27a4b8407"
            "40040000ffce75dac4e27849c08b873c080000c3"
        ),
        result=0x42000000,
        element=0x3F80,
        rounds=300_000,
        threads=2,
        tiles=True,
    ),
}

_AARCH64: Final = {
    "asimddp": Routine(
        assembly="movi v0.16b, #1; movi v1.4s, #0; sdot v1.4s, v0.16b, v0.16b; umov w0, v1.s[3]; ret",
        code=bytes.fromhex("20e4004f0104004f0194804e203c1c0ec0035fd6"),
        result=0x4,
    ),
    "asimdhp": Routine(
        assembly="fmov v0.8h, #1.0; fadd v0.8h, v0.8h, v0.8h; umov w0, v0.h[7]; ret",
        code=bytes.fromhex("00fe034f0014404e003c1e0ec0035fd6"),
        result=0x4000,
    ),
    "i8mm": Routine(
        assembly="movi v0.16b, #1; movi v1.4s, #0; smmla v1.4s, v0.16b, v0.16b; umov w0, v1.s[3]; ret",
        code=bytes.fromhex("20e4004f0104004f01a4804e203c1c0ec0035fd6"),
        result=0x8,
    ),
    "bf16": Routine(
        assembly="movi v0.8h, #0x3f, lsl #8; orr v0.8h, #0x80; movi v1.4s, #0; bfdot v1.4s, v0.8h, v0.8h; "
        "umov w0, v1.s[3]; ret",
        code=bytes.fromhex("e0a7014f0094044f0104004f01fc406e203c1c0ec0035fd6"),
        result=0x40000000,
    ),
    "sve": Routine(
        assembly="mov z0.b, #1; ptrue p0.b; uaddv d0, p0, z0.b; fmov w0, s0; cntb x1; sub w0, w0, w1; ret",
        code=bytes.fromhex("20c03825e0e31825002001040000261ee1e320040000014bc0035fd6"),
        result=0x0,
    ),
}

ROUTINES: Final[Mapping[str, Mapping[str, Routine]]] = MappingProxyType(
    {"x86_64": MappingProxyType(_X86_64), "aarch64": MappingProxyType(_AARCH64)}
)
"""By architecture as `uname -m` prints it. A later entry may need an earlier one."""

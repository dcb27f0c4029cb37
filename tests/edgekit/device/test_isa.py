from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from edgekit.device.isa import probe_isa, read_reported_isa
from edgekit.device.isa_code import ROUTINES, Routine

MACHINE = platform.machine()
SEVEN = {"x86_64": "b807000000c3", "aarch64": "e0008052c0035fd6"}
UNDEFINED = {"x86_64": "0f0b", "aarch64": "00000000"}
ENDLESS = {"x86_64": "ebfe", "aarch64": "00000014"}
LOADS_FROM_NULL = {"x86_64": "31c08b00c3", "aarch64": "000080d2000040f9c0035fd6"}


def routine(codes: dict[str, str], result: int = 7) -> Routine:
    return Routine(assembly="", code=bytes.fromhex(codes[MACHINE]), result=result)


def probe(routines: dict[str, Routine], timeout_s: float = 20.0) -> tuple[set[str], dict[str, str]]:
    found = probe_isa(routines=routines, reported=frozenset(routines), timeout_s=timeout_s)
    return set(found.executes), dict(found.refused)


def test_probe_isa__finds_the_sets_that_run_on_this_machine() -> None:
    found = probe_isa()
    assert found.architecture == MACHINE
    assert found.executes | set(found.refused) == found.reported
    assert found.executes <= found.reported <= read_reported_isa()
    if MACHINE == "x86_64" and "sse4_2" in found.reported:
        assert "sse4_2" in found.executes


def test_probe_isa__an_undefined_instruction_is_refused_and_the_rest_still_run() -> None:
    executes, refused = probe({"a": routine(SEVEN), "b": routine(UNDEFINED), "c": routine(SEVEN)})
    assert executes == {"a", "c"}
    assert refused == {"b": "SIGILL"}


def test_probe_isa__a_fault_is_refused() -> None:
    assert probe({"a": routine(LOADS_FROM_NULL)}) == (set(), {"a": "SIGSEGV"})


def test_probe_isa__a_wrong_number_is_refused() -> None:
    assert probe({"a": routine(SEVEN, result=8)}) == (set(), {"a": "wrong result"})


def test_probe_isa__a_hang_is_refused() -> None:
    executes, refused = probe({"a": routine(ENDLESS), "b": routine(SEVEN)}, timeout_s=1.0)
    assert executes == {"b"}
    assert refused == {"a": "no answer in 1 s"}


def test_probe_isa__what_is_not_reported_is_not_tried() -> None:
    found = probe_isa(routines={"a": routine(SEVEN)}, reported=frozenset({"fpu"}))
    assert (found.executes, found.refused, found.reported) == (frozenset(), {}, frozenset())


def test_probe_isa__unknown_architecture_has_none() -> None:
    assert probe_isa(architecture="s390x", reported=frozenset({"vx"})).executes == frozenset()


def test_read_reported_isa__takes_the_first_processor(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    # The Raspberry Pi 5's cores all list the same; the key is "Features" on aarch64.
    cpuinfo.write_text(
        "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp\n\nprocessor\t: 1\nFeatures\t: fp\n"
    )
    assert read_reported_isa(cpuinfo) == {"fp", "asimd", "asimdhp", "asimddp"}
    assert read_reported_isa(tmp_path / "missing") == frozenset()


@pytest.mark.parametrize("name", sorted(ROUTINES.get(MACHINE, {})))
def test_routines__code_is_the_assembly_beside_it(name: str, tmp_path: Path) -> None:
    found = ROUTINES[MACHINE][name]
    prologue = {"x86_64": ".intel_syntax noprefix", "aarch64": ".arch armv8.6-a+sve+i8mm+bf16+fp16+dotprod"}
    source = "\n".join([prologue[MACHINE], *(line.strip() for line in found.assembly.split(";")), ""])
    subprocess.run(["as", "-o", tmp_path / "a.o", "-"], input=source.encode(), check=True)
    subprocess.run(
        ["objcopy", "-O", "binary", "-j", ".text", tmp_path / "a.o", tmp_path / "a.bin"], check=True
    )
    assert (tmp_path / "a.bin").read_bytes() == found.code

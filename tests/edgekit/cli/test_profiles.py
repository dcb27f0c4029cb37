from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from edgekit.profiles import load_profile, profile_names, profile_sha256, profiles_directory


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from edgekit.cli.main import main; main()", "profiles", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_profiles__table_has_a_row_for_each() -> None:
    shown = run()

    assert shown.returncode == 0, shown.stderr
    rows = {row.split()[0]: row for row in shown.stdout.splitlines() if row.strip()}
    assert set(profile_names()) <= set(rows)
    pi = rows["raspberry-pi-5-8gb"]
    for cell in ("6.9 GiB", "9.6 of 17.1 GB/s", "llama.cpp", "gguf", "Q4_0, Q4_K_M"):
        assert cell in pi


def test_profiles__json_is_one_document_and_nothing_else() -> None:
    shown = run("--json")

    assert shown.returncode == 0, shown.stderr
    documents = json.loads(shown.stdout)
    assert [document["name"] for document in documents] == profile_names()
    assert documents[-1]["memory"]["total_mib"] == 8048


def test_profiles__one_in_full() -> None:
    shown = run("jetson-orin-nano-8gb")

    assert shown.returncode == 0, shown.stderr
    cells = dict(row.split(maxsplit=1) for row in shown.stdout.splitlines() if row.strip())
    assert cells["build.cmake.CMAKE_CUDA_ARCHITECTURES"].strip() == "87"
    assert cells["serve.kv_type"].strip() == "q8_0"
    assert cells["serve.kv_cells"].strip() == "-"
    assert cells["power.nvpmodel"].strip() == "25W"


def test_profiles__one_as_json_has_its_digest() -> None:
    shown = run("a100-80gb", "--json")

    profile = load_profile("a100-80gb")
    assert json.loads(shown.stdout) == {**profile.model_dump(mode="json"), "sha256": profile_sha256(profile)}


def test_profiles__file_by_path(tmp_path: Path) -> None:
    path = tmp_path / "raspberry-pi-5-8gb.yaml"
    text = (profiles_directory() / path.name).read_text()
    path.write_text(text.replace("slots: 2", "slots: 3"))

    assert json.loads(run(str(path), "--json").stdout)["serve"]["slots"] == 3


def test_profiles__unknown_name_suggests_nearest() -> None:
    shown = run("jeson-orin-nano-8gb")

    assert shown.returncode == 1
    assert shown.stdout == ""
    assert "did you mean 'jetson-orin-nano-8gb'?" in shown.stderr

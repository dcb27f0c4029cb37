from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from export.toolchain.attention import ATTENTION_FILES

ROOT = Path(__file__).resolve().parent.parent.parent


def run(binaries: Path, *command: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of the fresh environment outside the checkout, with an empty home."""
    environ = {"PATH": f"{binaries}:/usr/bin:/bin", "HOME": str(directory), "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        [str(binaries / command[0]), *command[1:]],
        cwd=directory,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_wheel__carries_both_packages_profiles_and_build_recipe(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    profiles = {f"edgekit/{path.relative_to(ROOT)}" for path in (ROOT / "device_profiles").glob("*.yaml")}
    assert profiles and profiles <= names
    for package in ("edgekit", "export"):
        tracked = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
        assert tracked <= names
        assert f"{package}/py.typed" in names
    recipe = {"llama_cpp.cmake", "amx_tile_config.h", *ATTENTION_FILES}
    assert {f"export/toolchain/{name}" for name in recipe} <= names
    assert "edgekit/server/page/static/index.html" in names
    assert not any(name.startswith(("tests/", "device_profiles/")) for name in names)


def test_base_install__has_no_engine_and_no_numpy(fresh_bin: Path, tmp_path: Path) -> None:
    listed = run(fresh_bin, "python", "-m", "pip", "list", "--format", "json", directory=tmp_path)
    names = {entry["name"].lower().replace("_", "-") for entry in json.loads(listed.stdout)}
    assert {"edgekit", "pydantic", "pyyaml", "typer", "fastapi", "uvicorn", "paho-mqtt", "psutil"} <= names
    assert not names & {"llama-cpp-python", "numpy", "onnxruntime", "torch", "gguf", "httpx", "amqtt"}


def test_base_install__lists_the_profiles_of_the_wheel(fresh_bin: Path, tmp_path: Path) -> None:
    result = run(fresh_bin, "edgekit", "profiles", directory=tmp_path)
    assert result.returncode == 0, result.stderr
    for path in (ROOT / "device_profiles").glob("*.yaml"):
        assert path.stem in result.stdout
    where = (
        "from edgekit.profiles import profiles_directory as d, load_profile as l; print(d(), l('host').name)"
    )
    found = run(fresh_bin, "python", "-I", "-c", where, directory=tmp_path)
    directory, name = found.stdout.split()
    assert Path(directory).is_relative_to(fresh_bin.parent)
    assert name == "host"


def test_base_install__help_names_every_verb(fresh_bin: Path, tmp_path: Path) -> None:
    result = run(fresh_bin, "edgekit", "--help", directory=tmp_path)
    assert result.returncode == 0, result.stderr
    for verb in ("export", "keygen", "plan", "profiles", "runtime", "serve", "verify"):
        assert verb in result.stdout


@pytest.mark.parametrize(
    "verb", ["bench", "export", "fleet", "keygen", "plan", "profiles", "runtime", "serve", "verify"]
)
def test_base_install__every_verb_has_help_without_extras(fresh_bin: Path, tmp_path: Path, verb: str) -> None:
    result = run(fresh_bin, "edgekit", verb, "--help", directory=tmp_path)
    assert result.returncode == 0, result.stderr


def test_base_install__imports_every_module_of_edgekit_that_needs_no_extra(
    fresh_bin: Path, tmp_path: Path
) -> None:
    walk = (
        "import pkgutil, importlib, edgekit\n"
        "from edgekit.errors import MissingExtraError\n"
        "for m in pkgutil.walk_packages(edgekit.__path__, 'edgekit.', onerror=lambda name: None):\n"
        "    if m.name == 'edgekit.__main__': continue\n"
        "    try: importlib.import_module(m.name)\n"
        "    except ModuleNotFoundError as e: print(m.name, e.name)\n"
        "    except MissingExtraError as e: print(m.name, e.package)\n"
    )
    result = run(fresh_bin, "python", "-I", "-c", walk, directory=tmp_path)
    assert result.returncode == 0, result.stderr
    missing = {line.split()[1] for line in result.stdout.splitlines()}
    assert missing <= {"llama_cpp", "httpx", "numpy"}, result.stdout


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["verify", "nothing-here"], 1, "nothing-here"),
        (["serve"], 2, "Missing argument"),
        (["no-such-verb"], 2, "no-such-verb"),
    ],
)
def test_base_install__failures_say_what_and_exit_as_documented(
    fresh_bin: Path, tmp_path: Path, arguments: list[str], exit_code: int, message: str
) -> None:
    result = run(fresh_bin, "edgekit", *arguments, directory=tmp_path)
    assert result.returncode == exit_code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_base_install__serving_names_the_missing_extra(
    fresh_bin: Path, tmp_path: Path, student: Path
) -> None:
    bundle = tmp_path / "bundle"
    export: list[str | Path] = [
        Path(sys.executable).with_name("edgekit"),
        "export",
        student,
        "--profile",
        "host",
        "--out",
        bundle,
    ]
    subprocess.run(export, check=True, capture_output=True)
    verified = run(fresh_bin, "edgekit", "verify", "--integrity-only", str(bundle), directory=tmp_path)
    assert verified.returncode == 0, verified.stderr
    result = run(
        fresh_bin, "edgekit", "serve", "--integrity-only", "--port", "0", str(bundle), directory=tmp_path
    )
    assert result.returncode == 1
    assert "llama-cpp-python" in result.stderr
    assert "pip install 'edgekit[llama]'" in result.stderr


def test_extra_llama__is_the_release_that_the_toolchain_builds() -> None:
    import tomllib

    from export.toolchain import LLAMA_CPP_PYTHON

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["optional-dependencies"]["llama"] == [LLAMA_CPP_PYTHON.requirement]

"""Runs the tests of the edgekit package, from its wheel, on the oldest and the newest Python of a device.

usage: .venv/bin/python tests/other_pythons.py [PYTEST ARGUMENT ...]

JetPack 6 has Python 3.10 and Raspberry Pi OS 13 has 3.13. Each gets a virtual environment, .venv-3.10 and
.venv-3.13. An interpreter that this machine lacks is left out, with a warning at the end; where
EDGEKIT_REQUIRE_PYTHONS names it ("3.10 3.13", as in CI), that is a failure.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VERSIONS = ("3.10", "3.13")
EXTRAS = "dev,export,fleet"
ROOT = Path(__file__).resolve().parent.parent


def say(line: str) -> None:
    sys.stdout.write(f"other-pythons: {line}\n")
    sys.stdout.flush()


def interpreters(version: str) -> list[Path]:
    """Where a Python of this version may be: on the PATH, and where pyenv and uv keep theirs."""
    found = [Path(directory, f"python{version}") for directory in os.get_exec_path()]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found += sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"), reverse=True)
    found += sorted(Path.home().glob(f".local/share/uv/python/cpython-{version}.*/bin/python{version}"))
    return [path for path in found if path.is_file()]


def find(version: str) -> Path | None:
    """The first that runs: a shim on the PATH may stand for a version that is not there."""
    check = f"import sys, venv, ensurepip; assert '%d.%d' % sys.version_info[:2] == '{version}'"
    for path in interpreters(version):
        if subprocess.run([path, "-c", check], capture_output=True, check=False).returncode == 0:
            return path
    return None


def run(*command: object, environ: dict[str, str] | None = None) -> None:
    subprocess.run([str(part) for part in command], cwd=ROOT, check=True, env=environ)


def printed_path(*command: object) -> Path:
    output = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True)
    return Path(output.stdout.strip().splitlines()[-1])


def prepare(version: str, interpreter: Path, wheel: Path, engine: Path) -> Path:
    """The virtual environment's python, with both wheels and what the tests need."""
    venv = ROOT / f".venv-{version}"
    python = venv / "bin" / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "-qq")
    stamp = venv / ".installed"
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + str(engine).encode()).hexdigest()
    if not stamp.is_file() or stamp.read_text() != wanted:
        run(interpreter, "-m", "venv", "--clear", venv)
        run(*pip, f"edgekit[{EXTRAS}] @ {wheel.as_uri()}", engine)
        stamp.write_text(wanted)
    else:
        run(*pip, "--no-deps", "--force-reinstall", wheel)
    return python


def main(arguments: list[str]) -> int:
    required = os.environ.get("EDGEKIT_REQUIRE_PYTHONS", "").split()
    if unknown := sorted(set(required) - set(VERSIONS)):
        say(f"EDGEKIT_REQUIRE_PYTHONS: {', '.join(unknown)}: what is tested here is {', '.join(VERSIONS)}")
        return 2
    found = {version: find(version) for version in VERSIONS}
    for version, interpreter in found.items():
        say(f"Python {version}: {interpreter or 'NOT FOUND'}")
    absent = [version for version, interpreter in found.items() if interpreter is None]
    if lacking := [version for version in required if version in absent]:
        say(f"FAILED: required and not found: Python {', '.join(lacking)}; install it, e.g. with pyenv or uv")
        return 1
    failed = run_tests(found, arguments) if len(absent) < len(found) else []
    if failed:
        say(f"FAILED on Python {', '.join(failed)}")
    if absent:
        say("*" * 79)
        say(f"WARNING: edgekit was NOT TESTED on Python {', '.join(absent)}, which devices have.")
        say("Install it, e.g. with pyenv or uv, and run `make other-pythons` again.")
        say("*" * 79)
    return 1 if failed else 0


def run_tests(found: dict[str, Path | None], arguments: list[str]) -> list[str]:
    """Run the tests on each interpreter; returns the versions that failed."""
    bin_directory = Path(sys.executable).parent
    engine = printed_path(bin_directory / "edgekit", "runtime", "build", "--profile", "host")
    # The student is fetched by the export side, which needs Python 3.11.
    student = printed_path(
        sys.executable,
        "-c",
        "from export.sample_student import fetch_sample_student; print(fetch_sample_student())",
    )
    environ = {"EDGEKIT_SAMPLE_STUDENT": str(student), **os.environ}
    failed = []
    with tempfile.TemporaryDirectory(prefix="edgekit-wheel-") as temporary:
        run(sys.executable, "-m", "build", "--wheel", "--outdir", temporary, ROOT, environ=quiet_environ())
        (wheel,) = Path(temporary).glob("*.whl")
        for version, interpreter in found.items():
            if interpreter is None:
                continue
            began = time.monotonic()
            python = prepare(version, interpreter, wheel, engine)
            prepared_s = time.monotonic() - began
            began = time.monotonic()
            # The `pytest` script and not `python -m pytest`: that would find the checkout before the wheel.
            command = [str(python.with_name("pytest")), "tests/edgekit", "-p", "no:cacheprovider", *arguments]
            code = subprocess.run(command, cwd=ROOT, check=False, env=environ).returncode
            tested_s = time.monotonic() - began
            say(f"Python {version}: prepared in {prepared_s:.0f} s, tested in {tested_s:.0f} s")
            if code != 0:
                failed.append(version)
    return failed


def quiet_environ() -> dict[str, str]:
    return {**os.environ, "PIP_QUIET": "1"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

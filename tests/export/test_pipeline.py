"""Whole exports: real bundles, and nothing at all where one fails."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from full_disk import file_size_limited

from edgekit.bundle.bundle import verify_bundle
from edgekit.bundle.signing import generate_key_pair
from edgekit.engine.probe import probe_model
from edgekit.errors import EdgekitError, ExportError, ModelFileError, PlanError, UsageError
from edgekit.gguf_header import read_gguf_header
from edgekit.profiles import load_profile, profile_sha256
from export import emit, pipeline
from export.pipeline import export_bundle

NOON = datetime(2026, 1, 20, 12, 0, 5, tzinfo=timezone.utc)


def _left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_export_bundle__gguf_student_is_copied_bit_for_bit(student: Path, tmp_path: Path) -> None:
    secret_key, public_key = generate_key_pair()
    profile = load_profile("raspberry-pi-5-8gb")
    steps: list[str] = []
    bundle = export_bundle(
        student,
        profile,
        tmp_path / "bundle",
        secret_key=secret_key,
        clock=lambda: NOON,
        progress=lambda what, done, total: steps.append(what),
    )
    assert (tmp_path / "bundle" / "model.gguf").read_bytes() == student.read_bytes()
    verified = verify_bundle(tmp_path / "bundle", public_key)
    assert verified.manifest == bundle.manifest and verified.digest == bundle.digest
    manifest = verified.manifest
    assert (manifest.name, manifest.release) == ("SmolLM2-135M-Instruct", 20260120120005)
    assert manifest.created_utc == "2026-01-20T12:00:05Z"
    assert (manifest.plan.quantization, manifest.plan.conversion) == ("Q4_1", "copied")
    assert (manifest.runtime, manifest.format, manifest.entry) == ("llama.cpp", "gguf", "model.gguf")
    assert {file.path: file.sha256 for file in manifest.files}["model.gguf"] == manifest.source.sha256
    assert (tmp_path / "bundle" / "LICENSE").read_text() == (student.parent / "LICENSE").read_text()
    assert (manifest.source.kind, manifest.source.license) == ("gguf", "apache-2.0")
    assert (manifest.profile.name, manifest.profile.sha256) == (profile.name, profile_sha256(profile))
    assert manifest.plan.forecast is not None and manifest.plan.forecast.fits
    assert manifest.tools.keys() >= {"edgekit", "gguf", "llama-cpp-python", "numpy"}
    assert list(dict.fromkeys(steps)) == ["checksum of the student", "copying", "trying the model", "sealing"]
    assert _left_in(tmp_path) == ["bundle"]


@pytest.mark.parametrize("quantization", ["Q8_0", "Q4_0", "Q4_K_M", "BF16"])
def test_export_bundle__checkpoint_becomes_a_model_that_decodes(
    quantization: str, small: Path, tmp_path: Path
) -> None:
    (small / "LICENSE").write_text("MIT License\n")
    bundle = export_bundle(small, load_profile("host"), tmp_path / "out", quantization=quantization)
    probe_model(bundle.entry_path)
    assert bundle.manifest.model.quantization == quantization
    conversion = "converted from safetensors, BF16" if quantization == "BF16" else "quantized from BF16"
    assert bundle.manifest.plan.conversion == conversion
    assert _left_in(tmp_path / "out") == [
        "LICENSE",
        "golden.json",
        "manifest.json",
        "model.gguf",
        "proof.html",
    ]
    verify_bundle(tmp_path / "out", None)


def test_export_bundle__r1_checkpoint_by_the_profiles_choice(
    r1_family: Callable[[str], Path], tmp_path: Path
) -> None:
    bundle = export_bundle(
        r1_family("R1-Tiny-Llama-1M"), load_profile("jetson-orin-nano-8gb"), tmp_path / "out"
    )
    assert bundle.manifest.plan.quantization == "Q4_K_M"
    header = read_gguf_header(bundle.entry_path)
    assert header.metadata["tokenizer.ggml.pre"] == "deepseek-r1-qwen"
    assert header.metadata["general.license"] == "mit"
    assert any(tensor.name == "rope_freqs.weight" for tensor in header.tensors)


def test_export_bundle__release_name_and_parents_as_given(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "bundle"
    bundle = export_bundle(small, load_profile("host"), out, release=7, name="student")
    assert (bundle.manifest.release, bundle.manifest.name) == (7, "student")
    assert bundle.manifest.model.name == "student"
    assert (out.stat().st_mode & 0o777, (out / "manifest.json").stat().st_mode & 0o777) == (0o755, 0o644)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "two\nlines"}, r"name 'two\\nlines': has a line break"),
        ({"name": ""}, r"name '': string should have at least 1 character"),
        ({"name": "x" * 129}, r"name 'x+': string should have at most 128 characters"),
        ({"release": 0}, r"release 0: input should be greater than 0"),
        ({"release": 2**53}, r"release 9007199254740992: input should be less than"),
    ],
)
def test_export_bundle__bad_name_or_release_is_refused_before_the_student_is_opened(
    given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        export_bundle(tmp_path / "absent", load_profile("host"), tmp_path / "out", **given)
    assert caught.value.hint == f"give another --{next(iter(given))}"


def test_export_bundle__student_whose_own_name_will_not_do_asks_for_one(small: Path, tmp_path: Path) -> None:
    odd = small.rename(tmp_path / "two\nlines")
    steps: list[str] = []
    with pytest.raises(UsageError, match="has a line break") as caught:
        export_bundle(
            odd, load_profile("host"), tmp_path / "out", progress=lambda what, *_: steps.append(what)
        )
    assert caught.value.hint == "give another --name"
    assert steps == []
    assert (
        export_bundle(odd, load_profile("host"), tmp_path / "out", name="student").manifest.name == "student"
    )


def test_export_bundle__checkpoint_in_hugging_faces_cache_is_named_by_its_repository(
    small: Path, tmp_path: Path
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshots = tmp_path / "hub" / "models--deepseek-ai--R1-Tiny" / "snapshots"
    snapshots.mkdir(parents=True)
    bundle = export_bundle(small.rename(snapshots / commit), load_profile("host"), tmp_path / "out")
    assert (bundle.manifest.name, bundle.manifest.source.name) == ("R1-Tiny", "R1-Tiny")
    assert bundle.manifest.source.revision == commit


def test_export_bundle__gguf_brings_its_licence_and_revision(small: Path, tmp_path: Path) -> None:
    (small / "LICENSE").write_text("MIT License\n")
    first = export_bundle(small, load_profile("host"), tmp_path / "one", quantization="Q8_0")
    trace = tmp_path / "one" / ".cache" / "huggingface" / "download" / "model.gguf.metadata"
    trace.parent.mkdir(parents=True)
    trace.write_text("0123456789abcdef0123456789abcdef01234567\nan-etag\n1750000000.0\n")
    second = export_bundle(first.entry_path, load_profile("host"), tmp_path / "two")
    assert (tmp_path / "two" / "LICENSE").read_text() == "MIT License\n"
    assert second.manifest.source.revision == "0123456789abcdef0123456789abcdef01234567"


def _set_template(checkpoint: Path, template: str | None) -> None:
    path = checkpoint / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["chat_template"]
    path.write_text(json.dumps(config if template is None else {**config, "chat_template": template}))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ bos_token }}\n{% generations %}x{% endgenerations %}",
            r"in line 2: .*unknown tag 'generations'",
        ),
        ("{{ messages[0].content", r"in line 1: unexpected end of template"),
        ("{{ raise_exception('never') }}", "refuses these messages: never"),
    ],
)
def test_export_bundle__chat_template_that_cannot_chat_fails(
    template: str, message: str, small: Path, tmp_path: Path
) -> None:
    _set_template(small, template)
    with pytest.raises(ModelFileError, match=message) as caught:
        export_bundle(small, load_profile("host"), tmp_path / "out", quantization="BF16")
    assert "tokenizer_config.json" in (caught.value.hint or "")
    assert _left_in(tmp_path) == ["Small-Qwen2"]


def test_export_bundle__model_without_a_chat_template_gets_a_note(small: Path, tmp_path: Path) -> None:
    with_template = export_bundle(small, load_profile("host"), tmp_path / "with", quantization="BF16")
    assert not any("chat template" in note for note in with_template.manifest.plan.notes)
    _set_template(small, None)
    without = export_bundle(small, load_profile("host"), tmp_path / "without", quantization="BF16")
    assert any("no chat template" in note for note in without.manifest.plan.notes)


def test_export_bundle__what_a_killed_export_left_is_removed_after_a_day(small: Path, tmp_path: Path) -> None:
    names = (".out.old.partial", ".out.busy.partial", ".out.young.partial", ".other.old.partial")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.gguf").touch()
        if "young" not in name:
            os.utime(tmp_path / name, (0, 0))
    in_use = os.open(tmp_path / ".out.busy.partial", os.O_RDONLY)
    fcntl.flock(in_use, fcntl.LOCK_EX)
    export_bundle(small, load_profile("host"), tmp_path / "out", quantization="BF16")
    os.close(in_use)
    assert _left_in(tmp_path) == sorted([*names[1:], "Small-Qwen2", "out"])


def test_export_bundle__bundle_for_vllm_is_refused_with_what_can_be_done(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="a bundle for vllm, which this edgekit cannot write yet") as caught:
        export_bundle(small, load_profile("a100-80gb"), tmp_path / "out")
    assert "--profile host" in (caught.value.hint or "")
    assert _left_in(tmp_path) == ["Small-Qwen2"]


def test_export_bundle__requantizing_needs_consent(small: Path, tmp_path: Path) -> None:
    once = export_bundle(small, load_profile("host"), tmp_path / "once", quantization="Q8_0").entry_path
    with pytest.raises(ExportError, match=r"is Q8_0 already: making Q4_0 of it loses twice") as caught:
        export_bundle(once, load_profile("host"), tmp_path / "twice", quantization="Q4_0")
    assert "--allow-loss" in (caught.value.hint or "")
    assert _left_in(tmp_path) == ["Small-Qwen2", "once"]
    twice = export_bundle(
        once, load_profile("host"), tmp_path / "twice", quantization="Q4_0", allow_loss=True
    )
    assert twice.manifest.plan.conversion == "requantized from Q8_0"
    assert twice.manifest.plan.notes[0].startswith("requantized from Q8_0")


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_export_bundle__existing_out_is_left_alone(
    make: Callable[[Path], None], small: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    make(out)
    with pytest.raises(ExportError, match="out exists already") as caught:
        export_bundle(small, load_profile("host"), out)
    assert "another --out" in (caught.value.hint or "")
    assert _left_in(tmp_path) == ["Small-Qwen2", "out"]


def test_export_bundle__out_that_appears_meanwhile_is_left_alone(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def appear(what: str, done: int, total: int) -> None:
        if what == "sealing":
            out.mkdir(exist_ok=True)

    with pytest.raises(ExportError, match="exists already"):
        export_bundle(small, load_profile("host"), out, progress=appear)
    assert _left_in(tmp_path) == ["Small-Qwen2", "out"] and _left_in(out) == []


def _break_weights(path: Path, tiny: ModuleType) -> None:
    tensors = tiny.make_tensors(json.loads((path / "config.json").read_text()))
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 0x7FC0  # NaN
    tiny.save_tensors(path, tensors, 1)


def _cut_weights(path: Path, _tiny: ModuleType) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def _remove_tokenizer(path: Path, _tiny: ModuleType) -> None:
    (path / "tokenizer.json").unlink()


@pytest.mark.parametrize("damage", [_break_weights, _cut_weights, _remove_tokenizer])
def test_export_bundle__bad_student_leaves_nothing(
    damage: Callable[[Path, ModuleType], None], small: Path, tiny: ModuleType, tmp_path: Path
) -> None:
    damage(small, tiny)
    with pytest.raises(ModelFileError):
        export_bundle(small, load_profile("host"), tmp_path / "new" / "out")
    assert _left_in(tmp_path) == ["Small-Qwen2"]


def test_export_bundle__student_that_does_not_fit_leaves_nothing(student: Path, tmp_path: Path) -> None:
    profile = load_profile("raspberry-pi-5-8gb")
    memory = profile.memory.model_copy(update={"total_mib": 1200})
    with pytest.raises(PlanError, match="does not fit"):
        export_bundle(student, profile.model_copy(update={"memory": memory}), tmp_path / "out")
    assert _left_in(tmp_path) == []


@pytest.mark.parametrize(
    "step", ["checksum of the student", "quantizing to Q4_K_M", "trying the model", "sealing"]
)
def test_export_bundle__interrupt_leaves_nothing(step: str, small: Path, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(
            small, load_profile("host"), tmp_path / "out", progress=interrupt, quantization="Q4_K_M"
        )
    assert _left_in(tmp_path) == ["Small-Qwen2"]


def test_export_bundle__student_that_changes_while_copied_is_refused(small: Path, tmp_path: Path) -> None:
    source = export_bundle(small, load_profile("host"), tmp_path / "one", quantization="Q8_0").entry_path

    def change(what: str, done: int, total: int) -> None:
        if what == "checksum of the student" and done == total:
            content = bytearray(source.read_bytes())
            content[-100] ^= 1
            source.write_bytes(content)

    with pytest.raises(ExportError, match="changed while it was copied"):
        export_bundle(source, load_profile("host"), tmp_path / "two", progress=change)
    assert _left_in(tmp_path) == ["Small-Qwen2", "one"]


def test_export_bundle__result_that_does_not_load_leaves_nothing(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pipeline.emit_gguf

    def spoil(student: Any, plan: Any, directory: Path, *rest: Any, **options: Any) -> Any:
        emitted = whole(student, plan, directory, *rest, **options)
        written = directory / emitted.entry
        written.write_bytes(written.read_bytes()[:-4096])
        return emitted

    monkeypatch.setattr(pipeline, "emit_gguf", spoil)
    with pytest.raises(ModelFileError, match="cut off"):
        export_bundle(small, load_profile("host"), tmp_path / "out", quantization="Q4_0")
    assert _left_in(tmp_path) == ["Small-Qwen2"]


@pytest.mark.parametrize("quantization", ["Q8_0", "BF16"])
@pytest.mark.parametrize("size", [1_000, 40_000, 70_000])
def test_export_bundle__full_disk_leaves_nothing(
    quantization: str, size: int, small: Path, tmp_path: Path
) -> None:
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN  # a write that fails, not a signal that kills
    with file_size_limited(size), pytest.raises(ExportError):
        export_bundle(small, load_profile("host"), tmp_path / "out", quantization=quantization)
    assert _left_in(tmp_path) == ["Small-Qwen2"]


def test_export_bundle__disk_that_fills_up_under_the_quantizer_leaves_nothing(
    small: Path, tmp_path: Path
) -> None:
    floats = export_bundle(small, load_profile("host"), tmp_path / "floats", quantization="F32").entry_path
    with file_size_limited(60_000), pytest.raises(ExportError, match="cannot be quantized to Q8_0"):
        export_bundle(floats, load_profile("host"), tmp_path / "out", quantization="Q8_0")
    assert _left_in(tmp_path) == ["Small-Qwen2", "floats"]


def test_export_bundle__full_disk_while_copying_is_named(student: Path, tmp_path: Path) -> None:
    with file_size_limited(1 << 20), pytest.raises(ExportError, match=os.strerror(errno.EFBIG)):
        export_bundle(student, load_profile("host"), tmp_path / "out")
    assert _left_in(tmp_path) == []


def test_export_bundle__too_small_a_disk_is_refused_before_the_work(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(emit.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(ExportError, match=r"0\.0 GB are free"):
        export_bundle(small, load_profile("host"), tmp_path / "out")
    assert _left_in(tmp_path) == ["Small-Qwen2"]


def test_export_bundle__unwritable_parent_is_an_export_error(small: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EdgekitError, match="cannot be written"):
        export_bundle(small, load_profile("host"), tmp_path / "file" / "out")


def test_export_bundle__parent_that_cannot_be_made_is_an_export_error(small: Path) -> None:
    # Nobody may make a directory there, root neither.
    with pytest.raises(ExportError, match=r"^/proc/none/out: cannot be written"):
        export_bundle(small, load_profile("host"), Path("/proc/none/out"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_export__killed_in_the_middle_leaves_nothing(
    number: signal.Signals, r1_family: Callable[[str], Path], tmp_path: Path
) -> None:
    model = r1_family("R1-Tiny-Llama-1M")
    command = [sys.executable, "-m", "edgekit", "export", str(model), "--profile", "host"]
    command = [sys.executable, "-c", "from edgekit.cli.main import main; main()", *command[3:]]
    child = subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        text=True,
        # Shells start background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("quantizing"):
            break
    time.sleep(0.05)
    child.send_signal(number)
    child.communicate(timeout=60)
    assert child.returncode == 130
    assert _left_in(tmp_path) == []

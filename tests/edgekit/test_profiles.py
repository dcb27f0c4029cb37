from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from pydantic import ValidationError

from edgekit.errors import ProfileError
from edgekit.profiles import (
    DeviceProfile,
    ServeSettings,
    load_profile,
    profile_names,
    profile_sha256,
    profiles_directory,
    resolve_host,
)

NAMES = [
    "a100-80gb",
    "host",
    "jetson-agx-orin-32gb",
    "jetson-agx-orin-64gb",
    "jetson-orin-nano-8gb",
    "raspberry-pi-5-16gb",
    "raspberry-pi-5-8gb",
]
PI = "raspberry-pi-5-8gb"
BOOLEAN = "is a boolean to some YAML readers; write true, or quote it as text"


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the Raspberry Pi's profile with one piece of text replaced."""

    def edit(old: str, new: str, *, stem: str = PI) -> Path:
        text = (profiles_directory() / f"{PI}.yaml").read_text()
        assert text.count(old) == 1, f"{old!r} must be in the profile once"
        path = tmp_path / f"{stem}.yaml"
        path.write_text(text.replace(old, new))
        return path

    return edit


def line_of(path: Path, start: str) -> int:
    """The number of the line that starts with `start`, indentation aside."""
    rows = path.read_text().splitlines()
    return 1 + next(number for number, row in enumerate(rows) if row.strip().startswith(start))


def test_profile_names__are_the_shipped_files() -> None:
    assert profile_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_load_profile__every_shipped_profile_is_valid(name: str) -> None:
    profile = load_profile(name)

    assert profile.name == name
    assert profile.build.cmake["GGML_NATIVE"] is False, "some hosts report AMX and die of it"
    assert profile.build.cmake["GGML_OPENMP"] is False, "minimal devices have no libgomp"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "host"])
def test_load_profile__a_device_states_what_plans_need(name: str) -> None:
    profile = load_profile(name)

    assert profile.memory.usable_bytes is not None
    assert profile.memory.sustained_gb_per_s is not None
    assert profile.memory.peak_gb_per_s is not None
    assert profile.cpu.architecture is not None
    assert profile.serve.threads is not None
    if profile.accelerator is not None:
        digits = profile.accelerator.compute_capability.replace(".", "")
        assert profile.build.cmake["GGML_CUDA"] is True
        assert profile.build.cmake["CMAKE_CUDA_ARCHITECTURES"] == digits
        assert profile.serve.gpu_layers > 0


@pytest.mark.parametrize("name", NAMES)
def test_shipped_profile__every_value_has_a_comment_with_its_source(name: str) -> None:
    """A comment on the value's line, or a block of comments directly above it."""
    text = (profiles_directory() / f"{name}.yaml").read_text()
    rows = text.splitlines()
    identity = {"name", "summary", "runtime"}
    bare = []
    for key, line in leaves(yaml.compose(text, Loader=yaml.SafeLoader)):
        inline = re.search(r"\s#\s+\S", rows[line - 1])
        above = line > 1 and rows[line - 2].strip().startswith("# ")
        if key not in identity and not inline and not above:
            bare.append(f"{name}.yaml:{line}: {rows[line - 1].strip()}")
    assert bare == []


def leaves(node: yaml.Node | None) -> Iterator[tuple[str, int]]:
    """Keys whose value is a scalar or a list, with their lines."""
    assert isinstance(node, yaml.MappingNode)
    for key, value in node.value:
        if isinstance(value, yaml.MappingNode):
            yield from leaves(value)
        else:
            yield key.value, key.start_mark.line + 1


@pytest.mark.parametrize("name", NAMES)
def test_shipped_profile__is_the_same_to_a_yaml_1_1_reader(name: str) -> None:
    text = (profiles_directory() / f"{name}.yaml").read_text()

    assert DeviceProfile.model_validate_json(json.dumps(yaml.safe_load(text))) == load_profile(name)


def test_load_profile__by_path(edited: Callable[..., Path]) -> None:
    path = edited("total_mib: 8048", "total_mib: 4045")

    assert load_profile(path).memory.total_mib == 4045
    assert load_profile(str(path)).memory.total_mib == 4045


def test_load_profile__unknown_name_suggests_nearest() -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile("raspbery-pi-5-8gb")

    assert caught.value.message == "no profile 'raspbery-pi-5-8gb'; did you mean 'raspberry-pi-5-8gb'?"
    assert caught.value.hint is not None
    assert "jetson-agx-orin-64gb" in caught.value.hint


def test_load_profile__missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"/none\.yaml: cannot be read: No such file or directory$"):
        load_profile(tmp_path / "none.yaml")


def test_load_profile__bytes_that_are_not_utf_8_have_a_line(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"name: x\nsummary: \xff\n")

    with pytest.raises(ProfileError, match=r"x\.yaml:2: not UTF-8 text$"):
        load_profile(path)


def test_load_profile__name_must_match_the_file(edited: Callable[..., Path]) -> None:
    path = edited("slots: 2 ", "slots: 3 ", stem="my-pi")

    with pytest.raises(ProfileError) as caught:
        load_profile(path)

    line = line_of(path, "name:")
    assert caught.value.message == (
        f"{path}:{line}: name: 'raspberry-pi-5-8gb' in a file named 'my-pi'; make them equal"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("gpu_layers: 0", "gpu_layer: 0", "serve.gpu_layer: unknown key; did you mean 'gpu_layers'?"),
        (
            "runtime: llama.cpp\n",
            "runtime: llamacpp\n",
            "runtime: \"llamacpp\" is not known here; did you mean 'llama.cpp'?",
        ),
        ("kv_type: f16", "kv_type: q8", "serve.kv_type: \"q8\" is not known here; did you mean 'q8_0'?"),
        (
            "total_mib: 8048",
            'total_mib: "8 GiB"',
            'memory.total_mib: expected a whole number in MiB, got "8 GiB"; write 8192',
        ),
        ("total_mib: 8048", "total_mib: 8.5", "memory.total_mib: expected a whole number in MiB, got 8.5"),
        ("reserve_mib: 1024", "reserve_mib: 8048", "memory.reserve_mib: leaves nothing of total_mib (8048)"),
        (
            "sustained_gb_per_s: 9.6",
            "sustained_gb_per_s: 18",
            "memory.sustained_gb_per_s: more than peak_gb_per_s (17.1)",
        ),
        (
            "batch_tokens: 256",
            "batch_tokens: 12:30",
            "serve.batch_tokens: '12:30' is a base-60 number to some YAML readers; quote it",
        ),
        ("flash_attention: null", "flash_attention: on", f"serve.flash_attention: 'on' {BOOLEAN}"),
        ("threads: 4", "threads: 0", "serve.threads: should be greater than 0, got 0"),
        ("ubatch_tokens: 128", "ubatch_tokens: 512", "serve.ubatch_tokens: more than batch_tokens (256)"),
        ("kv_cells: null", "kv_cells: 4096", "serve.kv_cells: fewer than context_tokens (8192)"),
        (
            "GGML_NATIVE: false",
            "NATIVE: false",
            "build.cmake.NATIVE: not an option of llama.cpp; they start with GGML_, LLAMA_ or CMAKE_",
        ),
        (
            "quantizations: [Q4_0, Q4_K_M,",
            "quantizations: [Q4_0, Q4_KM,",
            "quantizations[1]: 'Q4_KM' is not known here; did you mean 'Q4_K_M'?",
        ),
    ],
)
def test_load_profile__wrong_value_gives_file_line_key_and_what(
    edited: Callable[..., Path], old: str, new: str, message: str
) -> None:
    path = edited(old, new)

    with pytest.raises(ProfileError) as caught:
        load_profile(path)

    assert caught.value.message == f"{path}:{line_of(path, new.strip().split(' ')[0])}: {message}"


def test_load_profile__quantized_cache_needs_flash_attention(edited: Callable[..., Path]) -> None:
    path = edited("kv_type: f16", "kv_type: q8_0")
    path.write_text(path.read_text().replace("flash_attention: null", "flash_attention: false"))

    with pytest.raises(ProfileError, match=r"serve\.kv_type: q8_0 needs flash attention"):
        load_profile(path)


def test_load_profile__wrong_unit_in_a_key_names_the_right_one(edited: Callable[..., Path]) -> None:
    path = edited("runtime: llama.cpp\n", "memory_gb: 8\nruntime: llama.cpp\n")

    with pytest.raises(ProfileError) as caught:
        load_profile(path)

    line = line_of(path, "memory_gb:")
    assert caught.value.message == (
        f"{path}:{line}: memory_gb: unknown key; did you mean 'memory.total_mib'? (in MiB)"
    )


def test_load_profile__all_problems_at_once(edited: Callable[..., Path]) -> None:
    path = edited("cores: 4", 'cores: "4"')
    path.write_text(path.read_text().replace("slots: 2", "slot: 2"))

    with pytest.raises(ProfileError) as caught:
        load_profile(path)

    cores = line_of(path, "cores")
    assert caught.value.message.split("\n") == [
        f'{path}:{cores}: cpu.cores: expected a whole number, got "4"; write it without quotes',
        f"{path}:{line_of(path, 'serve')}: serve.slots: missing",
        f"{path}:{line_of(path, 'slot')}: serve.slot: unknown key; did you mean 'slots'?",
    ]


def test_profile_sha256__depends_on_values_and_not_on_layout(edited: Callable[..., Path]) -> None:
    shipped = profile_sha256(load_profile(PI))

    assert re.fullmatch(r"[0-9a-f]{64}", shipped)
    assert profile_sha256(load_profile(edited("\nserve:\n", "\n# a comment\n\nserve:\n"))) == shipped
    assert profile_sha256(load_profile(edited("slots: 2", "slots: 3"))) != shipped


def test_profile__cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load_profile(PI).serve.slots = 9


def test_resolved__fills_what_is_open() -> None:
    here = load_profile("host").resolved(
        cores=2, memory_mib=2048, architecture="x86_64", isa=("avx2",), sustained_gb_per_s=12.5
    )

    assert (here.cpu.cores, here.cpu.architecture, here.cpu.isa) == (2, "x86_64", ("avx2",))
    assert here.serve.threads == 2
    assert here.memory.usable_bytes == 1024 * 1024 * 1024
    assert here.memory.sustained_gb_per_s == 12.5


def test_resolved__what_is_stated_stays() -> None:
    profile = load_profile(PI)

    assert profile.resolved(cores=64, memory_mib=1, sustained_gb_per_s=1) == profile


def test_resolved__less_memory_than_the_reserve_leaves_nothing() -> None:
    assert load_profile("host").resolved(memory_mib=512).memory.usable_bytes == 0


def test_resolve_host__reads_this_machine() -> None:
    here = resolve_host(load_profile("host"))

    assert here.memory.total_mib == psutil.virtual_memory().total // 1024**2
    assert here.cpu.cores is not None
    assert here.serve.threads == here.cpu.cores


def test_serve_settings__survive_json() -> None:
    settings = load_profile("jetson-orin-nano-8gb").serve

    assert ServeSettings.model_validate_json(settings.model_dump_json()) == settings


def test_serve_settings__cells_are_one_context_unless_stated() -> None:
    assert ServeSettings(threads=None, context_tokens=512, slots=4).cells == 512
    assert ServeSettings(threads=None, context_tokens=512, slots=4, kv_cells=2048).cells == 2048

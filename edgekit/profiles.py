"""Device profiles: what a device is, and what was tuned for it.

A profile is one YAML file in `device_profiles/`, named after its file. Every tuned value there has a comment
with its source. Keys carry their unit: MiB (2^20 bytes) for memory, GB/s (10^9 bytes per second, as data
sheets count) for bandwidth.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from edgekit.errors import ProfileError
from edgekit.yaml_model import key_error, nearest, parse_yaml_model

__all__ = [
    "Accelerator",
    "Build",
    "Compute",
    "Cpu",
    "DeviceProfile",
    "Format",
    "KvType",
    "Memory",
    "Power",
    "ProofOverride",
    "Runtime",
    "ServeSettings",
    "load_profile",
    "profile_names",
    "profile_sha256",
    "profiles_directory",
    "resolve_host",
]

Runtime = Literal["llama.cpp", "onnxruntime", "vllm"]
Format = Literal["gguf", "onnx", "vllm"]
KvType = Literal["f16", "q8_0", "q4_0", "bf16", "f32"]

QUANTIZATIONS: Final = (
    # llama.cpp's file types (llama_ftype in llama.h, as llama-quantize spells them)
    *(
        "F32",
        "F16",
        "BF16",
        "Q8_0",
        "Q6_K",
        "Q5_K_M",
        "Q5_K_S",
        "Q5_1",
        "Q5_0",
        "Q4_K_M",
        "Q4_K_S",
        "Q4_1",
        "Q4_0",
    ),
    *(
        "IQ4_NL",
        "IQ4_XS",
        "Q3_K_L",
        "Q3_K_M",
        "Q3_K_S",
        "IQ3_M",
        "IQ3_S",
        "IQ3_XS",
        "IQ3_XXS",
        "Q2_K",
        "Q2_K_S",
    ),
    *("IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ2_0", "TQ1_0", "MXFP4_MOE"),
    # onnxruntime's block-quantized MatMulNBits, and what checkpoints are packed as
    *("INT4", "INT8", "GPTQ", "AWQ", "W4A16", "W8A8", "W8A16", "FP8", "NF4", "FP4"),
    *("W2A16", "W3A16", "W4A8", "W4AFP8"),
)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServeSettings(_Section):
    """How a model is served: the sizes that decide memory and speed. Stored in manifests as well."""

    threads: PositiveInt | None
    """Threads that compute. None: the physical cores of the device at hand."""
    context_tokens: PositiveInt
    """Context of one request, prompt and answer together."""
    slots: PositiveInt
    """Streams decoded together at most."""
    kv_cells: PositiveInt | None = None
    """Tokens that the KV cache holds, shared by all streams. None: `context_tokens`."""
    kv_type: KvType = "f16"
    flash_attention: bool | None = None
    """None: llama.cpp decides."""
    batch_tokens: PositiveInt = 512
    """Tokens of one llama_decode call at most (n_batch)."""
    ubatch_tokens: PositiveInt = 128
    """Tokens computed at once (n_ubatch); the compute buffers grow with it."""
    gpu_layers: NonNegativeInt = 0
    """Layers kept on the accelerator; more than the model has means all."""

    @model_validator(mode="after")
    def _consistent(self) -> ServeSettings:
        if "ubatch_tokens" in self.model_fields_set and self.ubatch_tokens > self.batch_tokens:
            raise key_error("ubatch_tokens", f"more than batch_tokens ({self.batch_tokens})")
        if self.kv_cells is not None and self.kv_cells < self.context_tokens:
            raise key_error("kv_cells", f"fewer than context_tokens ({self.context_tokens})")
        if self.flash_attention is False and self.kv_type in ("q8_0", "q4_0"):
            # llama-context.cpp: "V cache quantization requires flash_attn"
            raise key_error("kv_type", f"{self.kv_type} needs flash attention, and flash_attention is false")
        return self

    @property
    def cells(self) -> int:
        """Tokens that the KV cache holds."""
        return self.context_tokens if self.kv_cells is None else self.kv_cells


class Cpu(_Section):
    """The processor. None: to be read from the device at hand."""

    model: str
    architecture: Literal["aarch64", "x86_64"] | None
    """As `uname -m` prints it."""
    isa: tuple[str, ...] | None
    """Extensions that matter to ggml, as /proc/cpuinfo names them."""
    cores: PositiveInt | None
    """Physical cores."""


class Accelerator(_Section):
    """A GPU that runs the model."""

    model: str
    api: Literal["cuda"]
    compute_capability: Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]$")]
    memory: Literal["unified", "dedicated"]
    """unified: the CPU's memory; dedicated: its own, and `DeviceProfile.memory` describes that one."""


class Memory(_Section):
    """The memory that holds weights and KV cache, and how fast it is read. Unknown is None."""

    total_mib: PositiveInt | None
    """What the system can use: MemTotal of /proc/meminfo, or the GPU's own memory."""
    reserve_mib: NonNegativeInt
    """Kept free for the operating system, the driver, and whatever else runs on the device."""
    peak_gb_per_s: PositiveFloat | None
    """By the data sheet: bus width times transfer rate."""
    sustained_gb_per_s: PositiveFloat | None
    """What decoding one stream reads in practice: bytes per token times tokens per second."""

    @model_validator(mode="after")
    def _consistent(self) -> Memory:
        if self.total_mib is not None and self.reserve_mib >= self.total_mib:
            raise key_error("reserve_mib", f"leaves nothing of total_mib ({self.total_mib})")
        if (
            self.peak_gb_per_s is not None
            and self.sustained_gb_per_s is not None
            and self.sustained_gb_per_s > self.peak_gb_per_s
        ):
            raise key_error("sustained_gb_per_s", f"more than peak_gb_per_s ({self.peak_gb_per_s:g})")
        return self

    @property
    def usable_bytes(self) -> int | None:
        """Total less reserve; None while the total is unknown."""
        return None if self.total_mib is None else max(0, self.total_mib - self.reserve_mib) * 1024 * 1024


class Compute(_Section):
    """How fast the device computes, besides reading memory. Unknown is None."""

    prefill_gflop_per_s: PositiveFloat | None
    """What prefill reaches in practice: 2 x parameters x prompt tokens per second, in 10^9 per second."""
    step_ms: NonNegativeFloat | None
    """Fixed cost of one decode step: launching kernels, sampling. Added to the time that reading takes."""


def _cmake_option(name: str) -> str:
    if not name.startswith(("GGML_", "LLAMA_", "CMAKE_")):
        raise ValueError("not an option of llama.cpp; they start with GGML_, LLAMA_ or CMAKE_")
    return name


class Build(_Section):
    """How llama.cpp is built for the device."""

    probe_isa: bool = False
    """Find the CPU's flags on the build host by executing them; `cmake` holds what is fixed."""
    cmake: Mapping[Annotated[str, AfterValidator(_cmake_option)], bool | int | str]
    """CMake cache entries."""


class Power(_Section):
    """The power mode that the profile's figures hold for. None: does not apply."""

    nvpmodel: str | None = None
    """Name of the mode in /etc/nvpmodel.conf (Jetson)."""
    jetson_clocks: bool | None = None
    governor: str | None = None
    """cpufreq governor."""
    limit_w: PositiveFloat | None = None


def _quantization(name: str) -> str:
    if name not in QUANTIZATIONS:
        guess = nearest(name, QUANTIZATIONS)
        raise ValueError(f"'{name}' is not known here" + (f"; did you mean '{guess}'?" if guess else ""))
    return name


class ProofOverride(_Section):
    """How far an export in one quantization may be from its student; None keeps the exporter's own limit.

    Divergences are KL(student || artifact) of the next token's distribution, in nats.
    """

    mean_kl: PositiveFloat | None = None
    kl_p99: PositiveFloat | None = None
    """99th percentile over positions."""
    top1_agreement: Annotated[float, Field(ge=0, le=1)] | None = None
    """Least share of positions at which both find the same token likeliest."""
    perplexity_ratio: Annotated[float, Field(ge=1)] | None = None
    """The artifact's perplexity over the student's."""


class DeviceProfile(_Section):
    """One kind of device."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    summary: str
    cpu: Cpu
    accelerator: Accelerator | None
    memory: Memory
    compute: Compute = Compute(prefill_gflop_per_s=None, step_ms=None)
    runtime: Runtime
    formats: Annotated[tuple[Format, ...], Field(min_length=1)]
    """Preferred first."""
    quantizations: Annotated[tuple[Annotated[str, AfterValidator(_quantization)], ...], Field(min_length=1)]
    """Preferred first; the first that fits is taken."""
    build: Build
    serve: ServeSettings
    power: Power | None
    proof: dict[Annotated[str, AfterValidator(_quantization)], ProofOverride] = Field(default_factory=dict)
    """By quantization."""

    def resolved(
        self,
        *,
        cores: int | None = None,
        memory_mib: int | None = None,
        architecture: Literal["aarch64", "x86_64"] | None = None,
        isa: tuple[str, ...] | None = None,
        sustained_gb_per_s: float | None = None,
    ) -> DeviceProfile:
        """The profile with readings of the device at hand in place of what it leaves open.

        What the profile states stays. Arguments: physical cores; total memory in MiB; machine name; CPU
        extensions; measured read bandwidth in GB/s. None: not read.
        """
        cpu = self.cpu.model_copy(
            update={
                "cores": cores if self.cpu.cores is None else self.cpu.cores,
                "architecture": architecture if self.cpu.architecture is None else self.cpu.architecture,
                "isa": isa if self.cpu.isa is None else self.cpu.isa,
            }
        )
        stated = self.memory
        memory = stated.model_copy(
            update={
                "total_mib": memory_mib if stated.total_mib is None else stated.total_mib,
                "sustained_gb_per_s": sustained_gb_per_s
                if stated.sustained_gb_per_s is None
                else stated.sustained_gb_per_s,
            }
        )
        threads = cpu.cores if self.serve.threads is None else self.serve.threads
        serve = self.serve.model_copy(update={"threads": threads})
        return self.model_copy(update={"cpu": cpu, "memory": memory, "serve": serve})


def resolve_host(profile: DeviceProfile) -> DeviceProfile:
    """The profile with what it leaves open read from this machine: physical cores, memory, architecture."""
    import platform

    import psutil

    machines: dict[str, Literal["aarch64", "x86_64"]] = {"aarch64": "aarch64", "x86_64": "x86_64"}
    return profile.resolved(
        cores=psutil.cpu_count(logical=False) or os.cpu_count(),
        memory_mib=psutil.virtual_memory().total // (1024 * 1024),
        architecture=machines.get(platform.machine()),
    )


def profiles_directory() -> Path:
    """Where the profiles are: beside the package in a checkout, in the package when installed.

    Raises:
        ProfileError: neither is there.
    """
    package = Path(__file__).resolve().parent
    for directory in (package / "device_profiles", package.parent / "device_profiles"):
        if directory.is_dir():
            return directory
    raise ProfileError(
        f"no device_profiles directory in {package} or {package.parent}", hint="install edgekit again"
    )


def profile_names() -> list[str]:
    """Names of the profiles that ship with edgekit, sorted."""
    return sorted(path.stem for path in profiles_directory().glob("*.yaml"))


def load_profile(name_or_path: str | Path) -> DeviceProfile:
    """Read a profile by its name, or from a YAML file by its path.

    A text with a slash or a suffix of `.yaml` or `.yml` is a path.

    Raises:
        ProfileError: no such profile (names the nearest), or the file is not valid (`file:line: key: what`
            for each problem).
    """
    path = Path(name_or_path)
    if isinstance(name_or_path, str) and "/" not in name_or_path and path.suffix not in (".yaml", ".yml"):
        names = profile_names()
        if name_or_path not in names:
            guess = nearest(name_or_path, names)
            raise ProfileError(
                f"no profile '{name_or_path}'" + (f"; did you mean '{guess}'?" if guess else ""),
                hint=f"profiles: {', '.join(names)}; or give the path of a YAML file",
            )
        path = profiles_directory() / f"{name_or_path}.yaml"
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ProfileError(f"{path}:{line}: not UTF-8 text") from error
    profile = parse_yaml_model(text, DeviceProfile, source=str(path), error=ProfileError)
    if profile.name != path.stem:
        line = next((n for n, row in enumerate(text.splitlines(), 1) if row.startswith("name:")), 1)
        raise ProfileError(
            f"{path}:{line}: name: '{profile.name}' in a file named '{path.stem}'; make them equal"
        )
    return profile


def profile_sha256(profile: DeviceProfile) -> str:
    """SHA-256, in hex, of the profile's canonical JSON: sorted keys, no spaces, UTF-8."""
    canonical = json.dumps(
        profile.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    return hashlib.sha256(canonical.encode()).hexdigest()

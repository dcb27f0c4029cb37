from __future__ import annotations

from pathlib import Path

from edgekit.bench.step_bytes import step_bytes, weight_bytes_read
from edgekit.gguf_header import TensorInfo, model_facts, read_gguf_header
from edgekit.profiles import ServeSettings


def tensor(name: str, type_name: str, shape: tuple[int, ...], size_bytes: int) -> TensorInfo:
    return TensorInfo(
        name=name, shape=shape, type_name=type_name, offset=0, size_bytes=size_bytes, path=Path("m.gguf")
    )


def test_weight_bytes_read__of_an_embedding_that_is_not_the_output_only_rows_are_read() -> None:
    embedding = tensor("token_embd.weight", "Q8_0", (64, 1000), 68_000)
    output = tensor("output.weight", "Q8_0", (64, 1000), 68_000)
    norm = tensor("output_norm.weight", "F32", (64,), 256)
    assert weight_bytes_read([embedding, norm], frozenset()) == 68_256
    assert weight_bytes_read([embedding, output, norm], frozenset()) == 68_256


def test_weight_bytes_read__a_copy_that_is_larger_is_what_is_read() -> None:
    matrix = tensor("blk.0.ffn_up.weight", "Q8_0", (64, 64), 64 * 68)
    amx = frozenset({"amx_int8", "avx512_vnni"})
    assert weight_bytes_read([matrix], amx) == 64 * 68 + 64 * 2 * 4


def test_weight_bytes_read__agrees_with_the_facts_of_a_real_model(student: Path) -> None:
    header = read_gguf_header(student)
    assert weight_bytes_read(header.tensors, frozenset()) == model_facts(header).bytes_per_token


def test_step_bytes__weights_once_and_the_cache_of_each_stream(student: Path) -> None:
    facts = model_facts(read_gguf_header(student))
    settings = ServeSettings(threads=1, context_tokens=512, slots=4, kv_type="f16")
    # SmolLM2-135M: 30 layers, 3 KV heads of 64, keys and values, two bytes each.
    cell = 30 * 3 * 64 * 2 * 2
    assert step_bytes(1000, facts, settings, streams=1, depth=0, tokens=1) == 1000 + cell
    assert step_bytes(1000, facts, settings, streams=4, depth=100, tokens=9) == 1000 + 4 * 105 * cell

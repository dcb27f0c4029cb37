"""ONNX graphs against transformers' logits, against dequantized weights, and in onnxruntime-genai."""

from __future__ import annotations

import importlib.util
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from full_disk import file_size_limited

from edgekit.errors import ContextOverflowError, ExportError, ModelFileError, UsageError
from export.runtimes.onnx_session import OnnxDecoder
from export.student import CheckpointStudent, GgufStudent, open_student
from export.student.gguf_checkpoint import as_checkpoint
from export.targets.onnx import write_onnx

GOLDEN = Path(__file__).parents[2] / "fixtures" / "onnx_golden"


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.parent.name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = _load(GOLDEN / "regenerate.py")
VARIANTS = tuple(reference.VARIANTS)

Variant = Callable[[str], CheckpointStudent]


@pytest.fixture(scope="module")
def variant(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Variant:
    """The student whose logits are in the fixture of that name."""
    made: dict[str, CheckpointStudent] = {}

    def get(name: str) -> CheckpointStudent:
        if name not in made:
            made[name] = _open(reference.write_variant(tiny, tmp_path_factory.mktemp("variant"), name))
        return made[name]

    return get


def _open(path: Path) -> CheckpointStudent:
    student = open_student(path)
    assert isinstance(student, CheckpointStudent)
    return student


def _written(student: Any, directory: Path, **settings: Any) -> Path:
    directory.mkdir()
    write_onnx(student, directory, **{"context_tokens": 128, **settings})
    return directory


@pytest.mark.parametrize("name", VARIANTS)
def test_write_onnx__fp32_logits_equal_transformers(name: str, variant: Variant, tmp_path: Path) -> None:
    decoder = OnnxDecoder(_written(variant(name), tmp_path / "onnx", precision="fp32"))
    with np.load(GOLDEN / f"{name}.npz") as expected:
        for length in reference.PROMPTS:
            logits = decoder.logits(reference.prompt(length))
            assert logits.dtype == np.float32
            np.testing.assert_allclose(logits, expected[f"logits_{length}"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_onnx_decoder__step_by_step_equals_the_whole_prompt(
    name: str, variant: Variant, tmp_path: Path
) -> None:
    directory = _written(variant(name), tmp_path / "onnx", precision="fp32")
    decoder, tokens = OnnxDecoder(directory), reference.prompt(40)
    with np.load(GOLDEN / f"{name}.npz") as expected:
        first = decoder.append(tokens[:25])
        steps = [decoder.append([token]) for token in tokens[25:]]
        np.testing.assert_allclose(np.concatenate([first, *steps]), expected["logits_40"], rtol=0, atol=1e-4)
    # The graph as it is on disk gives the last token's.
    bare = OnnxDecoder(directory, all_positions=False)
    np.testing.assert_allclose(bare.append(tokens), steps[-1], rtol=0, atol=1e-5)
    assert bare.past_tokens == 40


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("settings", [{"block_size": 32}, {"block_size": 64}, {"head_bits": 8}], ids=str)
def test_write_onnx__int4_logits_equal_the_dequantized_weights(
    name: str, settings: dict[str, Any], variant: Variant, tiny: ModuleType, tmp_path: Path
) -> None:
    student = variant(name)
    directory = _written(student, tmp_path / "int4", precision="int4", accuracy_level=1, **settings)
    weights = {tensor.name: tensor.read_float32() for tensor in student.tensors()}
    dequantized = {**weights, **_dequantized(directory, student)}
    for key, values in dequantized.items():
        # 4 bits are some way off, and not beyond it: the comparison below is no comparison of noise.
        assert np.abs(values - weights.get(key, values)).max() < 0.2, key
    copy = tiny.write_checkpoint(
        tmp_path / "copy",
        {**student.config.raw, "tie_word_embeddings": False},
        tensors=dequantized,
        tokenizer=tiny.small_tokenizer(),
    )
    floats = OnnxDecoder(_written(_open(copy), tmp_path / "fp32", precision="fp32"))
    tokens = reference.prompt(40)
    np.testing.assert_allclose(
        OnnxDecoder(directory).logits(tokens), floats.logits(tokens), rtol=0, atol=1e-4
    )


def test_write_onnx__int8_arithmetic_stays_close(variant: Variant, tmp_path: Path) -> None:
    exact = _written(variant("qwen2"), tmp_path / "exact", precision="int4", accuracy_level=1)
    fast = _written(variant("qwen2"), tmp_path / "fast", precision="int4")
    tokens = reference.prompt(40)
    difference = OnnxDecoder(exact).logits(tokens) - OnnxDecoder(fast).logits(tokens)
    assert 0 < np.abs(difference).max() < 0.1


@pytest.mark.parametrize("name", VARIANTS)
def test_write_onnx__graph_for_cuda_is_valid_and_computes_the_same(
    name: str, variant: Variant, tmp_path: Path
) -> None:
    # No GPU here: the graph is checked, and run on the CPU, whose float16 is emulated.
    half = _written(variant(name), tmp_path / "half", precision="fp16-int4")
    full = _written(variant(name), tmp_path / "full", precision="int4", accuracy_level=1)
    model = onnx.load(half / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        # onnxruntime has this one in ONNX's domain, which the checker does not know.
        if node.op_type == "SimplifiedLayerNormalization":
            node.domain = "com.microsoft"
    (half / "checked.onnx").write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(half / "checked.onnx"), full_check=True)
    settings = json.loads((half / "genai_config.json").read_text(encoding="utf-8"))
    assert "cuda" in settings["model"]["decoder"]["session_options"]["provider_options"][0]
    tokens = reference.prompt(40)
    difference = OnnxDecoder(half).logits(tokens) - OnnxDecoder(full).logits(tokens)
    assert np.abs(difference).max() < 0.02


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("name", VARIANTS)
def test_write_onnx__genai_decodes_the_same_tokens(
    name: str, precision: str, variant: Variant, tmp_path: Path
) -> None:
    directory = _written(variant(name), tmp_path / "onnx", precision=precision)
    tokens = reference.prompt(40)
    assert _genai_tokens(directory, tokens, 20) == _greedy(OnnxDecoder(directory), tokens, 20)


def test_write_onnx__genai_decodes_prompts_of_different_lengths_at_once(
    variant: Variant, tmp_path: Path
) -> None:
    import onnxruntime_genai

    directory = _written(variant("qwen2"), tmp_path / "onnx", precision="fp32")
    prompts = [reference.prompt(17), reference.prompt(9)[::-1]]
    model = onnxruntime_genai.Model(str(directory))
    params = onnxruntime_genai.GeneratorParams(model)
    params.set_search_options(max_length=30, do_sample=False, batch_size=2)
    generator = onnxruntime_genai.Generator(model, params)
    padded = [[*prompt, *[260] * (17 - len(prompt))] for prompt in prompts]
    generator.append_tokens(np.array(padded, np.int32))
    found: list[list[int]] = []
    for _ in range(4):
        generator.generate_next_token()
        found.append([int(token) for token in generator.get_next_tokens()])
    decoder = OnnxDecoder(directory)
    for row, prompt in enumerate(prompts):
        decoder.reset()
        assert [tokens[row] for tokens in found] == _greedy(decoder, prompt, 4)


def test_write_onnx__real_student_decodes_the_same_in_genai(student: Path, tmp_path: Path) -> None:
    gguf = open_student(student)
    assert isinstance(gguf, GgufStudent)
    directory = _written(as_checkpoint(gguf), tmp_path / "onnx", precision="int4", context_tokens=512)
    import onnxruntime_genai

    tokenizer = onnxruntime_genai.Tokenizer(onnxruntime_genai.Model(str(directory)))
    question = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    tokens = [int(token) for token in tokenizer.encode(question)]
    answer = _genai_tokens(directory, tokens, 24)
    assert "Paris" in tokenizer.decode(np.array(answer))
    decoder = OnnxDecoder(directory, all_positions=False, context_tokens=256)
    assert _greedy(decoder, tokens, len(answer)) == answer


@pytest.mark.parametrize(
    "settings", [{"precision": "fp32"}, {"precision": "int4"}, {"head_bits": 8}], ids=str
)
@pytest.mark.parametrize(("name", "copies"), [("qwen2", 1), ("llama3-rope", 2)])
def test_write_onnx__tied_head_is_stored_once(
    name: str, copies: int, settings: dict[str, Any], variant: Variant, tmp_path: Path
) -> None:
    directory = _written(variant(name), tmp_path / "onnx", **{"precision": "int4", **settings})
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    tables = [
        tensor
        for tensor in model.graph.initializer
        if tensor.dims[:1] == [272] and not tensor.name.endswith("scales")
    ]
    places = {entry.value for table in tables for entry in table.external_data if entry.key == "offset"}
    assert len(places) == copies, [table.name for table in tables]


def test_write_onnx__rows_that_cannot_be_looked_up_are_refused(tiny: ModuleType, tmp_path: Path) -> None:
    tokens = {"vocab_size": 272, "bos_token_id": 263, "eos_token_id": 260}
    config = tiny.make_config("R1-Tiny-Llama-1M", hidden_size=72, **tokens)
    path = tiny.write_checkpoint(tmp_path / "odd", config, tokenizer=tiny.small_tokenizer())
    with pytest.raises(ExportError, match="72 columns"):
        _written(_open(path), tmp_path / "int4", precision="int4")
    directory = _written(_open(path), tmp_path / "fp32", precision="fp32")
    assert OnnxDecoder(directory).logits([1, 2, 3]).shape == (3, 272)


def test_write_onnx__tokenizer_and_template_are_the_students(variant: Variant, tmp_path: Path) -> None:
    student = variant("qwen2")
    directory = _written(student, tmp_path / "onnx", precision="int4", threads=3)
    for name, content in student.tokenizer_files().items():
        assert (directory / name).read_bytes() == content
    settings = json.loads((directory / "genai_config.json").read_text(encoding="utf-8"))
    assert settings["model"]["type"] == "qwen2"
    assert settings["model"]["decoder"]["session_options"]["intra_op_num_threads"] == 3
    assert settings["model"]["eos_token_id"][0] == 260
    assert settings["model"]["context_length"] == settings["search"]["max_length"] == 128


def test_write_onnx__generation_config_gives_sampling_and_ends(small: Path, tmp_path: Path) -> None:
    generation = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "eos_token_id": [261, 260]}
    (small / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    directory = _written(_open(small), tmp_path / "onnx", precision="int4")
    settings = json.loads((directory / "genai_config.json").read_text(encoding="utf-8"))
    assert settings["model"]["eos_token_id"] == [261, 260]
    assert settings["search"]["temperature"] == 0.6
    assert settings["search"]["do_sample"] is True


def test_write_onnx__endless_model_max_length_is_made_a_number(small: Path, tmp_path: Path) -> None:
    path = small / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**settings, "model_max_length": 1e30}), encoding="utf-8")
    directory = _written(_open(small), tmp_path / "onnx", precision="int4")
    written = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert written == {**settings, "model_max_length": 128}


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("tensor", ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"])
def test_write_onnx__nan_is_refused_with_its_place(
    precision: str, tensor: str, tiny: ModuleType, tmp_path: Path
) -> None:
    config = tiny.make_config("R1-Tiny-Qwen2", vocab_size=272, bos_token_id=263, eos_token_id=260)
    tensors = tiny.make_tensors(config)
    tensors[tensor][5, 7] = 0x7FC0
    path = tiny.write_checkpoint(tmp_path / "bad", config, tensors=tensors, tokenizer=tiny.small_tokenizer())
    with pytest.raises(ModelFileError, match=rf"'{tensor}' has the value nan at \[5, 7\]"):
        _written(_open(path), tmp_path / "onnx", precision=precision)


def test_write_onnx__full_disk_is_an_export_error(variant: Variant, tmp_path: Path) -> None:
    with file_size_limited(1 << 16), pytest.raises(ExportError, match="cannot be written"):
        _written(variant("qwen2"), tmp_path / "onnx", precision="fp32")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": 48}, "block_size is 48"),
        ({"block_size": 8}, "block_size is 8"),
        ({"block_size": 512}, "block_size is 512"),
        ({"head_bits": 6}, "head_bits is 6"),
        ({"context_tokens": 0}, "context_tokens is 0"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_write_onnx__senseless_arguments_are_refused(
    settings: dict[str, Any], message: str, variant: Variant, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        _written(variant("qwen2"), tmp_path / "onnx", **{"precision": "int4", **settings})


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_write_onnx__holds_pieces_of_tensors_only(precision: str, tiny: ModuleType, tmp_path: Path) -> None:
    # 49 MB of BF16 in the embedding and as much in the head; a piece is 16 MB as float32.
    sizes = {"hidden_size": 256, "num_hidden_layers": 1, "intermediate_size": 256}
    tokens = {"vocab_size": 96000, "bos_token_id": 263, "eos_token_id": 260}
    config = tiny.make_config("R1-Tiny-Llama-1M", **sizes, **tokens)
    path = tiny.write_checkpoint(
        tmp_path / "wide", config, tensors=_zeros(tiny, config), tokenizer=tiny.small_tokenizer()
    )
    student = _open(path)
    assert student.tokenizer.tokens  # made here: Python's strings are no matter of the target
    tracemalloc.start()
    try:
        _written(student, tmp_path / "onnx", precision=precision)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 80e6


def test_onnx_decoder__overflow_names_both_numbers(variant: Variant, tmp_path: Path) -> None:
    directory = _written(variant("qwen2"), tmp_path / "onnx", precision="fp32", context_tokens=16)
    decoder = OnnxDecoder(directory)
    decoder.append(reference.prompt(10))
    with pytest.raises(ContextOverflowError) as caught:
        decoder.append(reference.prompt(7))
    assert (caught.value.prompt_tokens, caught.value.context_tokens) == (17, 16)


def test_onnx_decoder__long_prompts_go_in_pieces(variant: Variant, tmp_path: Path) -> None:
    directory = _written(variant("llama3-rope"), tmp_path / "onnx", precision="fp32", context_tokens=600)
    tokens = reference.prompt(530)
    decoder = OnnxDecoder(directory)
    whole = decoder.logits(tokens)
    decoder.reset(100)
    assert whole.shape == (530, 272)
    np.testing.assert_allclose(decoder.append(tokens[100:]), whole[100:], rtol=0, atol=1e-4)


def test_onnx_decoder__damaged_files_are_named(variant: Variant, tmp_path: Path) -> None:
    directory = _written(variant("qwen2"), tmp_path / "onnx", precision="int4")
    (directory / "model.onnx.data").unlink()
    with pytest.raises(ModelFileError, match=r"model\.onnx: onnxruntime cannot load it"):
        OnnxDecoder(directory)
    (directory / "genai_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelFileError, match=r"genai_config\.json: malformed"):
        OnnxDecoder(directory)


def _zeros(tiny: ModuleType, config: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.zeros(shape, np.uint16) for name, shape in tiny.tensor_shapes(config).items()}


def _greedy(decoder: OnnxDecoder, tokens: list[int], count: int) -> list[int]:
    found = [int(decoder.append(tokens)[-1].argmax())]
    while len(found) < count:
        found.append(int(decoder.append(found[-1:])[-1].argmax()))
    return found


def _genai_tokens(directory: Path, tokens: list[int], count: int) -> list[int]:
    import onnxruntime_genai

    model = onnxruntime_genai.Model(str(directory))
    params = onnxruntime_genai.GeneratorParams(model)
    params.set_search_options(max_length=len(tokens) + count, do_sample=False)
    generator = onnxruntime_genai.Generator(model, params)
    generator.append_tokens(np.array(tokens, np.int32))
    found: list[int] = []
    while not generator.is_done() and len(found) < count:
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    return found


def _dequantized(directory: Path, student: CheckpointStudent) -> dict[str, np.ndarray]:
    """What the packed matrices stand for, read by the words of the operators' documentation."""
    model = onnx.load(directory / "model.onnx")
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        settings = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type == "MatMulNBits":
            matrix = _matrix([stored.get(name) for name in node.input[1:4]], settings)[:, : settings["K"]]
            found.update(_named(node.name, matrix, student))
        elif node.op_type == "GatherBlockQuantized":
            packed, scales = stored[node.input[0]], stored[node.input[2]]
            blocks = packed.reshape(*scales.shape, -1)
            found["model.embed_tokens.weight"] = _matrix([blocks, scales, None], settings)
    assert len(found) == 2 + 7 * student.config.layers
    return found


def _matrix(parts: list[np.ndarray | None], settings: dict[str, Any]) -> np.ndarray:
    packed, scales, zeros = [*parts, None][:3]
    assert packed is not None and scales is not None
    bits, (rows, blocks) = settings["bits"], scales.shape

    def unpack(values: np.ndarray, count: int) -> np.ndarray:
        values = values.reshape(rows, -1)
        if bits == 4:
            values = np.stack([values & 15, values >> 4], axis=-1).reshape(rows, -1)
        return values[:, :count].astype(np.float32)

    codes = unpack(packed, blocks * settings["block_size"]).reshape(rows, blocks, -1)
    zero = np.float32(1 << (bits - 1)) if zeros is None else unpack(zeros, blocks)[:, :, None]
    return ((codes - zero) * scales[:, :, None]).reshape(rows, -1)


def _named(node: str, matrix: np.ndarray, student: CheckpointStudent) -> Iterator[tuple[str, np.ndarray]]:
    if node.startswith("/lm_head"):
        yield "lm_head.weight", matrix
        return
    _, _, layers, block, projection, _ = node.split("/")
    names = {
        "qkv_proj": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "o_proj": ["self_attn.o_proj"],
        "gate_proj": ["mlp.gate_proj"],
        "up_proj": ["mlp.up_proj"],
        "down_proj": ["mlp.down_proj"],
    }[projection]
    assert names[0].startswith("mlp") == (block == "mlp")
    shapes = student.config.tensor_shapes()
    for name in names:
        full = f"model.{layers}.{name}.weight"
        rows = shapes[full][0]
        yield full, matrix[:rows]
        matrix = matrix[rows:]

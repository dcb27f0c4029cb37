"""Exports with optimum-onnx and quantizes with onnxruntime, in an environment of its own.

Run as a script by export.optimum.exporter with the interpreter of that environment; it imports nothing of
edgekit. `optimum_worker.py REQUEST.json`, where the request has:

    "architectures"  answer with what optimum exports; nothing else is read
    "export"         {"model", "directory", "sequences": [[int]]}: write directory/model.onnx, float32, and
                     directory/reference.npz with transformers' own float32 logits of the sequences
    "quantize"       {"source", "directory", "block_columns", "symmetric", "vocabulary"}:
                     write directory/model.onnx, the int4 form of source/model.onnx

Writes JSON lines to stdout: {"step": str} as it goes, at last {"result": ...} or {"error": str}.
"""

# mypy: disable-error-code="import-not-found,import-untyped"
# What it imports lies in the other environment.

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

TASK = "text-generation-with-past"


def architectures(_request: Any, _say: Any) -> list[str]:
    import optimum.exporters.onnx.model_configs  # noqa: F401 (registers them)
    from optimum.exporters.tasks import TasksManager

    def types(task: str) -> set[str]:
        return set(TasksManager.get_supported_model_type_for_task(task, "onnx"))

    # Encoder-decoders are listed for text generation as well: their decoder alone.
    return sorted(types(TASK) - types("text2text-generation-with-past"))


def export(request: dict[str, Any], say: Any) -> None:
    import numpy as np
    import torch
    from optimum.exporters.onnx import main_export
    from transformers import AutoModelForCausalLM

    directory = Path(request["directory"])
    say("exporting with optimum")
    main_export(
        request["model"],
        output=directory,
        task=TASK,
        framework="pt",
        library_name="transformers",
        device="cpu",
        dtype="fp32",
        local_files_only=True,
        # Its own check takes 1e-3 relative on dummy inputs for a warning: the caller checks instead.
        do_validation=False,
    )
    say("computing the reference with transformers")
    model = AutoModelForCausalLM.from_pretrained(
        request["model"], dtype=torch.float32, local_files_only=True, trust_remote_code=False
    ).eval()
    logits = {}
    with torch.inference_mode():
        for index, tokens in enumerate(request["sequences"]):
            logits[str(index)] = model(torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()
    np.savez(directory / "reference.npz", **logits)


def quantize(request: dict[str, Any], say: Any) -> int:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    say("quantizing to int4")
    model = onnx.load(Path(request["source"]) / "model.onnx")
    expose_matrices(model.graph)
    config = DefaultWeightOnlyQuantConfig(
        block_size=request["block_columns"],
        is_symmetric=request["symmetric"],
        accuracy_level=4,  # int8 activations: the kernels that CPUs are fast with
        op_types_to_quantize=("MatMul", "Gather"),
        quant_axes=(("MatMul", 0), ("Gather", 1)),
    )
    rows = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if tensor.dims}
    # Of the tables that are looked up, only the embedding is large; positions stay as they are.
    small = [
        node.name
        for node in model.graph.node
        if node.op_type == "Gather" and rows.get(node.input[0], 0) < request["vocabulary"]
    ]
    quantizer = MatMulNBitsQuantizer(model, nodes_to_exclude=small, algo_config=config)
    quantizer.process()
    say("writing the int4 graph")
    quantizer.model.save_model_to_file(
        str(Path(request["directory"]) / "model.onnx"), use_external_data_format=True
    )
    nodes = quantizer.model.model.graph.node
    return sum(node.op_type in ("MatMulNBits", "GatherBlockQuantized") for node in nodes)


def expose_matrices(graph: Any) -> None:
    """Rewrite the graph in place so that all its weight matrices are constant inputs of MatMul.

    The quantizer sees no others. GPT-2 multiplies by Gemm; a tied head multiplies by a Transpose of the
    embedding.
    """
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    transposed: dict[str, str] = {}

    def transpose_of(name: str) -> str:
        if name not in transposed:
            transposed[name] = f"{name}_as_columns"
            values = numpy_helper.to_array(constants[name]).T.copy()
            graph.initializer.append(numpy_helper.from_array(values, transposed[name]))
        return transposed[name]

    nodes = []
    for node in graph.node:
        if node.op_type == "MatMul":
            source = producers.get(node.input[1])
            matrix = source.input[0] if source is not None and source.op_type == "Transpose" else ""
            if matrix in constants and len(constants[matrix].dims) == 2:
                node.input[1] = transpose_of(matrix)
        elif node.op_type == "Gemm" and node.input[1] in constants:
            values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
            if values.get("alpha", 1) == values.get("beta", 1) == 1 and not values.get("transA"):
                weight = transpose_of(node.input[1]) if values.get("transB") else node.input[1]
                biased = len(node.input) > 2 and node.input[2]
                product = f"{node.output[0]}_product" if biased else node.output[0]
                nodes.append(helper.make_node("MatMul", [node.input[0], weight], [product], name=node.name))
                if biased:
                    ends = [product, node.input[2]]
                    nodes.append(helper.make_node("Add", ends, [node.output[0]], name=f"{node.name}_bias"))
                continue
        nodes.append(node)
    used = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    nodes = [node for node in nodes if node.op_type != "Transpose" or used.intersection(node.output)]
    del graph.node[:]
    graph.node.extend(nodes)


def main(path: str, answers: TextIO) -> int:
    def tell(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    request = json.loads(Path(path).read_text(encoding="utf-8"))
    command = {"architectures": architectures, "export": export, "quantize": quantize}[request["command"]]
    try:
        tell(result=command(request, lambda step: tell(step=step)))
    except Exception as error:  # whatever the libraries raise is what the user is told
        tell(error=f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    # The libraries print to stdout: theirs goes to stderr, the answers keep the real one.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.exit(main(sys.argv[1], channel))

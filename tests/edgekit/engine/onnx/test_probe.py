"""Damaged bundles: each is refused by name, by the child process, and nothing dies of it."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from edgekit.engine.onnx.probe import probe_graph
from edgekit.errors import EdgekitError, EngineStoppedError, ModelFileError


@pytest.fixture
def bundle(tiny_onnx: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_onnx, tmp_path / "bundle"))


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "graph cut": lambda bundle: cut(bundle / "model.onnx", 0.5),
    "graph empty": lambda bundle: (bundle / "model.onnx").write_bytes(b""),
    "graph missing": lambda bundle: (bundle / "model.onnx").unlink(),
    "graph is text": lambda bundle: (bundle / "model.onnx").write_text("# a graph\n" * 99),
    "weights cut": lambda bundle: cut(bundle / "model.onnx.data", 0.9),
    "weights missing": lambda bundle: (bundle / "model.onnx.data").unlink(),
    "tokenizer missing": lambda bundle: (bundle / "tokenizer.json").unlink(),
    "tokenizer cut": lambda bundle: cut(bundle / "tokenizer.json", 0.7),
    "config cut": lambda bundle: cut(bundle / "genai_config.json", 0.5),
}


def test_probe_graph__good_bundle_passes(bundle: Path) -> None:
    probe_graph(bundle / "model.onnx", threads=1)


@pytest.mark.parametrize("damage", DAMAGES)
def test_probe_graph__damage_is_refused_by_name(damage: str, bundle: Path) -> None:
    DAMAGES[damage](bundle)
    with pytest.raises(ModelFileError) as caught:
        probe_graph(bundle / "model.onnx", threads=1)
    assert str(bundle) in caught.value.message


@pytest.mark.parametrize("seed", range(3))
def test_probe_graph__flipped_bytes_of_a_graph_are_survived(seed: int, bundle: Path) -> None:
    world, path = random.Random(seed), bundle / "model.onnx"
    content = bytearray(path.read_bytes())
    for _ in range(40):
        content[world.randrange(len(content))] = world.randrange(256)
    path.write_bytes(content)
    with suppress(EdgekitError):  # what dies is the child
        probe_graph(path, threads=1)


def test_probe_graph__stops_when_nobody_wants_it_any_more(bundle: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(EngineStoppedError):
        probe_graph(bundle / "model.onnx", threads=1, stop=stop)

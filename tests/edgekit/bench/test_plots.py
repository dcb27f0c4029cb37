from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest

from edgekit.bench.bandwidth import Bandwidth
from edgekit.bench.bundle_bench import BundleReport, Row
from edgekit.bench.engine_rows import Case, Spread
from edgekit.bench.plots import LoadPlot, check_plot_path, plot_bundle, plot_loads, write_plot
from edgekit.bench.svg import Bar, bars, distributions, figure
from edgekit.errors import EdgekitError, UsageError
from edgekit.http_load.exchange import Answer
from edgekit.http_load.figures import summarize
from edgekit.http_load.loads import Measurement
from edgekit.profiles import ServeSettings

SVG = "{http://www.w3.org/2000/svg}"


def texts(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def bar_lengths(root: ET.Element) -> list[float]:
    """Bars are 14 pixels thick."""
    return [float(one.get("width", "")) for one in root.iter(f"{SVG}rect") if one.get("height") == "14"]


def parsed(drawing: str) -> ET.Element:
    root = ET.fromstring(drawing)  # noqa: S314 (our own)
    width, height = float(root.get("width", "")), float(root.get("height", ""))
    for element in root.iter():
        for name in ("x", "x1", "x2", "y", "y1", "y2"):
            value = element.get(name)
            assert value is None or 0 <= float(value) <= max(width, height)
    return root


def test_bars__are_as_long_as_what_they_stand_for() -> None:
    panel = bars(
        "Speed",
        "tokens/s",
        [Bar("a", "ours", 50), Bar("a", "theirs", 25, 20, 30), Bar("b", "ours", 100)],
        ["ours", "theirs"],
    )
    root = parsed(figure("T", ["s"], ["ours", "theirs"], [[panel]]))
    lengths = bar_lengths(root)
    assert lengths[0] == pytest.approx(lengths[2] / 2, abs=0.1)
    assert lengths[1] == pytest.approx(lengths[2] / 4, abs=0.1)
    found = texts(root)
    assert {"T", "s", "ours", "theirs", "Speed", "tokens/s", "a", "b", "50", "25", "100"} <= set(found)
    assert found.count("a") == 1
    whiskers = [line for line in root.iter(f"{SVG}line") if line.get("class") == "whisker"]
    assert len(whiskers) == 3


def test_distributions__lines_rise_from_nothing_to_all() -> None:
    samples = {"ours": [1.0, 2.0, 4.0, 8.0], "theirs": [3.0], "silent": []}
    panel = distributions("Times", "ms", samples, ["ours", "theirs", "silent"])
    root = parsed(figure("T", [], ["ours", "theirs", "silent"], [[panel]]))
    paths = [path.get("d", "") for path in root.iter(f"{SVG}path")]
    assert len(paths) == 2
    heights = [float(value) for value in re.findall(r"V([0-9.]+)", paths[0])]
    # Four equal steps upwards.
    steps = [earlier - later for earlier, later in pairwise(heights)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.2)
    assert steps[0] > 10
    # Doubling is the same way on a logarithmic axis.
    across = [float(value) for value in re.findall(r"H([0-9.]+)V", paths[0])]
    ways = [later - earlier for earlier, later in pairwise(across)]
    assert ways == pytest.approx([ways[0]] * 3, abs=0.2)


def test_distributions__thousands_of_values_stay_a_small_file() -> None:
    samples = {"ours": [1 + index % 977 for index in range(50_000)]}
    panel = distributions("Times", "ms", samples, ["ours"])
    assert len(panel.content) < 12_000


def test_distributions__nothing_seen_says_so() -> None:
    panel = distributions("Times", "ms", {"ours": []}, ["ours"])
    assert "nothing was seen" in texts(parsed(figure("T", [], ["ours"], [[panel]])))


def test_figure__text_is_escaped_and_both_colour_schemes_are_served() -> None:
    drawing = figure('a < b & "c"', [], ["x"], [[bars("t", "u", [Bar("<l>", "x", 1)], ["x"])]])
    assert "<l>" in texts(parsed(drawing))
    assert "prefers-color-scheme:dark" in drawing


def measurement(tokens: int, begin_s: float) -> Measurement:
    answer = Answer(0.0, 0.0, ended_s=1.0, event_s=[begin_s, begin_s + 0.1, begin_s + 0.3], tokens=tokens)
    figures = summarize(
        [answer], load="closed", streams=1, rate_per_s=None, begun_s=0.0, ended_s=1.0, background=[answer]
    )
    return Measurement(figures, [answer], [answer])


def test_plot_loads__shows_each_server_in_each_load() -> None:
    loads = [
        LoadPlot(
            label,
            {"http://a": [measurement(40, 0.2), measurement(20, 0.3)], "http://b": [measurement(10, 0.5)]},
        )
        for label in ("1 stream", "8 streams")
    ]
    root = parsed(plot_loads("Load", ["answers of 128 tokens"], loads))
    lengths = bar_lengths(root)
    # The median of the rounds.
    assert lengths[0] == pytest.approx(3 * lengths[1], rel=0.01)
    found = texts(root)
    assert "8 streams: time to first token" in found
    assert "1 stream: between events of a stream" in found
    assert "1 stream: between events of the streams that ran meanwhile" in found
    assert len(list(root.iter(f"{SVG}path"))) == 2 * 3 * 2


def test_plot_bundle__engine_and_scheduler_side_by_side() -> None:
    rows = [
        Row(Case("pp", 512), Spread.of([300.0])),
        Row(Case("tg", 64), Spread.of([40.0, 60.0])),
        Row(Case("tg", 64, layer="scheduler"), Spread.of([45.0])),
    ]
    settings = ServeSettings(threads=2, context_tokens=512, slots=1)
    report = BundleReport("m", 1, "llama.cpp", "Q4_1", 2, settings, Bandwidth(10, 1, 2, None), 1, rows)
    root = parsed(plot_bundle("m Q4_1", ["x"], report))
    assert {"Prompt processing", "pp512", "tg64, 1 stream", "through scheduler and sampling"} <= set(
        texts(root)
    )
    lengths = bar_lengths(root)
    assert lengths[2] == pytest.approx(lengths[1] * 0.9, rel=0.01)


def test_check_plot_path__before_anything_is_measured(tmp_path: Path) -> None:
    check_plot_path(tmp_path / "a.svg")
    with pytest.raises(UsageError, match="written as SVG") as caught:
        check_plot_path(tmp_path / "a.png")
    assert "a.svg" in str(caught.value.hint)
    with pytest.raises(UsageError, match="no directory"):
        check_plot_path(tmp_path / "absent" / "a.svg")


def test_write_plot__disk_that_does_not_take_it(tmp_path: Path) -> None:
    (tmp_path / "a.svg").mkdir()
    with pytest.raises(EdgekitError, match="cannot write the plot"):
        write_plot(tmp_path / "a.svg", "<svg/>")

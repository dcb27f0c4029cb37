"""`edgekit bench` as a user runs it."""

from __future__ import annotations

import json
import socket
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from timed_sse import Script, TimedServer
from typer.testing import CliRunner, Result

from edgekit.cli.main import app
from edgekit.errors import EdgekitError, SignatureError, UsageError

QUICK = ["-p", "16", "-n", "4", "-d", "0,8", "-s", "1,2", "-r", "2", "-t", "1"]


def run(*arguments: str | Path, **environ: str) -> Result:
    clean = {"EDGEKIT_API_KEY": "", "EDGEKIT_AGAINST_API_KEY": "", "EDGEKIT_PUBLIC_KEY": ""}
    return CliRunner().invoke(app, ["bench", *map(str, arguments)], env={**clean, **environ})


def document(result: Result) -> dict[str, Any]:
    """Standard output is one JSON document and nothing else."""
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def error_of(result: Result) -> EdgekitError:
    assert isinstance(result.exception, EdgekitError), result.output
    return result.exception


def test_bundle__rows_of_engine_and_scheduler(bundle: Path, public_key: str, tmp_path: Path) -> None:
    plot = tmp_path / "bundle.svg"
    result = run(bundle, *QUICK, "--public-key", public_key, "--json", "--plot", plot)
    found = document(result)
    assert result.exit_code == 0
    assert found["ok"] is True
    rows = {(row["layer"], row["test"], row["depth"], row["streams"]): row for row in found["rows"]}
    decoding = [(depth, streams) for depth in (0, 8) for streams in (1, 2)]
    assert set(rows) == {
        *(("engine", "pp", depth, 1) for depth in (0, 8)),
        *((layer, "tg", *place) for layer in ("engine", "scheduler") for place in decoding),
    }
    for row in rows.values():
        assert len(row["samples"]) == 2
        assert row["tokens_per_s"] == pytest.approx(sum(row["samples"]) / 2)
        assert row["stddev"] is not None
        assert min(row["samples"]) > 0
    weights, bandwidth = found["weight_bytes_per_step"], found["bandwidth"]
    row = rows["engine", "tg", 8, 2]
    # 30 layers, 3 KV heads of 64, keys and values of two bytes; two streams at a mean of 10.5 cells.
    assert row["bytes_per_step"] == weights + round(2 * 10.5 * 30 * 3 * 64 * 2 * 2)
    share = row["bytes_per_step"] * row["tokens_per_s"] / 2 / (bandwidth["gb_per_s"] * 1e9)
    assert row["bandwidth_share"] == pytest.approx(share)
    assert rows["engine", "pp", 0, 1]["bandwidth_share"] is None
    assert (found["threads"], bandwidth["threads"], found["quantization"]) == (1, 1, "Q4_1")
    assert ET.parse(plot).getroot().get("aria-label") == "student Q4_1"  # noqa: S314 (our own)


def test_bundle__table_for_readers(bundle: Path) -> None:
    result = run(bundle, "-p", "0", "-n", "2", "-s", "1", "-r", "1", "--integrity-only")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["test", "streams", "tok/s", "bandwidth", "tok/J"]
    assert lines[1].split()[:3] == ["engine", "tg2", "1"]
    assert lines[2].split()[:3] == ["scheduler", "tg2", "1"]
    assert "GB/s read with" in result.stdout
    assert "nothing drawn, as in llama-bench" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-d", "9000"], "trained for"),
        (["-s", "200"], "do not fit the bundle's batch of 128"),
        (["-p", "0", "-n", "0"], "nothing to measure"),
        (["-s", "one"], "not numbers"),
        (["-s", "0"], "less than 1"),
        (["--rate", "1", "--against", "http://x"], "--rate, --against: no meaning for a bundle"),
        (["--plot", "a.png"], "written as SVG"),
    ],
)
def test_bundle__wrong_usage(bundle: Path, options: list[str], message: str) -> None:
    result = run(bundle, "--integrity-only", *options)
    assert isinstance(error_of(result), UsageError)
    assert message in str(result.exception)


def test_bundle__without_a_key_the_way_out_is_named(bundle: Path) -> None:
    error = error_of(run(bundle))
    if not Path("/etc/edgekit/edgekit.pub").exists():
        assert isinstance(error, SignatureError)
        assert "--integrity-only" in str(error)


def test_target__neither_a_directory_nor_a_url(tmp_path: Path) -> None:
    for target in (tmp_path / "absent", "localhost:8080"):
        assert "neither a bundle's directory nor a URL" in str(error_of(run(target)))


def test_url__closed_loop(tmp_path: Path) -> None:
    plot = tmp_path / "load.svg"
    with TimedServer(lambda number: Script(gap_s=0.002, events=5, tokens_per_event=2)) as server:
        result = run(
            server.url, "-s", "1,3", "--requests", "2", "--max-tokens", "10", "--json", "--plot", plot
        )
    found = document(result)
    assert result.exit_code == 0
    assert (found["url"], found["against"], found["rounds"]) == (server.url, None, 1)
    one, three = found["loads"]
    assert (one["streams"], three["streams"], three["ratios"], three["against"]) == (1, 3, None, None)
    figures = three["measured"][0]
    assert (figures["requests"], figures["tokens"], figures["tokens_per_event"]) == (6, 60, 2.0)
    assert set(figures["tpot_ms"]) == {"count", "p50", "p95", "p99", "max"}
    # Sockets of the loopback have no meter, and this machine has none either, or has.
    assert figures["tokens_per_joule"] is None or figures["tokens_per_joule"] > 0
    assert ET.parse(plot).getroot().tag.endswith("svg")  # noqa: S314 (our own)
    # No prompt twice: the second of two servers would find it cached.
    prompts = [chat["messages"][0]["content"] for chat in server.chats]
    assert len(set(prompts)) == len(prompts) == 1 + 2 + 6


def test_url__two_servers_in_turn() -> None:
    with (
        TimedServer(lambda number: Script(first_s=0.02, gap_s=0.01, events=4)) as ours,
        TimedServer(lambda number: Script(first_s=0.10, gap_s=0.05, events=4)) as theirs,
    ):
        options = ["-s", "2", "--requests", "1", "--max-tokens", "4", "--rounds", "2"]
        result = run(ours.url, *options, "--against", theirs.url, "--json")
        table = run(ours.url, *options, "--against", theirs.url)
    load = document(result)["loads"][0]
    assert len(load["measured"]) == len(load["against"]) == 2
    ratio = load["ratios"]["ttft_p50"]
    assert ratio["min"] <= ratio["median"] <= ratio["max"] < 1
    assert load["ratios"]["tokens_per_s"]["min"] > 1
    # Both were asked the same.
    assert sorted(map(str, ours.chats)) == sorted(map(str, theirs.chats))
    lines = table.stdout.splitlines()
    served = [line.split()[-1] for line in lines if line.startswith("2 streams")]
    assert served == [ours.url, theirs.url, theirs.url, ours.url]
    assert any(line.strip().startswith("tokens_per_s") for line in lines)


def test_url__open_loop_counts_what_is_refused() -> None:
    # The first chat warms up.
    with TimedServer(lambda number: Script(status=429 if number % 3 == 2 else 200, events=2)) as server:
        options = ["--rate", "60", "--duration", "0.5", "--max-tokens", "2"]
        found = document(run(server.url, *options, "--json"))
        table = run(server.url, *options)
    figures = found["loads"][0]["measured"][0]
    assert found["loads"][0]["rate_per_s"] == 60
    assert figures["errors"]["429"] + figures["answered"] == figures["requests"]
    assert "x 429" in table.stdout
    assert "answered in" in table.stdout


def test_url__real_server_with_prompts_of_a_length(server_url: str) -> None:
    options = ["--rate", "4", "--duration", "1", "--background", "1", "--max-tokens", "2", "--seed", "3"]
    result = run(
        server_url,
        *options,
        "--prompt-tokens",
        "100",
        "--shared-prefix-tokens",
        "60",
        "--json",
        "--forbid-token",
        "2",
    )
    figures = document(result)["loads"][0]["measured"][0]
    assert figures["errors"] == {}
    assert figures["prompt_tokens"] == pytest.approx(100, rel=0.1)
    assert figures["background_streams_gap_ms"] is None or figures["background_streams_gap_ms"]["p50"] > 0


def test_url__api_key_from_a_file_or_the_environment(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sk-right\n")
    options = ["-s", "1", "--requests", "1", "--json"]
    with TimedServer(key="sk-right") as server:
        assert run(server.url, *options, "--api-key-file", keys).exit_code == 0
        assert run(server.url, *options, EDGEKIT_API_KEY="sk-right").exit_code == 0
        refused = run(server.url, *options)
        assert refused.exit_code == 1
        assert document(refused)["error"].endswith("wants an API key (401)")
        # A key goes to the server that it is for, and to no other.
        with TimedServer() as other:
            assert run(other.url, *options, "--against", server.url, "--api-key-file", keys).exit_code == 1


def test_url__nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    result = run(url, "--json")
    assert result.exit_code == 1
    assert document(result) == {
        "ok": False,
        "error": f"{url}: connection refused",
        "hint": "is the server running?",
        "kind": "EdgekitError",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rate", "1", "-s", "4"], "--streams and --requests have no meaning"),
        (["--rate", "0"], "above 0"),
        (["--rate", "fast"], "not numbers"),
        (["--duration", "5"], "--duration: no meaning for a closed loop"),
        (["--shared-prefix-tokens", "5"], "needs --prompt-tokens"),
        (["-p", "5"], "-p: no meaning for a URL, only for a bundle"),
        (["--against", "http://127.0.0.1:1"], "the same server"),
        (["--against-api-key-file", "x"], "cannot read|needs --against"),
    ],
)
def test_url__wrong_usage(options: list[str], message: str) -> None:
    result = run("http://127.0.0.1:1", *options)
    assert isinstance(error_of(result), UsageError)
    assert any(part in str(result.exception) for part in message.split("|"))

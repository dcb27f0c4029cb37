"""The command itself: the verbs, and how they are listed."""

from __future__ import annotations

from typer.testing import CliRunner

from edgekit.cli.main import VERBS, app


def test_help__lists_each_verb_by_its_name() -> None:
    result = CliRunner().invoke(app, ["--help"], env={"TERM": "dumb", "COLUMNS": "120"})
    assert result.exit_code == 0
    listed = {line.strip("│| ").split(" ")[0] for line in result.output.splitlines()}
    assert listed >= VERBS.keys()


def test_unknown_verb__is_refused() -> None:
    result = CliRunner().invoke(app, ["deploy"])
    assert result.exit_code == 2

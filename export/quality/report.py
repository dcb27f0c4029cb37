"""A proof as a page to read: one HTML file, plots as SVG within, nothing fetched from anywhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Final

from export.quality.record import KL_QUANTILES, GoldenAnswer, Proof, TensorError

__all__ = ["render_report", "write_report"]

_STYLE: Final = """
:root { color-scheme: light dark; --back: #fcfcfa; --text: #1c2024; --muted: #646a73; --line: #d9dadd;
  --good: #1a7f4b; --bad: #c0392b; --ink: #2b6cb0; --panel: #f2f3f5; }
@media (prefers-color-scheme: dark) { :root { --back: #16181c; --text: #e4e6ea; --muted: #9aa1ab;
  --line: #363a41; --good: #4cc38a; --bad: #ff7b6b; --ink: #6cb0f5; --panel: #1f2227; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1.2rem 4rem; background: var(--back);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p { margin: .4rem 0; overflow-wrap: anywhere; } .muted { color: var(--muted); }
.good { color: var(--good); } .bad { color: var(--bad); }
.verdict { margin: 1.2rem 0; padding: .8rem 1rem; border-left: 4px solid; background: var(--panel); }
.verdict ul { margin: .3rem 0 0; padding-left: 1.2rem; color: var(--text); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; }
.figure { background: var(--panel); padding: .7rem .9rem; border-radius: .3rem; }
.figure b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--muted); font-weight: 500; }
svg { display: block; width: 100%; min-width: 34rem; height: auto; }
svg text { fill: var(--muted); font: 12px system-ui, sans-serif; }
svg .axis { stroke: var(--line); } svg .curve { fill: none; stroke: var(--ink); stroke-width: 2; }
svg .bar, svg .dot { fill: var(--ink); } svg .limit { stroke: var(--bad); stroke-dasharray: 5 4; }
svg .name { fill: var(--text); }
blockquote { margin: .2rem 0 1rem; padding: .5rem .9rem; background: var(--panel); white-space: pre-wrap;
  overflow-wrap: anywhere; font: .9rem/1.45 ui-monospace, monospace; border-radius: .3rem; }
"""

_WIDTH: Final = 860


def render_report(proof: Proof, *, title: str, facts: Sequence[tuple[str, str]] = ()) -> str:
    """The page, as HTML.

    Args:
        title: what was proven, e.g. the model's name and its quantization.
        facts: names and values to show below the title: source, profile, tools.
    """
    exact = "" if proof.exact is None else _exact(proof)
    worst = "" if not proof.worst_tensors else _worst(proof.worst_tensors)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}: proof</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="muted">{escape(proof.quantization)} in {escape(proof.runtime)}, compared with the student in float32
on {proof.positions:,} positions of {len(proof.texts)} texts in {proof.seconds:.0f} s</p>
{_fact_list(facts)}
{_verdict(proof)}
{_figures(proof)}
<h2>Divergence over positions</h2>
<p class="muted">How far the artifact's distribution of the next token is from the student's: the share of
positions, on the horizontal axis, that stay below a divergence. Both scales spread the rare large ones.</p>
{_quantile_plot(proof)}
<h2>By text</h2>
{_text_plot(proof)}
{_text_table(proof)}
{worst}
{exact}
<h2>Answers</h2>
<p class="muted">What the artifact answers when it always takes the likeliest token, and how many of these
tokens the student would have taken. After the first other choice both may go on well.</p>
{"".join(_answer(answer) for answer in proof.golden)}
</body>
</html>
"""


def write_report(proof: Proof, path: Path, *, name: str, facts: Sequence[tuple[str, str]] = ()) -> None:
    """Write the page. `name` is what the model is called; see `render_report`."""
    path.write_text(render_report(proof, title=name, facts=facts), encoding="utf-8")


def _verdict(proof: Proof) -> str:
    if proof.passed:
        return '<div class="verdict good">Passed: within all limits of its quantization.</div>'
    items = "".join(f"<li>{escape(miss)}</li>" for miss in proof.misses)
    return f'<div class="verdict bad">Failed:<ul>{items}</ul></div>'


def _fact_list(facts: Sequence[tuple[str, str]]) -> str:
    lines = (f"{escape(name)}: {escape(value)}" for name, value in facts)
    return f'<p class="muted">{"<br>".join(lines)}</p>' if facts else ""


def _figures(proof: Proof) -> str:
    limits = proof.limits
    colours = {True: "good", False: "bad", None: ""}
    golden = "no answer" if proof.golden_agreement is None else f"{proof.golden_agreement:.1%}"
    figures: list[tuple[str, str, str, bool | None]] = [
        ("mean KL divergence", _number(proof.mean_kl), f"limit {limits.mean_kl:g} nats", _kl_ok(proof)),
        (
            "99 % of positions below",
            _number(proof.kl_p99),
            f"limit {limits.kl_p99:g} nats",
            proof.kl_p99 <= limits.kl_p99,
        ),
        (
            "same likeliest token",
            f"{proof.top1_agreement:.1%}",
            f"at least {limits.top1_agreement:.0%}",
            proof.top1_agreement >= limits.top1_agreement,
        ),
        (
            "perplexity ratio",
            f"{proof.perplexity_ratio:.4f}",
            f"limit {limits.perplexity_ratio:g}; {proof.artifact_perplexity:.3f} against "
            f"{proof.student_perplexity:.3f}",
            proof.perplexity_ratio <= limits.perplexity_ratio,
        ),
        ("answers' tokens the student agrees with", golden, "no limit", None),
    ]
    cells = "".join(
        f'<div class="figure">{escape(name)}<b class="{colours[ok]}">{escape(value)}</b>'
        f'<span class="muted">{escape(note)}</span></div>'
        for name, value, note, ok in figures
    )
    return f'<div class="figures">{cells}</div>'


def _kl_ok(proof: Proof) -> bool:
    return proof.mean_kl <= proof.limits.mean_kl


def _quantile_plot(proof: Proof) -> str:
    """Quantiles of the divergence, both axes logarithmic: the horizontal one in the share that lies above."""
    height, left, bottom, top = 304, 60, 40, 16
    shares = [share for share in KL_QUANTILES if 0 < share < 1]
    values = [
        max(value, 1e-9)
        for share, value in zip(KL_QUANTILES, proof.kl_quantiles, strict=True)
        if 0 < share < 1
    ]
    low = math.floor(math.log10(min(values)))
    high = math.ceil(math.log10(max(*values, proof.limits.kl_p99)))
    rarest = -math.log10(1 - max(shares))

    def x(share: float) -> float:
        return left + (_WIDTH - left - 30) * -math.log10(1 - share) / rarest

    def y(value: float) -> float:
        return height - bottom - (height - bottom - top) * (math.log10(value) - low) / (high - low)

    parts = []
    for exponent in range(low, high + 1):
        at = y(10.0**exponent)
        parts.append(f'<line class="axis" x1="{left}" x2="{_WIDTH}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{_number(10.0**exponent)}</text>'
        )
    for share in (0.5, 0.9, 0.99, 0.999):
        at = x(share)
        parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{height - bottom}"/>')
        parts.append(
            f'<text x="{at:.1f}" y="{height - bottom + 18}" text-anchor="middle">{share * 100:g} %</text>'
        )
    limit = y(proof.limits.kl_p99)
    parts.append(f'<line class="limit" x1="{left}" x2="{x(0.99):.1f}" y1="{limit:.1f}" y2="{limit:.1f}"/>')
    parts.append(
        f'<text x="{left + 6}" y="{limit - 5:.1f}">limit of 99 %: {proof.limits.kl_p99:g} nats</text>'
    )
    points = [(x(share), y(value)) for share, value in zip(shares, values, strict=True)]
    parts.append(f'<polyline class="curve" points="{_points(points)}"/>')
    parts += [f'<circle class="dot" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in points]
    parts.append(f'<text x="{left}" y="{height - 6}">share of positions</text>')
    parts.append(f'<text x="0" y="{top - 3}">nats</text>')
    return _svg(height, parts, "Quantiles of the KL divergence")


def _text_plot(proof: Proof) -> str:
    """A bar a text: its mean divergence beside the limit."""
    row, left, right = 26, 130, 70
    height = row * len(proof.texts) + 24
    most = max(*(text.mean_kl for text in proof.texts), proof.limits.mean_kl, 1e-9)
    scale = (_WIDTH - left - right) / most
    parts = []
    for index, text in enumerate(proof.texts):
        at = index * row
        length = max(text.mean_kl * scale, 1)
        parts.append(
            f'<text class="name" x="{left - 10}" y="{at + 17}" text-anchor="end">{escape(text.name)}</text>'
        )
        parts.append(f'<rect class="bar" x="{left}" y="{at + 5}" width="{length:.1f}" height="16" rx="2"/>')
        parts.append(f'<text x="{left + length + 8:.1f}" y="{at + 17}">{_number(text.mean_kl)}</text>')
    limit = left + proof.limits.mean_kl * scale
    bottom = row * len(proof.texts)
    parts.append(f'<line class="limit" x1="{limit:.1f}" x2="{limit:.1f}" y1="0" y2="{bottom}"/>')
    parts.append(
        f'<text x="{limit:.1f}" y="{bottom + 16}" text-anchor="middle">limit {proof.limits.mean_kl:g}</text>'
    )
    return _svg(height, parts, "Mean KL divergence by text")


def _text_table(proof: Proof) -> str:
    rows = [
        (
            text.name,
            str(text.positions),
            _number(text.mean_kl),
            f"{text.top1_agreement:.1%}",
            f"{text.student_perplexity:.3f}",
            f"{text.artifact_perplexity:.3f}",
        )
        for text in proof.texts
    ]
    return _table(
        ("text", "positions", "mean KL, nats", "same top token", "student's perplexity", "artifact's"), rows
    )


def _worst(tensors: Sequence[TensorError]) -> str:
    rows = [
        (
            error.name,
            "missing" if error.storage is None else error.storage,
            _number(error.relative_error),
            "" if error.weighted_error is None else _number(error.weighted_error),
            f"{error.gain:.4f}",
            "" if error.storage is None else f"{error.times_typical:,.1f} \u00d7",
        )
        for error in tensors
    ]
    head = ("tensor", "stored as", "error", "weighed by use", "gain", "of what is usual")
    return f"""<h2>Tensors that stand out</h2>
<p class="muted">Error is the norm of the difference over the norm of the student's tensor; the last column
sets the error, or the gain's distance from 1, against the median of the tensors that are stored alike.</p>
{_table(head, rows)}"""


def _exact(proof: Proof) -> str:
    exact = proof.exact
    assert exact is not None
    rest = (
        ""
        if exact.worst_tensor is None
        else f" The others differ by at most {_number(exact.max_error_steps)} steps of the student's grid "
        f"({escape(exact.worst_tensor)})."
    )
    return (
        f"<h2>Repacked weights</h2><p>{exact.exact} of {exact.tensors} tensors that were moved carry the "
        f"very same values.{rest}</p>"
    )


def _answer(answer: GoldenAnswer) -> str:
    if answer.agreement is None:
        note = "no answer"
    elif answer.first_divergence is None:
        note = f"all {len(answer.answer_tokens)} tokens are the student's choice, too"
    else:
        note = (
            f"{answer.agreement:.0%} of {len(answer.answer_tokens)} tokens are the student's choice, too; "
            f"the first other one is token {answer.first_divergence + 1}"
        )
    return (
        f'<p><b>{escape(answer.name)}</b> <span class="muted">{escape(note)}</span></p>'
        f"<blockquote>{escape(answer.text)}</blockquote>"
    )


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{titles}</tr>{body}</table></div>'


def _svg(height: int, parts: Iterable[str], label: str) -> str:
    return (
        f'<div class="scroll"><svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg></div>"
    )


def _points(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _number(value: float) -> str:
    """Three digits: 0.0123, 1.23, 4.56e-06."""
    return f"{value:.3g}"

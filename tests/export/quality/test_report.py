"""The report is whole, readable by machines too, and shows what the proof says."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from export.quality.limits import limits_for
from export.quality.prove import misses
from export.quality.record import KL_QUANTILES, ExactProof, GoldenAnswer, Proof, TensorError, TextProof
from export.quality.report import render_report, write_report


def make_proof(*, mean_kl: float = 0.02, **changes: object) -> Proof:
    texts = tuple(
        TextProof(
            name=name,
            positions=100,
            mean_kl=mean_kl * factor,
            top1_agreement=0.9,
            student_perplexity=8.0,
            artifact_perplexity=8.4,
        )
        for name, factor in (("maths-en", 0.5), ("聊天 <zh>", 1.5))
    )
    golden = (
        GoldenAnswer(
            name="one",
            prompt_tokens=(1, 2),
            answer_tokens=(3, 4, 5, 6),
            text="if a < b & c:\n    print('你好')",
            agreement=0.75,
            first_divergence=2,
        ),
        GoldenAnswer(
            name="none", prompt_tokens=(1,), answer_tokens=(), text="", agreement=None, first_divergence=None
        ),
    )
    proof = Proof(
        runtime="llama.cpp",
        quantization="Q4_K_M",
        positions=200,
        mean_kl=mean_kl,
        kl_p99=mean_kl * 10,
        kl_max=mean_kl * 30,
        kl_quantiles=tuple(mean_kl * 30 * share**3 for share in KL_QUANTILES),
        top1_agreement=0.9,
        student_perplexity=8.0,
        artifact_perplexity=8.4,
        perplexity_ratio=1.05,
        golden_agreement=0.75,
        texts=texts,
        golden=golden,
        limits=limits_for("Q4_K_M"),
        seconds=12.3,
        **changes,  # type: ignore[arg-type]
    )
    return proof.model_copy(update={"misses": misses(proof)})


def parsed(page: str) -> ElementTree.Element:
    """The body as XML: tags are closed, text is escaped."""
    body = re.search(r"<body>.*</body>", page, re.DOTALL)
    assert body is not None
    return ElementTree.fromstring(body[0].replace("<br>", "<br/>"))  # noqa: S314 (our own output)


def test_render_report__is_one_whole_page_that_fetches_nothing() -> None:
    page = render_report(make_proof(), title="A <model>", facts=[("source", "R1 & co")])
    body = parsed(page)
    text = " ".join(body.itertext())
    assert "A <model>" in text and "R1 & co" in text and "Passed" in text
    assert len(list(body.iter("svg"))) == 2
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert "prefers-color-scheme: dark" in page
    assert "if a < b & c:\n    print('你好')" in text
    assert "the first other one is token 3" in text and "no answer" in text


def test_render_report__plots_stay_within_their_frames() -> None:
    for proof in (make_proof(), make_proof(mean_kl=0), make_proof(mean_kl=1e-7), make_proof(mean_kl=9.0)):
        body = parsed(render_report(proof, title="m"))
        for svg in body.iter("svg"):
            _, _, width, height = (float(part) for part in svg.attrib["viewBox"].split())
            for line in svg.iter("polyline"):
                points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
                assert len(points) == len(KL_QUANTILES) - 2
                assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
                assert [x for x, _ in points] == sorted(x for x, _ in points)
                assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)
            for bar in svg.iter("rect"):
                assert float(bar.attrib["x"]) + float(bar.attrib["width"]) <= width


def test_render_report__a_miss_and_the_worst_tensors_are_shown() -> None:
    error = TensorError(
        name="model.layers.3.mlp.down_proj.weight",
        storage="Q4_K",
        relative_error=1.0,
        weighted_error=None,
        gain=0.0,
        times_typical=14.2,
    )
    missing = error.model_copy(update={"name": "lm_head.weight", "storage": None})
    exact = ExactProof(tensors=9, exact=8, max_error_steps=0.0042, worst_tensor="model.layers.1.x")
    proof = make_proof(mean_kl=2.0, worst_tensors=(error, missing), exact=exact)
    text = " ".join(parsed(render_report(proof, title="m")).itertext())
    assert "Failed" in text and "mean KL divergence 2.0000 nats, at most 0.15" in text
    assert "model.layers.3.mlp.down_proj.weight" in text and "14.2" in text and "missing" in text
    assert "8 of 9 tensors" in text and "0.0042" in text


@pytest.mark.parametrize(
    ("changes", "miss"),
    [
        ({"mean_kl": 0.2}, "mean KL"),
        ({"kl_p99": 2.0}, "99 % KL"),
        ({"top1_agreement": 0.5}, "top-1"),
        ({"perplexity_ratio": 1.5}, "perplexity"),
        ({"mean_kl": float("nan")}, "mean KL"),
    ],
)
def test_misses__each_limit_can_be_missed(changes: dict[str, float], miss: str) -> None:
    found = misses(make_proof().model_copy(update=changes))
    assert len(found) == 1 and found[0].startswith(miss)


def test_write_report__is_utf8(tmp_path: Path) -> None:
    write_report(make_proof(), tmp_path / "proof.html", name="学生")
    assert "学生" in (tmp_path / "proof.html").read_text(encoding="utf-8")

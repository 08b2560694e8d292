"""Curves show the numbers they are given, and tell the area or error of each."""

import numpy as np
import pytest

from jaxbig import diagnostics
from jaxbig.metrics import pr_curve, reliability, roc_curve
from jaxbig.report import Report

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, 60)
MODELS = {"good": RNG.normal(size=60) + 2 * LABELS, "poor": RNG.normal(size=60) + LABELS}


@pytest.mark.parametrize(("draw", "curve_of", "area"), [
    (diagnostics.roc, roc_curve, "AUC"),
    (diagnostics.precision_recall, pr_curve, "AP"),
])  # fmt: skip
def test_a_line_is_its_curve(draw, curve_of, area):
    curves = {name: curve_of(LABELS, scores) for name, scores in MODELS.items()}
    figure = draw(curves)
    lines = [line for line in figure.axes[0].get_lines() if not str(line.get_label()).startswith("_")]
    for line, (name, curve) in zip(lines, curves.items(), strict=True):
        np.testing.assert_array_equal(line.get_xydata(), np.stack([curve.x, curve.y], axis=1))
        assert line.get_label() == f"{name}, {area} {curve.area:.3f}"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [line.get_label() for line in lines]
    assert len({line.get_marker() for line in lines}) == 2


def test_the_steps_of_precision_enclose_the_area_that_is_told():
    curve = pr_curve(LABELS, MODELS["poor"])
    (line,) = diagnostics.precision_recall({"poor": curve}).axes[0].get_lines()
    assert line.get_drawstyle() == "steps-pre"
    x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
    assert np.sum(np.diff(x) * y[1:]) == pytest.approx(curve.area)


def test_reliability_draws_filled_bins_alone_over_their_shares():
    curves = {name: reliability(LABELS, scores) for name, scores in MODELS.items()}
    upper, lower = diagnostics.reliability(curves).axes
    diagonal, *lines = upper.get_lines()
    np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
    for line, patch, (name, curve) in zip(lines, lower.patches, curves.items(), strict=True):
        filled = curve.share > 0
        assert 1 < filled.sum() < 15
        drawn = np.stack([curve.confidence[filled], curve.accuracy[filled]], axis=1)
        np.testing.assert_array_equal(line.get_xydata(), drawn)
        assert line.get_label() == f"{name}, ECE {curve.error:.3f}"
        np.testing.assert_array_equal(patch.get_data().values, curve.share)


def test_a_single_curve_has_its_legend_inside_and_stands_in_a_report():
    figure = diagnostics.roc({"cnn": roc_curve(LABELS, MODELS["good"])})
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text()[:8] for text in legend.get_texts()] == ["cnn, AUC"]
    assert "false positive rate" in Report("x").figure(figure).html()

"""Curves of what a classifier is worth: ROC, precision, reliability, costs, as pure functions to figures.

No global state of pyplot is touched, and every figure can also be saved by itself (`figure.savefig("a.png")`).
"""

from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from jaxbig.metrics.calibration import Reliability
from jaxbig.metrics.decision import Costs
from jaxbig.metrics.ranking import Curve
from jaxbig.plots import legend, percent, series
from jaxbig.theme import LIGHT, RC, WIDTH

# Markers stand this share of the figure apart: colour alone must not tell the series apart.
_APART = 0.12
_SQUARE: dict[Any, Any] = RC | {"axes.grid.axis": "both"}


def roc(curves: Mapping[str, Curve]) -> Figure:
    """ROC curves: true positive rate against false positive rate, one line a model or class.

    Args:
        curves: name -> what `jaxbig.metrics.roc_curve` returned.

    Returns:
        The figure; the area under each curve stands beside its name, and the diagonal is what guessing gives.

    Example:
        >>> from jaxbig.metrics import roc_curve
        >>> axes = roc({"cnn": roc_curve([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4])}).axes[0]
        >>> [line.get_label() for line in axes.get_lines()][1:]
        ['cnn, AUC 0.750']
    """
    with matplotlib.rc_context(_SQUARE):
        figure, axes = _unit_square("false positive rate", "true positive rate")
        _diagonal(axes)
        for i, (name, curve) in enumerate(curves.items()):
            axes.plot(curve.x, curve.y, label=f"{name}, AUC {curve.area:.3f}", **series(i, markevery=_APART))
        _key(axes)
    return figure


def precision_recall(curves: Mapping[str, Curve]) -> Figure:
    """Precision against recall, one line a model or class.

    Args:
        curves: name -> what `jaxbig.metrics.pr_curve` returned.

    Returns:
        The figure, in steps; the average precision of each curve stands beside its name.

    Example:
        >>> from jaxbig.metrics import pr_curve
        >>> axes = precision_recall({"cnn": pr_curve([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4])}).axes[0]
        >>> [line.get_label() for line in axes.get_lines()]
        ['cnn, AP 0.833']
    """
    with matplotlib.rc_context(_SQUARE):
        figure, axes = _unit_square("recall", "precision")
        for i, (name, curve) in enumerate(curves.items()):
            # Between two thresholds average precision takes the precision of the further one.
            label = f"{name}, AP {curve.area:.3f}"
            axes.plot(curve.x, curve.y, drawstyle="steps-pre", label=label, **series(i, markevery=_APART))
        _key(axes)
    return figure


def reliability(curves: Mapping[str, Reliability]) -> Figure:
    """Reliability diagram: accuracy against confidence, over how much of the set lies at each confidence.

    Args:
        curves: name -> what `jaxbig.metrics.reliability` returned.

    Returns:
        The figure; a calibrated model lies on the diagonal, below it one is too sure of itself. The expected
        calibration error of each curve stands beside its name.

    Example:
        >>> from jaxbig.metrics import reliability as binned
        >>> figure = reliability({"cnn": binned([0, 1], [[0.0, 0.0], [0.0, 2.0]])})
        >>> figure.axes[0].get_lines()[1].get_label()
        'cnn, ECE 0.310'

    Reference:
        Guo et al. (2017), "On calibration of modern neural networks", arXiv:1706.04599.
    """
    with matplotlib.rc_context(_SQUARE):
        figure = Figure(figsize=(WIDTH, 1.2 * WIDTH), layout="constrained")
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        _diagonal(axes)
        for i, (name, curve) in enumerate(curves.items()):
            filled = curve.share > 0
            style = series(i)
            label = f"{name}, ECE {curve.error:.3f}"
            axes.plot(curve.confidence[filled], curve.accuracy[filled], label=label, **style)
            below.stairs(curve.share, curve.edges, color=style["color"], linewidth=1.4)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.02, 1.02))
        axes.set_title("accuracy")
        below.set_title("share of the examples")
        below.set_xlabel("confidence")
        for each in (axes.yaxis, below.yaxis, below.xaxis):
            each.set_major_formatter(FuncFormatter(percent))
        _key(axes)
    return figure


def decision_costs(curves: Mapping[str, Costs]) -> Figure:
    """What errors cost on average, against how many examples are refused, one line a model.

    Args:
        curves: name -> what `jaxbig.metrics.costs` returned.

    Returns:
        The figure; the least cost of each curve stands beside its name.

    Example:
        >>> from jaxbig.metrics import costs
        >>> axes = decision_costs({"cnn": costs([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4])}).axes[0]
        >>> [line.get_label() for line in axes.get_lines()]
        ['cnn, at best 0.250']
    """
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        axes = figure.subplots()
        for i, (name, curve) in enumerate(curves.items()):
            label = f"{name}, at best {curve.least:.3f}"
            axes.plot(curve.refused, curve.cost, label=label, **series(i, markevery=_APART))
        axes.set_title("cost of an example")
        axes.set_xlabel("refused")
        axes.xaxis.set_major_formatter(FuncFormatter(percent))
        _key(axes)
    return figure


def _unit_square(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, WIDTH), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", xlabel=x)
    axes.set_title(y)
    for each in (axes.xaxis, axes.yaxis):
        each.set_major_formatter(FuncFormatter(percent))
    return figure, axes


def _diagonal(axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], color=LIGHT["soft"], linestyle=(0, (1, 2)), linewidth=1.2, label="_diagonal")


def _key(axes: Axes) -> None:
    """The legend of several series; what a single one is called is its figure's to tell, but not its area."""
    handles, names = axes.get_legend_handles_labels()
    if len(names) == 1:
        axes.legend(handles, names, loc="best")
    else:
        legend(axes)

"""Curves of a model's life, as pure functions from numbers to matplotlib figures.

No global state of pyplot is touched, and every figure can also be saved by itself (`figure.savefig("a.png")`). Each
series has its own colour and its own marker; in a report the colours follow the page's light or dark theme.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from jaxbig.history import TIMES
from jaxbig.theme import LIGHT, RC, WIDTH

_SERIES = [LIGHT[f"c{i}"] for i in range(1, 7)]
_MARKERS = "osD^vP"
_SPLITS = ("train", "eval", "val", "valid", "test")
_NO_METRICS = ("epoch", "step", *TIMES)


def learning_curves(history_by_name: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Metrics over the course of training, one panel a metric, one colour a run.

    Args:
        history_by_name: a run's name -> its rows in order. A row maps names to numbers: "epoch" (or "step") and metrics
            such as "train_loss", "eval/accuracy", or "loss" beside "val_loss" (what `jaxbig.train` keeps); training
            metrics are dashed, the rest solid, in the same panel. "seconds" is left out.

    Returns:
        The figure.

    Raises:
        ValueError: no row holds a metric.

    Example:
        >>> rows = [{"epoch": 1, "train_loss": 2.0, "eval_loss": 2.1}, {"epoch": 2, "train_loss": 1.0}]
        >>> [axes.get_title(loc="left") for axes in learning_curves({"cnn": rows}).axes]
        ['loss']
    """
    panels = _panels(key for rows in history_by_name.values() for row in rows for key in row)
    if not panels:
        raise ValueError("learning_curves: no row holds a metric beside epoch and step")
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDTH, 0.5 + 2.1 * len(panels)), layout="constrained")
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (metric, splits) in zip(grid, panels.items(), strict=True):
            axes.set_title(metric)
            for i, (run, rows) in enumerate(history_by_name.items()):
                for split, name in splits.items():
                    _curve(axes, rows, name, f"{run} {split}".strip(), i, dashed=split == "train")
        grid[-1].set_xlabel(_time_axis(history_by_name))
        grid[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(grid[0])
    return figure


def labels_curve(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy against the number of labels a class, one line a method, with intervals.

    Args:
        points: mappings with "method" (str), "labels" (int, a class), "accuracy" (in 0..1), and the interval's "low"
            and "high" where there is one.

    Returns:
        The figure; the horizontal axis is logarithmic.

    Example:
        >>> point = {"method": "LoRA", "labels": 5, "accuracy": 0.9, "low": 0.88, "high": 0.92}
        >>> labels_curve([point, point | {"labels": 10}]).axes[0].get_xlabel()
        'labels per class'
    """
    methods = list(dict.fromkeys(point["method"] for point in points))
    counts = sorted({point["labels"] for point in points})
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        axes = figure.subplots()
        for i, method in enumerate(methods):
            mine = sorted((p for p in points if p["method"] == method), key=lambda p: p["labels"])
            # Methods are set a hair apart, or their intervals would hide one another.
            x = np.array([p["labels"] for p in mine]) * 1.025 ** (i - (len(methods) - 1) / 2)
            y = np.array([p["accuracy"] for p in mine])
            low = y - np.array([p.get("low", p["accuracy"]) for p in mine])
            high = np.array([p.get("high", p["accuracy"]) for p in mine]) - y
            axes.errorbar(x, y, yerr=np.maximum([low, high], 0), label=method, capsize=2.5, elinewidth=1.1, **series(i))
        axes.set_xscale("log")
        axes.set_xticks(counts, [str(count) for count in counts], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_xlabel("labels per class")
        axes.set_title("accuracy")
        axes.yaxis.set_major_formatter(FuncFormatter(percent))
        legend(axes)
    return figure


def accuracy_against_bytes(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy against the bytes of a model, each point with its name beside it.

    Args:
        points: mappings with "name" (str), "bytes" (int) and "accuracy" (in 0..1).

    Returns:
        The figure; the horizontal axis is logarithmic.

    Example:
        >>> axes = accuracy_against_bytes([{"name": "int8", "bytes": 12_000, "accuracy": 0.98}]).axes[0]
        >>> axes.get_xscale(), [text.get_text() for text in axes.texts]
        ('log', ['int8'])
    """
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.set_xlabel("bytes of the parameters")
        axes.set_title("accuracy")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(_bytes))
        axes.xaxis.set_minor_formatter(NullFormatter())  # its labels would run into each other
        axes.yaxis.set_major_formatter(FuncFormatter(percent))
        axes.margins(x=0.16, y=0.14)
        for i, point in enumerate(points):
            axes.plot([point["bytes"]], [point["accuracy"]], linestyle="none", **series(i, markersize=7))
        _label_points(figure, axes, points)
    return figure


def series(i: int, **more: Any) -> dict[str, Any]:
    """Colour and marker of the i-th series, and what more is given."""
    return {"color": _SERIES[i % len(_SERIES)], "marker": _MARKERS[i % len(_MARKERS)], **more}


def _panels(keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """metric -> split -> key. A key without a split is the training metric where another split has the same metric."""
    panels: dict[str, dict[str, str]] = {}
    for key in dict.fromkeys(keys):
        if key not in _NO_METRICS:
            split = next((split for split in _SPLITS if key.startswith((f"{split}/", f"{split}_"))), "")
            panels.setdefault(key[len(split) + 1 :] if split else key, {})[split] = key
    for metric, splits in panels.items():
        if "" in splits and len(splits) > 1 and "train" not in splits:
            panels[metric] = {"train" if split == "" else split: key for split, key in splits.items()}
    return panels


def _time_axis(history_by_name: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    every = [row for rows in history_by_name.values() for row in rows]
    return next((name for name in ("epoch", "step") if all(name in row for row in every)), "row")


def _curve(axes: Axes, rows: Sequence[Mapping[str, float]], name: str, label: str, i: int, *, dashed: bool) -> None:
    time = _time_axis({label: rows})
    points = [(row.get(time, n), row[name]) for n, row in enumerate(rows) if name in row]
    if not points:
        return
    style: dict[str, Any] = {"color": _SERIES[i % len(_SERIES)], "linestyle": (0, (3, 2)) if dashed else "-"}
    if len(points) <= 12:
        style["marker"] = _MARKERS[i % len(_MARKERS)]
    x, y = zip(*points, strict=True)
    axes.plot(x, y, label=label, **style)


def legend(axes: Axes) -> None:
    """A legend above the figure, in as many columns as fit; none for a single series."""
    handles, names = axes.get_legend_handles_labels()
    if len(names) > 1:
        figure = axes.get_figure()
        assert isinstance(figure, Figure)
        for rows in range(1, len(names) + 1):
            columns = math.ceil(len(names) / rows)
            placed = figure.legend(handles, names, loc="outside upper left", ncols=columns, columnspacing=1.4)
            figure.draw_without_rendering()
            if columns == 1 or placed.get_window_extent().width <= figure.bbox.width:
                break
            placed.remove()


def _label_points(figure: Figure, axes: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    """Set each point's name beside it, at the first of eight places where it covers no point and no other name."""
    figure.draw_without_rendering()
    taken = [axes.transData.transform((p["bytes"], p["accuracy"])) for p in points]
    boxes = [(x - 5, y - 5, x + 5, y + 5) for x, y in taken]
    frame = axes.get_window_extent()
    for point in sorted(points, key=lambda p: p["bytes"]):
        best = None
        for dx, dy, ha, va in _PLACES:
            text = axes.annotate(
                point["name"], (point["bytes"], point["accuracy"]), (dx, dy), textcoords="offset points", ha=ha, va=va
            )
            box = text.get_window_extent()
            outside = max(0.0, frame.x0 - box.x0) + max(0.0, box.x1 - frame.x1)
            cost = outside + sum(_overlap((box.x0, box.y0, box.x1, box.y1), other) for other in boxes)
            if best is None or cost < best[0]:
                if best is not None:
                    best[1].remove()
                best = (cost, text, (box.x0, box.y0, box.x1, box.y1))
            else:
                text.remove()
            if not cost:
                break
        assert best is not None
        boxes.append(best[2])


_PLACES = (
    (7, 0, "left", "center"),
    (0, 7, "center", "bottom"),
    (0, -7, "center", "top"),
    (-7, 0, "right", "center"),
    (5, 5, "left", "bottom"),
    (5, -5, "left", "top"),
    (-5, 5, "right", "bottom"),
    (-5, -5, "right", "top"),
)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def percent(value: float, _: object = None) -> str:
    """A share as percents, for an axis' formatter."""
    return f"{100 * value:.4g}%"


def _bytes(value: float, _: object = None) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.4g} {unit}"
    return f"{value:.4g} B"

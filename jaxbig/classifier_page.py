"""The page that tells of a classifier of images trained with several seeds: curves, confusion, calibration, mistakes.

Legend of the shape suffixes: S seeds, N examples, C classes.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxbig import atomic, diagnostics, pictures, plots
from jaxbig.gallery import gallery
from jaxbig.history import TIMES, Line
from jaxbig.metrics import confusion, reliability
from jaxbig.report import Report, Row, terminal_table

_MISTAKES = 36


def rows_of(histories: Mapping[str, Sequence[Line]], labels_N: np.ndarray, logits_SNC: np.ndarray) -> list[dict]:
    """A row a run: what it reached on the test set, and how its time was spent.

    Args:
        histories: name of a run -> its history, as `jaxbig.train.fit` returns it.
        labels_N: of the test set.
        logits_SNC: of the runs, in the order of `histories`.

    Returns:
        rows for `Report.table`, the last one with the means over the runs and, where there are several, one of the
        ensemble, which takes the class with the largest mean probability. ``images/s`` and ``waits for data`` (share
        of the time) are of training and validation together, from the history.

    Example:
        >>> line = {"epoch": 1, "seconds": 2.0, "examples_per_second": 50.0, "data_wait": 0.25}
        >>> rows_of({"seed 0": [line]}, np.array([0, 1]), np.array([[[2.0, 0.0], [1.0, 0.0]]]))[0]
        {'run': 'seed 0', 'accuracy': 0.5, 'errors': 1, 'images/s': 50.0, 'waits for data': 0.25, 'seconds': 2.0}
    """
    rows: list[dict] = []
    for (name, lines), logits_NC in zip(histories.items(), logits_SNC, strict=True):
        wrong = logits_NC.argmax(axis=-1) != labels_N
        seconds = sum(line["seconds"] for line in lines)
        seen = sum(line["seconds"] * line["examples_per_second"] for line in lines)
        waited = sum(line["seconds"] * line["data_wait"] for line in lines)
        rows.append({
            "run": name, "accuracy": float(1 - wrong.mean()), "errors": int(wrong.sum()), "images/s": seen / seconds,
            "waits for data": waited / seconds, "seconds": seconds,
        })  # fmt: skip
    if len(rows) > 1:
        numbers = [name for name in rows[0] if name != "run"]
        mean = {name: float(np.mean([row[name] for row in rows])) for name in numbers}
        wrong = probabilities(logits_SNC).mean(axis=0).argmax(axis=-1) != labels_N
        together = {"run": "ensemble", "accuracy": float(1 - wrong.mean()), "errors": int(wrong.sum())}
        rows += [{"run": "mean", **mean}, together]
    return rows


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis.

    Example:
        >>> probabilities(np.zeros((1, 2))).tolist()
        [[0.5, 0.5]]
    """
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def classifier_page(
    title: str,
    text: str,
    histories: Mapping[str, Sequence[Line]],
    test: Mapping[str, np.ndarray],
    logits_SNC: np.ndarray,
    classes: Sequence[str],
) -> Report:
    """The page; the caller may go on writing on it, and saves it.

    Args:
        title: of the page.
        text: what was trained and how, in plain words.
        histories: name of a run -> its history.
        test: ``image`` [N, H, W, C] and ``label`` [N].
        logits_SNC: of the runs on it, in the order of `histories`.
        classes: names of the classes.

    Returns:
        the report.

    Example:
        >>> line = {"epoch": 1, "loss": 1.0, "seconds": 2.0, "examples_per_second": 50.0, "data_wait": 0.25}
        >>> test = {"image": np.zeros((2, 4, 4, 1)), "label": np.array([0, 1])}
        >>> page = classifier_page("Toy", "One run.", {"seed 0": [line]}, test, np.eye(2)[None] * 9, "ab")
        >>> "Learning curves" in page.html(), "Mistakes" in page.html()
        (True, False)
    """
    labels_N, first = test["label"], next(iter(histories))
    report = Report(title).text(text)
    report.table(rows_of(histories, labels_N, logits_SNC), "Test images, at the end of each run")
    report.section("Learning curves").figure(
        plots.learning_curves({name: [_metrics(line) for line in lines] for name, lines in histories.items()})
    )
    guess_N = logits_SNC[0].argmax(axis=-1)
    matrix = confusion(labels_N, guess_N, len(classes))
    report.section("Test images").figure(pictures.confusion(matrix, classes), f"Confusion, {first}")
    curves = {name: reliability(labels_N, own, bins=10) for name, own in zip(histories, logits_SNC, strict=True)}
    report.figure(diagnostics.reliability(curves), "Whether the probabilities mean what they say")
    wrong = np.flatnonzero(guess_N != labels_N)
    if len(wrong):
        p_NC = probabilities(logits_SNC[0])
        surest = wrong[np.argsort(-(p_NC[wrong, guess_N[wrong]] - p_NC[wrong, labels_N[wrong]]), kind="stable")]
        shown = surest[:_MISTAKES]
        batch: dict[str, Any] = {"image": test["image"][shown], "label": labels_N[shown], "taken for": guess_N[shown]}
        report.section("Mistakes").text(f"Of {len(wrong)}, those that {first} is surest about: true class, guess.")
        report.figure(gallery(batch, {"label": classes, "taken for": classes}))
    return report


def tell(page: Report, rows: Sequence[Row], workdir: str | Path, console: Console) -> None:
    """Ends an experiment: its table on the terminal, and results.json and report.html in its folder.

    Example:
        >>> import io, tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> tell(Report("Toy"), [{"run": "seed 0", "accuracy": 0.5}], folder, Console(file=io.StringIO()))
        >>> sorted(path.name for path in folder.iterdir())
        ['report.html', 'results.json']
    """
    atomic.write(Path(workdir) / "results.json", json.dumps({"table": rows}, indent=1) + "\n")
    path = page.save(Path(workdir) / "report.html")
    console.print(terminal_table(rows, "test images, at the end of each run"))
    console.print(f"report: {path}")


def _metrics(line: Row) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in TIMES}

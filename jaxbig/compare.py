"""``jaxbig compare``: several runs side by side, as a table and as learning curves."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxbig.errors import UsageError, UserError
from jaxbig.history import TIMES
from jaxbig.manifest import Goal
from jaxbig.plots import learning_curves
from jaxbig.report import Report, terminal_table
from jaxbig.words import Words

USAGE = "jaxbig compare RUN RUN... [--best max:METRIC] [--out FILE.html]"


def compare(words: Sequence[str], console: Console | None = None) -> list[dict[str, Any]]:
    """Prints one row a run: its last line or, with ``--best``, its best one; draws the curves where ``--out`` says.

    Args:
        words: those after ``jaxbig compare``.
        console: where to print; None: standard output.

    Returns:
        the rows.

    Raises:
        UsageError: an unknown option, no runs, a file that is no run, or a metric that no run has.
        UserError: a run's ``metrics.jsonl`` is damaged; the message names the line.
    """
    parser = Words(USAGE)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--best")
    parser.add_argument("--out", type=Path)
    options = parser.read(words)
    if not options.runs:
        raise UsageError(f"no runs; it is `{USAGE}`")
    histories = {name: read_history(path) for name, path in _named(options.runs).items()}
    rows = [{"run": name, **_chosen(lines, options.best)} for name, lines in histories.items()]
    if options.best is not None and all(Goal.parse(options.best).metric not in row for row in rows):
        known = dict.fromkeys(metric for lines in histories.values() for line in lines for metric in line)
        raise UsageError(f"--best {options.best}: no run has it; there are {', '.join(known)}")
    console = Console(highlight=False) if console is None else console
    console.print(terminal_table(rows, "best lines" if options.best else "last lines"))
    if options.out is not None:
        curves = {name: [_metrics(line) for line in lines] for name, lines in histories.items()}
        report = Report("jaxbig compare").table(rows, "Best lines" if options.best else "Last lines")
        report.figure(learning_curves(curves), "Learning curves").save(options.out)
        console.print(f"curves: {options.out}")
    return rows


def read_history(path: Path) -> list[dict[str, Any]]:
    """The lines of a run.

    Args:
        path: the run's folder, or its ``metrics.jsonl``.

    Returns:
        one dictionary a line.

    Raises:
        UsageError: there is no such file.
        UserError: a line is no JSON, or there is none; the message names it.
    """
    file = path / "metrics.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"{path}: holds no metrics.jsonl; give the folder of a run (--workdir)")
    lines = []
    for number, text in enumerate(file.read_text().splitlines(), 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise UserError(f"{file}:{number}: is no JSON ({error}); remove that line") from error
        if not isinstance(line, dict):
            raise UserError(f"{file}:{number}: is no JSON object; remove that line")
        lines.append(line)
    if not lines:
        raise UserError(f"{file}: is empty; the run has not ended an epoch yet")
    return lines


def _named(runs: Sequence[Path]) -> dict[str, Path]:
    """The shortest names that tell the paths apart: their last parts."""
    paths = [run.resolve() for run in runs]
    if len(set(paths)) < len(paths):
        raise UsageError("a run is named twice; name each once")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return {"/".join(path.parts[-depth:]): run for path, run in zip(paths, runs, strict=True)}


def _metrics(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in TIMES and value is not None}


def _chosen(lines: Sequence[Mapping[str, Any]], best: str | None) -> dict[str, Any]:
    """The line that stands for a run, and the seconds that all its lines took."""
    goal = None if best is None else Goal.parse(best)
    line = lines[-1] if goal is None else max(lines, key=goal.value)
    seconds = sum(line.get("seconds") or 0.0 for line in lines)
    return {name: value for name, value in line.items() if name not in TIMES} | {"seconds": round(seconds, 1)}

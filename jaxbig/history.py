"""What a run has measured: totals of an epoch, and one line an epoch that outlives a kill."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class Totals:
    """Sums and counts of metrics over many batches, in double precision.

    Args:
        sums: name -> [sum, count] to go on from.

    Example:
        >>> totals = Totals()
        >>> totals.add([{"loss": (3.0, 2.0)}, {"loss": (1.0, 2.0)}])
        >>> totals.means()
        {'loss': 1.0}
    """

    def __init__(self, sums: Mapping[str, Iterable[float]] | None = None):
        self.sums: dict[str, list[float]] = {name: list(pair) for name, pair in (sums or {}).items()}

    def add(self, batches: Iterable[Mapping[str, tuple[Any, Any]]]) -> None:
        """Add batches of metrics, name -> (sum, count), that were fetched from the device."""
        for metrics in batches:
            for name, (total, count) in metrics.items():
                pair = self.sums.setdefault(name, [0.0, 0.0])
                pair[0] += float(total)
                pair[1] += float(count)

    def means(self, prefix: str = "") -> dict[str, float]:
        """Σ sum / Σ count by name, the loss first; nan where nothing was counted."""
        names = sorted(self.sums, key=lambda name: (name != "loss", name))
        pairs = [(name, *self.sums[name]) for name in names]
        return {prefix + name: total / count if count else math.nan for name, total, count in pairs}


class History:
    """The lines of a run, in memory and, if there is a file, as JSON lines on disk.

    The file is written anew when the object is made, from the lines that the last complete checkpoint remembers: lines
    of an epoch that a kill undid do not come twice, and none is lost.

    Args:
        path: the file, or None.
        lines: what is known already.

    Example:
        >>> history = History(None, [{"epoch": 1}])
        >>> history.append({"epoch": 2})
        >>> [line["epoch"] for line in history.lines]
        [1, 2]
    """

    def __init__(self, path: Path | None, lines: Iterable[Line] = ()):
        self.path = path
        self.lines: list[Line] = list(lines)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = path.with_name(path.name + ".new")
            whole.write_text("".join(_as_json(line) for line in self.lines))
            os.replace(whole, path)

    def append(self, line: Line) -> None:
        """Add a line, on disk too when this returns."""
        self.lines.append(line)
        if self.path is not None:
            with open(self.path, "a") as file:
                file.write(_as_json(line))


def _as_json(line: Line) -> str:
    # JSON knows no nan; other readers of the file must not stumble over it.
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()
    }
    return json.dumps(plain, allow_nan=False) + "\n"

"""What a run has measured: totals of an epoch, and one line an epoch that outlives a kill."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxbig.errors import UserError
from jaxbig.metrics import summary

Line = dict[str, Any]
# What in a line tells of the machine and not of the model: seconds in all; and of the training steps alone examples a
# second, and the shares of the time that went into waiting for data and for checkpoints.
TIMES = ("seconds", "examples_per_second", "data_wait", "save_wait")


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

    def __init__(self, sums: Mapping[str, Iterable[Any]] | None = None):
        self._sums = {
            name: (np.asarray(total, np.float64), float(count)) for name, (total, count) in (sums or {}).items()
        }

    @property
    def sums(self) -> dict[str, list[Any]]:
        """name -> [sum, count], JSON as it stands: a sum that is an array comes as nested lists."""
        return {name: [total.tolist(), count] for name, (total, count) in self._sums.items()}

    def add(self, batches: Iterable[Mapping[str, tuple[Any, Any]]]) -> None:
        """Add batches of metrics, name -> (sum, count), that were fetched from the device.

        Raises:
            UserError: a sum has another shape than before.
        """
        for metrics in batches:
            for name, (total, count) in metrics.items():
                before, counted = self._sums.get(name, (np.zeros(np.shape(total)), 0.0))
                if before.shape != np.shape(total):
                    raise UserError(
                        f"metric {name}: its sum was {before.shape} and is {np.shape(total)} now; keep one shape"
                    )
                self._sums[name] = before + np.asarray(total, np.float64), counted + float(count)

    def means(self, prefix: str = "") -> dict[str, float]:
        """Σ sum / Σ count by name, the loss first; nan where nothing was counted.

        What else a metric stands for, as precision and recall do for a confusion matrix, is said by
        `jaxbig.metrics.summary`.
        """
        values: dict[str, float] = {}
        for name, (total, count) in self._sums.items():
            values |= summary(name, total, count)
        return {prefix + name: values[name] for name in sorted(values, key=lambda name: (name != "loss", name))}


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

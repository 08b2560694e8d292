"""When to stop before the last epoch: functions of a run's history, so that a resumed run decides as the first did."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxbig.errors import UserError
from jaxbig.manifest import Goal

StopWhen = Callable[[Sequence[dict[str, Any]]], str | None]


def patience(goal: str, lines: int, least: float = 0.0) -> StopWhen:
    """Early stopping: stop when a metric has not got better for so many lines of the history.

    Args:
        goal: such as ``min:val_loss`` or ``max:val_accuracy``.
        lines: how many lines (epochs) in a row without a new best.
        least: how much better a new best has to be.

    Returns:
        function of the history that gives the reason to stop, or None.

    Raises:
        UserError: `lines` < 1, or later: the history has no such metric.

    Example:
        >>> stop = patience("min:val_loss", lines=2)
        >>> stop([{"val_loss": 1.0}, {"val_loss": 0.5}, {"val_loss": 0.6}]) is None
        True
        >>> stop([{"val_loss": 1.0}, {"val_loss": 0.5}, {"val_loss": 0.6}, {"val_loss": 0.55}])
        'val_loss has not got better than 0.5 for 2 lines'

    Reference:
        Prechelt (1998), "Early stopping - but when?", criterion UP without its strips.
    """
    wanted = Goal.parse(goal)
    if lines < 1:
        raise UserError(f"patience: lines={lines}; use at least 1")

    def stop(history: Sequence[dict[str, Any]]) -> str | None:
        best, since = -float("inf"), 0
        for line in history:
            if wanted.metric not in line:
                raise UserError(f"patience: the history has no {wanted.metric}; it has {', '.join(line)}")
            value = wanted.value(line)
            better = value > best + least
            best, since = (value, 0) if better else (best, since + 1)
        if since < lines:
            return None
        return f"{wanted.metric} has not got better than {wanted.sign * best:.6g} for {since} lines"

    return stop

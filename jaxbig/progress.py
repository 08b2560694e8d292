"""What a person sees of a run: a bar on a terminal, plain lines elsewhere; and how a run is asked to stop."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxbig.history import TIMES


class Report:
    """Progress of a run of `total` steps.

    Args:
        total: steps of the whole run.
        done: steps that an earlier process did.
        console: where to write; None: standard output.
        quiet: write nothing.

    Example:
        >>> with Report(10, quiet=True) as report:
        ...     report.advance(5, examples=160, loss=0.1)
        ...     report.line("epoch 1/2  loss 0.1")
    """

    def __init__(self, total: int, done: int = 0, console: Console | None = None, quiet: bool = False):
        self.console = Console(quiet=True) if quiet else console or Console()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("step", total=total, completed=done, rate="", loss="-")
        self.since = time.perf_counter()

    def __enter__(self) -> "Report":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, steps: int, examples: int, loss: float) -> None:
        """Tell that `steps` more steps with so many examples are done, the mean loss of the epoch being `loss`."""
        now = time.perf_counter()
        rate = _rate(examples / max(now - self.since, 1e-9))
        self.since = now
        self.bar.update(self.task, advance=steps, rate=rate, loss=f"{loss:.4g}")

    def line(self, text: str) -> None:
        """One line that stays."""
        # Files and pipes have no width: a wrapped line would be two lines for whoever reads them by line.
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f} examples/s" if per_second >= 10 else f"{per_second:.2g} examples/s"


def line_of(line: Mapping[str, Any], epochs: int, steps: int) -> str:
    """A line of the history as it is shown.

    Args:
        line: of the history.
        epochs, steps: of the whole run.

    Returns:
        text; it counts steps where the line is not at the end of an epoch.

    Example:
        >>> line = {"epoch": 3, "step": 30, "loss": 0.1394, "accuracy": 0.953, "val_loss": 0.2, "data_wait": 0.002}
        >>> line_of(line | {"seconds": 1.5, "examples_per_second": 2310.4}, epochs=10, steps=100)
        'epoch 3/10  loss 0.139 accuracy 0.953  val_loss 0.200  2,310 examples/s, 0.2% waiting for data'
    """

    def number(value: float) -> str:
        return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"

    values = {name: value for name, value in line.items() if name not in (*TIMES, "epoch", "step")}
    own = " ".join(f"{name} {number(value)}" for name, value in values.items() if not name.startswith("val_"))
    val = " ".join(f"{name} {number(value)}" for name, value in values.items() if name.startswith("val_"))
    whole = isinstance(line["epoch"], int)
    head = f"epoch {line['epoch']}/{epochs}" if whole else f"step {line['step']}/{steps}"
    rate = ""
    if "examples_per_second" in line:
        rate = f"{_rate(line['examples_per_second'])}, {line['data_wait']:.1%} waiting for data"
    return "  ".join(part for part in (head, own, val, rate) if part)


class Stop:
    """Whether the user has asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def leave(self) -> None:
        """End the program as the signal would have, when all is saved.

        Raises:
            KeyboardInterrupt: after SIGINT.
            SystemExit: after SIGTERM, with code 143.
        """
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turns the first SIGINT or SIGTERM into a wish, ``stop.signal``; a second one acts at once.

    Example:
        >>> with stop_on_signals() as stop:
        ...     stop.signal is None
        True
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def wish(number: int, _: object) -> None:
        stop.signal = number
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, wish)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

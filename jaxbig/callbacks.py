"""Callbacks of a run: plain functions of a `Moment`, called when a line of the history is complete."""

import math
import os
import socket
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import RecordWriter

from jaxbig import atomic
from jaxbig.errors import UserError
from jaxbig.history import TIMES
from jaxbig.job import Moment
from jaxbig.pictures import png

Callback = Callable[[Moment], None]


def tensorboard(folder: str | Path | None = None) -> Callback:
    """Writes every number of a line as a scalar for TensorBoard, at its step.

    A resumed run goes on in a new file of the same folder, and hides what a kill undid.

    Args:
        folder: where to write; None: ``tensorboard`` in the run's working folder.

    Returns:
        a callback.

    Raises:
        UserError: later, if there is neither a folder nor a working folder.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> moment = Moment({"epoch": 1, "step": 5, "loss": 0.5}, dict, {}, {}, None, None)
        >>> tensorboard(folder)(moment)
        >>> len(list(Path(folder).iterdir()))
        1
    """
    writers: list[Any] = []

    def write(moment: Moment) -> None:
        step = moment.line["step"]
        if not writers:
            writers.append(_events(_folder(moment, folder, "tensorboard"), step))
            weakref.finalize(write, writers[0].close)
        numbers = {name: value for name, value in moment.line.items() if isinstance(value, int | float)}
        scalars = [
            Summary.Value(tag=_tag(name), simple_value=value)
            for name, value in numbers.items()
            if name != "step" and math.isfinite(value)
        ]
        writers[0].write(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)).SerializeToString())
        writers[0].flush()

    return write


def _events(folder: Path, step: int) -> RecordWriter:
    """A new file of events in which the run begins at a step: what older files have from there on is hidden."""
    folder.mkdir(parents=True, exist_ok=True)
    # tensorboardX's SummaryWriter queues what it is given for a thread, and a kill loses what is in the queue.
    writer = RecordWriter(str(folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"))
    start = SessionLog(status=SessionLog.START)
    for event in (Event(file_version="brain.Event:2"), Event(step=step, session_log=start)):
        event.wall_time = time.time()
        writer.write(event.SerializeToString())
    return writer


def draw(figure_of: Callable[[Moment], Figure], name: str = "predictions", every: int = 1) -> Callback:
    """Draws a picture at each line: samples, or what the model says of some examples.

    Args:
        figure_of: function of the `Moment`; ``moment.outputs`` are there with `Validation.outputs`.
        name: the pictures become ``NAME/step_00000123.png`` in the run's working folder.
        every: lines between two pictures.

    Returns:
        a callback.

    Raises:
        UserError: `every` < 1, or later: there is no working folder.
    """
    if every < 1:
        raise UserError(f"draw: every={every}; use at least 1")
    calls = [0]

    def act(moment: Moment) -> None:
        calls[0] += 1
        if calls[0] % every == 0:
            path = _folder(moment, None, name) / f"step_{moment.line['step']:08d}.png"
            atomic.write(path, png(figure_of(moment)))

    return act


def lines(tell: Callable[[Mapping[str, Any]], str]) -> Callback:
    """Prints a line of one's own after each line of the history.

    Args:
        tell: function of the line.

    Returns:
        a callback.

    Example:
        >>> from rich.console import Console
        >>> moment = Moment({"epoch": 1, "step": 5, "loss": 0.5}, dict, {}, {}, None, Console())
        >>> lines(lambda line: f"perplexity {2.718 ** line['loss']:.2f}")(moment)
        perplexity 1.65
    """
    return lambda moment: moment.console.print(tell(moment.line), markup=False, highlight=False, soft_wrap=True)


def _tag(name: str) -> str:
    if name in TIMES:
        return f"time/{name}"
    return f"validation/{name.removeprefix('val_')}" if name.startswith("val_") else f"training/{name}"


def _folder(moment: Moment, folder: str | Path | None, name: str) -> Path:
    if folder is None and moment.workdir is None:
        raise UserError(f"{name}: there is no working folder to write to; give the run a workdir")
    return Path(folder) if folder is not None else (moment.workdir or Path()) / name

"""What a run is told: the task, how to carry it out, and what it gives back."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optax
from jax.sharding import Mesh
from rich.console import Console

from jaxbig.data.loader import Loader
from jaxbig.evaluate import Outputs, Summary
from jaxbig.history import Line
from jaxbig.objective.base import Objective
from jaxbig.step import TrainState, Ways
from jaxbig.stopping import StopWhen
from jaxbig.transform import Split, Transform

PyTree = Any


class Validation(NamedTuple):
    """What is measured after each epoch.

    Attributes:
        objective: in evaluation mode.
        data: batches; use ``remainder="pad"``, so that every example counts.
        report: from the objective's outputs over the whole set to further numbers, see `jaxbig.evaluate.evaluate`.
        outputs: whether callbacks are given those outputs; `report` implies it.
    """

    objective: Objective
    data: Loader
    report: Summary | None = None
    outputs: bool = False


class Moment(NamedTuple):
    """What a callback is given when a line of the history is complete.

    Attributes:
        line: the line.
        params: function () -> parameters as the model reads them (leaves may be Weights).
        vars: what is neither trained nor frozen.
        outputs: of the validation set, name -> array [N, ...]; {} where they were not asked for.
        workdir: the run's folder, or None.
        console: to print on.
    """

    line: Line
    params: Callable[[], PyTree]
    vars: PyTree
    outputs: Outputs
    workdir: Path | None
    console: Console


def _as_it_is(state: TrainState) -> TrainState:
    return state


class Task(NamedTuple):
    """What a run computes.

    Attributes:
        objective: what is minimised.
        transform: the technique.
        optimizer: optax transformation over ``split.train``.
        data: batches to train on.
        validation: a `Validation`, or its first entries as a tuple; None: nothing.
        ways: how the gradient is had: `jaxbig.gradient.Accumulate`, `jaxbig.gradient.SAM`.
        view: state -> the state that is evaluated, shown to callbacks and returned in `Fitted.split`, such as the one
            with the optimiser's average in place of `train`.
    """

    objective: Objective
    transform: Transform
    optimizer: optax.GradientTransformation
    data: Loader
    validation: Validation | tuple | None = None
    ways: Ways = ()
    view: Callable[[TrainState], TrainState] = _as_it_is


@dataclasses.dataclass(frozen=True)
class Run:
    """How a run is carried out; nothing here changes what a step computes, but for `pmap` (see `step_fn`).

    Attributes:
        epochs: how many; counts where `steps` is None.
        workdir: working folder; None: nothing is saved.
        resume: go on from the last complete checkpoint in `workdir`, or start if there is none.
        steps: number of steps in place of epochs.
        every: steps between two lines of the history, each with its validation and checkpoint; None: an epoch.
        save_every: steps between two more checkpoints inside that; None: none.
        keep_last: checkpoints to keep.
        keep_best: a goal such as ``max:val_accuracy``: the best checkpoint by it is kept too.
        save_base: keep what is frozen as well, once, in ``workdir/base``.
        stop_when: function of the history's lines that gives a reason to stop, or None; see `jaxbig.stopping.patience`.
        callbacks: functions of a `Moment`, called in order when a line is complete.
        diverged: stop where the mean loss between two looks is larger than this times the larger of 1 and the loss of
            the run's first step.
        log_every: steps between two looks at the metrics. The device need not wait for the host in between.
        ahead: batches that are put on the device before they are needed.
        mesh: split batches over these devices; None: one device.
        pmap: the same step under `jax.pmap` over all local devices.
        quiet: show nothing.
        config: JSON-able, kept in every checkpoint's manifest.
        console: where to show progress; None: standard output.
    """

    epochs: int = 1
    workdir: str | Path | None = None
    resume: bool = False
    steps: int | None = None
    every: int | None = None
    save_every: int | None = None
    keep_last: int = 2
    keep_best: str | None = None
    save_base: bool = False
    stop_when: StopWhen | None = None
    callbacks: Sequence[Callable[[Moment], None]] = ()
    diverged: float = 100.0
    log_every: int = 50
    ahead: int = 2
    mesh: Mesh | None = None
    pmap: bool = False
    quiet: bool = False
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    console: Console | None = None


class Fitted(NamedTuple):
    """What a run ends with.

    Attributes:
        split: the factorisation, trained; ``transform.apply(split)`` gives the parameters.
        vars: what is neither trained nor frozen.
        history: one dictionary an epoch: epoch, step, means of all metrics, ``val_`` means, and `jaxbig.history.TIMES`.
        state: the whole state.
        stopped: why `Run.stop_when` ended the run, or None.
    """

    split: Split
    vars: PyTree
    history: list[Line]
    state: TrainState
    stopped: str | None = None

"""Training: one readable loop around one compiled step.

A run with a working folder keeps ``checkpoints/`` and ``metrics.jsonl`` there, one line an epoch. Killed at any moment,
it goes on with ``resume=True`` from the last complete checkpoint, and ends in the very bits that an uninterrupted run
ends in. Give each run a folder of its own.
"""

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from rich.console import Console

from jaxbig import checkpoint, placement
from jaxbig.data.loader import Loader, Position
from jaxbig.errors import UserError
from jaxbig.history import History, Line, Totals
from jaxbig.objective.base import Objective
from jaxbig.progress import Report, Stop, epoch_line, stop_on_signals
from jaxbig.step import Step, TrainState, init_state, make_step, metrics_fn, step_fn
from jaxbig.storage import to_stored
from jaxbig.transform import Split, Transform

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Run:
    """How a run is carried out; nothing here changes what it computes, but for `pmap` (see `step_fn`).

    Attributes:
        epochs: how many.
        workdir: working folder; None: nothing is saved.
        resume: go on from the last complete checkpoint in `workdir`, or start if there is none.
        keep_last: checkpoints to keep.
        log_every: steps between two looks at the metrics. The device need not wait for the host in between.
        mesh: split batches over these devices; None: one device.
        pmap: the same step under `jax.pmap` over all local devices.
        quiet: show nothing.
        config: JSON-able, kept in every checkpoint's manifest.
        console: where to show progress; None: standard output.
    """

    epochs: int = 1
    workdir: str | Path | None = None
    resume: bool = False
    keep_last: int = 2
    log_every: int = 50
    mesh: Mesh | None = None
    pmap: bool = False
    quiet: bool = False
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    console: Console | None = None


class Task(NamedTuple):
    """What a run computes.

    Attributes:
        objective: what is minimised.
        transform: the technique.
        optimizer: optax transformation over ``split.train``.
        data: batches to train on.
        validation: (objective in evaluation mode, batches), measured after each epoch; None: nothing. Use
            ``remainder="pad"`` in its loader, so that every example counts.
    """

    objective: Objective
    transform: Transform
    optimizer: optax.GradientTransformation
    data: Loader
    validation: tuple[Objective, Loader] | None = None


class Fitted(NamedTuple):
    """What a run ends with.

    Attributes:
        split: the factorisation, trained; ``transform.apply(split)`` gives the parameters.
        vars: what is neither trained nor frozen.
        history: one dictionary an epoch: epoch, step, means of all metrics, ``val_`` means, seconds.
        state: the whole state.
    """

    split: Split
    vars: PyTree
    history: list[Line]
    state: TrainState


def fit(task: Task, split: Split, key: jax.Array, run: Run = Run(), variables: PyTree = None) -> Fitted:
    """Train.

    Args:
        task: what is computed.
        split: as ``task.transform.init`` made it; none of its arrays is changed or donated.
        key: typed PRNG key of the run.
        run: how it is carried out.
        variables: the objective's first ``vars``; None: {}.

    Returns:
        the trained split and the history.

    Raises:
        UserError: the loss is not finite, the folder holds a run already and `resume` is off, or the checkpoint is
            damaged or of another run.
        KeyboardInterrupt, SystemExit: after SIGINT or SIGTERM, when the state in mid-epoch has been saved.

    Example:
        >>> import flax.linen as nn, numpy as np
        >>> from jaxbig.objective import classify
        >>> from jaxbig.tune.full import full
        >>> data = Loader({"image": np.eye(4, dtype=np.float32), "label": np.arange(4)}, batch_size=2)
        >>> split = full().init(jax.random.key(0), {"kernel": jnp.zeros((4, 4)), "bias": jnp.zeros(4)}, {})
        >>> task = Task(classify(nn.Dense(4)), full(), optax.sgd(1.0), data)
        >>> fitted = fit(task, split, jax.random.key(0), Run(epochs=3, quiet=True))
        >>> [line["step"] for line in fitted.history], fitted.history[-1]["accuracy"]
        ([2, 4, 6], 1.0)
    """
    return _Loop(task, split, key, run, variables).run_all()


class _Loop:
    def __init__(self, task: Task, split: Split, key: jax.Array, run: Run, variables: PyTree):
        self.task, self.run = task, run
        self.place = _placement(run)
        base, state = init_state(split, task.optimizer, key, variables)
        self.folder = None if run.workdir is None else Path(run.workdir) / "checkpoints"
        self.identity = _identity(task, base, state) if run.workdir is not None else {}
        self.position, self.totals, lines = Position(), Totals(), []
        found = self._found()
        if found is not None:
            manifest = checkpoint.read_manifest(self.folder or "", found)
            self._check_identity(manifest["identity"], found)
            state = checkpoint.restore(self.folder or "", state, found)
            self.position, self.totals = Position(**manifest["position"]), Totals(manifest["totals"])
            lines = manifest["history"]
        self.history = History(None if run.workdir is None else Path(run.workdir) / "metrics.jsonl", lines)
        self.original, self.base, self.state = base, self.place.state(base), self.place.state(state)
        axis = placement.AXIS if run.pmap else None
        step = step_fn(task.objective, task.transform, task.optimizer, axis)
        self.step: Step = self.place.compile(step, self.state)
        self.measure = jax.jit(metrics_fn(task.validation[0], task.transform)) if task.validation else None
        self.pending: list = []

    def _found(self) -> int | None:
        if self.folder is None:
            if self.run.resume:
                raise UserError("fit: resume needs the workdir of the run to go on with")
            return None
        found = checkpoint.latest(self.folder)
        if found is not None and not self.run.resume:
            raise UserError(f"{self.run.workdir}: holds a run already; resume it, or choose another workdir")
        return found

    def _check_identity(self, saved: Mapping[str, Any], found: int) -> None:
        for name, value in self.identity.items():
            if saved.get(name) != value:
                raise UserError(
                    f"{self.folder}: step {found} is of another run: its {name} was {saved.get(name)}, now "
                    f"{value}; use the settings of that run, or another workdir"
                )

    def run_all(self) -> Fitted:
        steps = self.task.data.steps
        done = self.position.epoch * steps + self.position.step
        report = Report(self.run.epochs * steps, done, self.run.console, self.run.quiet)
        with report, stop_on_signals() as stop:
            while self.position.epoch < self.run.epochs:
                self._epoch(report, stop)
        state = self.place.fetch(self.state)
        return Fitted(state.split._replace(params=self.original), state.vars, self.history.lines, state)

    def _epoch(self, report: Report, stop: Stop) -> None:
        since, epoch = time.perf_counter(), self.position.epoch
        for batch in self.task.data.epoch(epoch, self.position.step):
            self.state, metrics = self.step(self.base, self.state, self.place.batch(batch))
            self.pending.append(metrics)
            self.position = self.task.data.advance(self.position)
            if len(self.pending) >= self.run.log_every:
                self._look(report, epoch)
            if stop.signal is not None and self.position.step:
                self._look(report, epoch)
                self._save()
                report.line(f"stopped in epoch {epoch + 1} after step {self.position.step}" + self._hint())
                stop.leave()
        self._look(report, epoch)
        values = self.totals.means() | self._validate()
        done = {"epoch": epoch + 1, "step": (epoch + 1) * self.task.data.steps}
        self.history.append(done | values | {"seconds": round(time.perf_counter() - since, 3)})
        report.line(epoch_line(epoch + 1, self.run.epochs, values))
        self.totals = Totals()
        self._save()
        if stop.signal is not None:
            report.line(f"stopped after epoch {epoch + 1}" + self._hint())
            stop.leave()

    def _hint(self) -> str:
        return "; resume goes on from here" if self.folder else "; nothing is saved without a workdir"

    def _look(self, report: Report, epoch: int) -> None:
        """Fetch what the steps have measured; until here the host only dispatches."""
        steps = len(self.pending)
        self.totals.add(self.place.metrics(self.pending))
        self.pending = []
        loss = self.totals.means().get("loss", math.nan)
        if "loss" in self.totals.sums and not math.isfinite(self.totals.sums["loss"][0]):
            raise UserError(f"the loss is {loss} in epoch {epoch + 1}; use a lower learning rate, or clip gradients")
        report.advance(steps, steps * self.task.data.batch_size, loss)

    def _validate(self) -> dict[str, float]:
        if self.task.validation is None or self.measure is None:
            return {}
        pmap = self.run.pmap
        base, state = (self.original, self.place.fetch(self.state)) if pmap else (self.base, self.state)
        put = (lambda batch: batch) if pmap else self.place.batch
        fetched = [self.measure(base, state, put(batch)) for batch in self.task.validation[1].epoch(0)]
        totals = Totals()
        totals.add(jax.device_get(fetched))
        return totals.means("val_")

    def _save(self) -> None:
        if self.folder is None:
            return
        manifest = {
            "position": self.position._asdict(),
            "totals": self.totals.sums,
            "history": self.history.lines,
            "identity": self.identity,
            "config": dict(self.run.config),
        }
        step = self.position.epoch * self.task.data.steps + self.position.step
        checkpoint.save(self.folder, step, self.place.fetch(self.state), manifest, self.run.keep_last)


def _placement(run: Run) -> placement.Placement:
    if run.pmap and run.mesh is not None:
        raise UserError("fit: pmap and mesh are two ways to do the same; give one of them")
    if run.epochs < 0 or run.log_every < 1:
        raise UserError(f"fit: epochs={run.epochs}, log_every={run.log_every}; use epochs >= 0 and log_every >= 1")
    if run.pmap:
        return placement.replicas()
    return placement.single() if run.mesh is None else placement.over_mesh(run.mesh)


def _identity(task: Task, base: PyTree, state: TrainState) -> dict[str, Any]:
    """What two processes have to agree on to be one run."""
    data = {"examples": task.data.size, "batch_size": task.data.batch_size, "data seed": task.data.seed}
    data |= {"shuffle": task.data.shuffle, "remainder": task.data.remainder}
    return data | _fingerprints({"key": state.key, "frozen base": base, "first train": state.split})


def _fingerprints(trees: dict[str, PyTree]) -> dict[str, int]:
    """For each tree a number that differs where the arrays differ, but for bad luck."""

    def of(leaf) -> jax.Array:
        bits = jnp.ravel(to_stored(jnp.asarray(leaf)))
        bits = bits.astype(jnp.float32) if jnp.issubdtype(bits.dtype, jnp.inexact) else bits.astype(jnp.uint32)
        bits = jax.lax.bitcast_convert_type(bits, jnp.uint32)
        return jnp.sum(bits * (jnp.arange(bits.size, dtype=jnp.uint32) * jnp.uint32(2654435761) | 1), dtype=jnp.uint32)

    def all_of(tree: PyTree) -> jax.Array:
        total = jnp.uint32(0)
        for leaf in jax.tree.leaves(tree):
            total = total * jnp.uint32(1000003) + of(leaf)
        return total

    return {
        name: int(number) for name, number in jax.jit(lambda t: {n: all_of(x) for n, x in t.items()})(trees).items()
    }


__all__ = [
    "Fitted",
    "Run",
    "Task",
    "TrainState",
    "fit",
    "init_state",
    "make_step",
    "metrics_fn",
    "step_fn",
]

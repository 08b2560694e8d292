"""Training: one readable loop around one compiled step.

A run with a working folder keeps ``checkpoints/`` and ``metrics.jsonl`` there, one line an epoch (or every `Run.every`
steps). Killed at any moment, it goes on with ``resume=True`` from the last complete checkpoint, and ends in the very
bits that an uninterrupted run ends in. Give each run a folder of its own.
"""

import contextlib
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from jaxbig import checkpoint, placement
from jaxbig.data.loader import Position
from jaxbig.data.prefetch import Prefetch
from jaxbig.diagnose import explain, first_bad_step, is_finite
from jaxbig.errors import UserError
from jaxbig.evaluate import Outputs, collect
from jaxbig.gradient import gradient_fn
from jaxbig.history import History, Line, Totals
from jaxbig.job import Fitted, Moment, Run, Task, Validation
from jaxbig.manifest import Goal
from jaxbig.progress import Report, Stop, line_of, stop_on_signals
from jaxbig.resume import APART, check, from_parts, identity, parts
from jaxbig.saver import Saver
from jaxbig.step import Step, TrainState, init_state, make_step, measure_fn, metrics_fn, step_fn
from jaxbig.transform import Split

PyTree = Any

# Steps that the device may be given beyond the one it works on. With more of them the host would be far ahead: it would
# wait for data that nothing needs yet, and hold a batch for each.
_IN_FLIGHT = 2


def fit(task: Task, split: Split, key: jax.Array, run: Run | None = None, variables: PyTree = None) -> Fitted:
    """Train.

    Args:
        task: what is computed.
        split: as ``task.transform.init`` made it; none of its arrays is changed or donated.
        key: typed PRNG key of the run.
        run: how it is carried out; None: `Run()`.
        variables: the objective's first ``vars``; None: {}.

    Returns:
        the trained split and the history.

    Raises:
        UserError: the loss is not finite (the message names the step and what is wrong in it) or diverges, the folder
            holds a run already and `resume` is off, or the checkpoint is damaged or of another run.
        KeyboardInterrupt, SystemExit: after SIGINT or SIGTERM, when the state in mid-epoch has been saved.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp, optax
        >>> from jaxbig.data import Loader
        >>> from jaxbig.objective import classify
        >>> from jaxbig.tune.full import full
        >>> data = Loader({"image": np.eye(4, dtype=np.float32), "label": np.arange(4)}, batch_size=2)
        >>> split = full().init(jax.random.key(0), {"kernel": jnp.zeros((4, 4)), "bias": jnp.zeros(4)}, {})
        >>> task = Task(classify(nn.Dense(4)), full(), optax.sgd(1.0), data)
        >>> fitted = fit(task, split, jax.random.key(0), Run(epochs=3, quiet=True))
        >>> [line["step"] for line in fitted.history], fitted.history[-1]["accuracy"]
        ([2, 4, 6], 1.0)
    """
    return _Loop(task, split, key, run or Run(), variables).run_all()


class _Loop:
    def __init__(self, task: Task, split: Split, key: jax.Array, run: Run, variables: PyTree):
        self.task, self.run, self.given = task, run, (split, key, variables)
        self.validation = None if task.validation is None else Validation(*cast(tuple, task.validation))
        self.place = _placement(run)
        self.per_epoch = task.data.steps
        self.total = run.epochs * self.per_epoch if run.steps is None else run.steps
        self.folder = None if run.workdir is None else Path(run.workdir) / "checkpoints"
        base, state = init_state(split, task.optimizer, key, variables)
        self.identity = identity(task, base, state) if run.workdir is not None else {}
        self.done, self.totals, lines = 0, Totals(), []
        self.first_loss: float | None = None
        found = self._found()
        if found is not None:
            state, self.done, self.totals, lines = self._resumed(state, found)
        self.history = History(None if run.workdir is None else Path(run.workdir) / "metrics.jsonl", lines)
        self.original, self.base, self.state = base, self.place.state(base), self.place.state(state)
        axis = placement.AXIS if run.pmap else None
        step = step_fn(task.objective, task.transform, task.optimizer, axis, task.ways)
        self.step: Step = self.place.compile(step, self.state)
        self.saver = Saver(self.folder, run.keep_last, run.keep_best, APART) if self.folder else None
        self.pending: list = []
        self.stopped: str | None = None
        self.measure = None
        if self.validation is not None:
            outputs = self.validation.outputs or self.validation.report is not None
            self.measure = jax.jit(measure_fn(self.validation.objective, task.transform, outputs))

    # -- a run's folder ----------------------------------------------------------------------------------------------

    def _found(self) -> int | None:
        if self.folder is None:
            if self.run.resume or self.run.save_base:
                raise UserError("fit: resume needs the workdir of the run to go on with, and save_base one to write to")
            return None
        found = checkpoint.latest(self.folder)
        if found is not None and not self.run.resume:
            raise UserError(f"{self.run.workdir}: holds a run already; resume it, or choose another workdir")
        return found

    def _resumed(self, state: TrainState, found: int) -> tuple[TrainState, int, Totals, list[Line]]:
        manifest = checkpoint.read_manifest(self.folder or "", found)
        check(manifest["identity"], self.identity, f"{self.folder}: step {found}")
        state = from_parts(checkpoint.restore(self.folder or "", parts(state), found), state)
        lines, done, self.first_loss = manifest["history"], int(manifest["step"]), manifest["first loss"]
        # A run that ended inside a period has a line there, which an uninterrupted longer run would not have.
        if lines and lines[-1]["step"] == done < self.total and done % self._period():
            lines = lines[:-1]
        return state, done, Totals(manifest["totals"]), lines

    def _save(self, scores: Mapping[str, float]) -> None:
        if self.saver is None:
            return
        if not is_finite((self.state.split.train, self.state.vars)):
            raise self._not_finite()
        position = Position(*divmod(self.done, self.per_epoch))
        manifest = {
            "step": self.done,
            "position": position._asdict(),
            "scores": {name: value for name, value in scores.items() if math.isfinite(value)},
            "totals": self.totals.sums,
            "first loss": self.first_loss,
            "history": self.history.lines,
            "identity": self.identity,
            "config": dict(self.run.config),
        }
        self.saver.save(self.done, parts(self.place.fetch(self.state)), manifest)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run_all(self) -> Fitted:
        run = self.run
        if run.save_base and checkpoint.latest(Path(run.workdir or "") / "base") is None:
            checkpoint.save(
                Path(run.workdir or "") / "base", 0, {"params": self.original}, {"base": self.identity["base"]}
            )
        report = Report(self.total, self.done, run.console, run.quiet)
        with report, stop_on_signals() as stop, self.saver or contextlib.nullcontext():
            self._stop_early(report)
            with self._batches(self.done, self.total) as batches:
                while self.done < self.total and self.stopped is None:
                    self._period_of_steps(batches, report, stop)
        state = self.place.fetch(self.state)
        shown = self.task.view(state)
        split = shown.split._replace(params=self.original)
        return Fitted(split, shown.vars, self.history.lines, state, self.stopped)

    def _period(self) -> int:
        return self.run.every or self.per_epoch

    def _batches(self, start: int, end: int) -> Prefetch:
        epochs = -(-end // self.per_epoch)
        stream = self.task.data.stream(Position(*divmod(start, self.per_epoch)), epochs)
        return Prefetch(stream, self.place.batch, self.run.ahead, self._idle)

    def _idle(self) -> bool:
        """Whether the device is through with the last step that it was given."""
        return not self.pending or all(array.is_ready() for array in jax.tree.leaves(self.pending[-1]))

    def _period_of_steps(self, batches: Prefetch, report: Report, stop: Stop) -> None:
        """Steps up to the next line of the history, and that line."""
        since, first = time.perf_counter(), self.done
        end = min(self.total, (self.done // self._period() + 1) * self._period())
        blocked = self.saver.blocked if self.saver else 0.0
        batches.waited = 0.0
        while self.done < end:
            self.state, metrics = self.step(self.base, self.state, next(batches))
            self.pending.append(metrics)
            self.done += 1
            if len(self.pending) > _IN_FLIGHT:
                jax.block_until_ready(self.pending[-1 - _IN_FLIGHT])
            if len(self.pending) >= self.run.log_every:
                self._look(report)
            if self.done < end and (stop.signal is not None or self._save_is_due()):
                self._look(report)
                self._save({})
                self._leave_if(stop, report)
        self._look(report)
        stepping = time.perf_counter() - since
        values, outputs = self._validate()
        values = self.totals.means() | values
        saving = (self.saver.blocked if self.saver else 0.0) - blocked
        times = {
            "seconds": round(time.perf_counter() - since, 3),
            "examples_per_second": round((self.done - first) * self.task.data.batch_size / stepping, 3),
            "data_wait": round(batches.waited / stepping, 5),
            "save_wait": round(saving / stepping, 5),
        }
        epoch = self.done / self.per_epoch
        line = {"epoch": int(epoch) if epoch == int(epoch) else round(epoch, 4), "step": self.done}
        self.history.append(line | values | times)
        report.line(line_of(self.history.lines[-1], self.total // self.per_epoch, self.total))
        if self.done % self._period() == 0:
            self.totals = Totals()
        self._save(values)
        self._call_back(report, outputs)
        self._stop_early(report)
        self._leave_if(stop, report)

    def _save_is_due(self) -> bool:
        return self.run.save_every is not None and self.done % self.run.save_every == 0

    def _leave_if(self, stop: Stop, report: Report) -> None:
        if stop.signal is None:
            return
        if self.saver is not None:
            self.saver.wait()
        epoch, step = divmod(self.done, self.per_epoch)
        where = f"in epoch {epoch + 1} after step {step}" if step else f"after epoch {epoch}"
        report.line(
            f"stopped {where}"
            + ("; resume goes on from here" if self.folder else "; nothing is saved without a workdir")
        )
        stop.leave()

    def _stop_early(self, report: Report) -> None:
        if self.run.stop_when is not None and self.history.lines:
            self.stopped = self.run.stop_when(self.history.lines)
            if self.stopped is not None:
                report.line(f"stopped early: {self.stopped}")

    def _call_back(self, report: Report, outputs: Outputs) -> None:
        if not self.run.callbacks:
            return
        state = self.task.view(self.place.fetch(self.state))
        split = state.split._replace(params=self.original)
        workdir = None if self.run.workdir is None else Path(self.run.workdir)
        line = self.history.lines[-1]
        moment = Moment(line, lambda: self.task.transform.apply(split), state.vars, outputs, workdir, report.console)
        for callback in self.run.callbacks:
            callback(moment)

    def _look(self, report: Report) -> None:
        """Fetch what the steps have measured; until here the host only dispatches."""
        fetched, self.pending = self.place.metrics(self.pending), []
        if not fetched:
            return
        before = Totals()
        before.add(fetched)
        self.totals.add(fetched)
        window, total = before.means().get("loss"), self.totals.means().get("loss", math.nan)
        if window is not None:
            if not math.isfinite(before.sums["loss"][0]):
                raise self._not_finite()
            if self.first_loss is None:
                self.first_loss = float(fetched[0]["loss"][0]) / max(float(fetched[0]["loss"][1]), 1.0)
            if window > self.run.diverged * max(self.first_loss, 1.0):
                raise UserError(
                    f"the loss diverges: {window:.4g} around step {self.done}, {self.first_loss:.4g} at first; use a "
                    f"lower learning rate, or clip gradients{self._kept()}"
                )
        report.advance(len(fetched), len(fetched) * self.task.data.batch_size, total)

    def _validate(self) -> tuple[dict[str, float], Outputs]:
        if self.validation is None or self.measure is None:
            return {}, {}
        pmap = self.run.pmap
        base, state = (self.original, self.place.fetch(self.state)) if pmap else (self.base, self.state)
        put = (lambda batch: batch) if pmap else self.place.batch
        measure, state = self.measure, self.task.view(state)
        wanted = self.validation.outputs or self.validation.report is not None
        totals, outputs = collect(lambda batch: measure(base, state, put(batch)), self.validation.data, wanted)
        values = totals.means("val_")
        if self.validation.report is not None:
            values |= {f"val_{name}": value for name, value in self.validation.report(outputs).items()}
        return values, outputs

    # -- when it goes wrong ------------------------------------------------------------------------------------------

    def _not_finite(self) -> UserError:
        """What to raise when the loss or parameters are not finite: repeats steps to find the first bad one."""
        task, (split, key, variables) = self.task, self.given
        base, state = init_state(split, task.optimizer, key, variables)
        start = 0
        if self.saver is not None:
            self.saver.wait()
            start = checkpoint.latest(self.folder or "") or 0
            if start:
                state = from_parts(checkpoint.restore(self.folder or "", parts(state), start), state)
        with self._batches(start, self.done) as batches:
            found = first_bad_step(self.step, self.base, self.place.state(state), batches)
            if found is None:
                return UserError(f"the loss is not finite at step {self.done}, but was when repeated from {start}")
            state, batch = self.place.fetch(found[0]), jax.device_get(found[1])
        if self.run.pmap:
            batch = {name: np.reshape(array, (-1, *np.shape(array)[2:])) for name, array in batch.items()}
        gradient = gradient_fn(task.objective, task.transform)
        whole, key = state.split._replace(params=base), jax.random.fold_in(state.key, state.step)
        why = explain(gradient, whole, state.vars, batch, key)
        epoch, number = divmod(int(state.step), self.per_epoch)
        return UserError(
            f"training stops at step {int(state.step) + 1} (epoch {epoch + 1}, batch {number + 1}): {why}; use a lower "
            f"learning rate, clip gradients, or mend the data{self._kept()}"
        )

    def _kept(self) -> str:
        step = None if self.folder is None else checkpoint.latest(self.folder)
        return "" if step is None else f"; the checkpoint of step {step} is kept"


def _placement(run: Run) -> placement.Placement:
    if run.pmap and run.mesh is not None:
        raise UserError("fit: pmap and mesh are two ways to do the same; give one of them")
    least = {"epochs": 0, "steps": 0, "every": 1, "save_every": 1, "log_every": 1, "ahead": 0, "keep_last": 1}
    for name, value in least.items():
        given = getattr(run, name)
        if given is not None and given < value:
            raise UserError(f"fit: {name}={given}; use at least {value}")
    if run.keep_best is not None:
        Goal.parse(run.keep_best)
    if run.pmap:
        return placement.replicas()
    return placement.single() if run.mesh is None else placement.over_mesh(run.mesh)


__all__ = [
    "Fitted",
    "Moment",
    "Run",
    "Task",
    "TrainState",
    "Validation",
    "fit",
    "init_state",
    "make_step",
    "metrics_fn",
    "step_fn",
]

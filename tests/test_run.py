"""How a run is carried out: steps and lines, early stopping, what is evaluated and called back, and what goes wrong."""

import dataclasses
import io
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from jaxbig import checkpoint
from jaxbig.averaging import averaged
from jaxbig.data import Loader
from jaxbig.data.augment_image import Flip
from jaxbig.errors import UserError
from jaxbig.gradient import SAM, Accumulate
from jaxbig.history import TIMES
from jaxbig.metrics import classification_report
from jaxbig.objective import Aux, classify
from jaxbig.optim import Optimizer
from jaxbig.stopping import patience
from jaxbig.train import Run, Task, Validation, fit
from jaxbig.tune.full import full

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 3, 24)
DATA = {"image": (RANDOM.normal(size=(24, 6)) + LABELS[:, None]).astype(np.float32), "label": LABELS}
MODEL = nn.Dense(3)
KEY = jax.random.key(0)


def start():
    return full().init(KEY, {"kernel": jnp.zeros((6, 3)), "bias": jnp.zeros(3)}, {})


def task(optimizer=None, **options):
    held_out = Validation(classify(MODEL, train=False), Loader(DATA, 16, shuffle=False, remainder="pad"))
    data = Loader(options.pop("data", DATA), 4)
    return Task(
        classify(MODEL), full(), optimizer or optax.sgd(0.1), data, options.pop("validation", held_out), **options
    )


def run(job=None, **options):
    return fit(job or task(), start(), KEY, Run(**({"epochs": 3, "quiet": True} | options)))


def untimed(lines):
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one.split.train, two.split.train)
    assert untimed(one.history) == untimed(two.history)


@pytest.fixture(scope="module")
def whole():
    return run()


def test_steps_in_place_of_epochs(whole):
    same(run(epochs=1, steps=18), whole)
    cut = run(steps=8)
    assert [(line["epoch"], line["step"]) for line in cut.history] == [(1, 6), (1.3333, 8)]


def test_lines_every_so_many_steps():
    found = run(epochs=2, every=4)
    assert [(line["epoch"], line["step"]) for line in found.history] == [(0.6667, 4), (1.3333, 8), (2, 12)]
    same(found, run(epochs=2, every=4, ahead=0))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"steps": 8}, marks=pytest.mark.slow),
        {"steps": 5, "every": 4},
        pytest.param({"epochs": 1}, marks=pytest.mark.slow),
        {"steps": 0},
    ],
)
def test_a_run_that_ended_anywhere_goes_on_as_if_it_had_not(tmp_path, options, whole):
    every = {name: value for name, value in options.items() if name == "every"}
    run(workdir=tmp_path, **options)
    same(run(workdir=tmp_path, resume=True, **every), whole if not every else run(**every))


def test_saves_between_lines_change_nothing(tmp_path, whole):
    found = run(workdir=tmp_path, save_every=2, keep_last=100)
    assert checkpoint.steps(tmp_path / "checkpoints") == [2, 4, 6, 8, 10, 12, 14, 16, 18]
    same(found, whole)


def test_early_stopping_is_the_same_after_a_resumption(tmp_path):
    job = task(optax.sgd(0.0))  # never gets better
    found = run(job, epochs=9, stop_when=patience("min:val_loss", 2))
    assert len(found.history) == 3
    assert found.stopped == f"val_loss has not got better than {found.history[0]['val_loss']:.6g} for 2 lines"
    run(job, epochs=1, workdir=tmp_path)
    again = run(job, epochs=9, workdir=tmp_path, resume=True, stop_when=patience("min:val_loss", 2))
    assert untimed(again.history) == untimed(found.history)
    assert run(job, epochs=9, workdir=tmp_path, resume=True, stop_when=patience("min:val_loss", 2)).stopped
    with pytest.raises(UserError, match="the history has no val_f1; it has epoch, step, loss"):
        run(job, stop_when=patience("max:val_f1", 1))


def test_patience_counts_from_the_best():
    stop = patience("max:a", 2, least=0.1)
    assert stop([{"a": 0.5}, {"a": 0.55}]) is None
    assert "better than 0.5" in str(stop([{"a": 0.5}, {"a": 0.55}, {"a": 0.59}]))
    assert stop([{"a": 0.5}, {"a": 0.55}, {"a": 0.65}]) is None
    with pytest.raises(UserError, match="lines=0"):
        patience("max:a", 0)


def test_the_best_checkpoint_is_kept(tmp_path):
    found = run(workdir=tmp_path, epochs=4, keep_last=1, keep_best="max:loss")
    assert checkpoint.steps(tmp_path / "checkpoints") == [6, 24]
    assert checkpoint.best(tmp_path / "checkpoints", "max:loss") == 6
    assert found.history[0]["loss"] == max(line["loss"] for line in found.history)


def test_a_report_over_the_whole_set_is_in_the_line():
    def report(outputs):
        return classification_report(outputs["label"], outputs["logits"], only=["f1", "auc"])

    held_out = Validation(classify(MODEL, train=False), Loader(DATA, 16, remainder="pad"), report)
    found = run(task(validation=held_out))
    params = full().apply(found.split)
    logits = DATA["image"] @ np.asarray(params["kernel"]) + np.asarray(params["bias"])
    expected = classification_report(DATA["label"], logits, only=["f1", "auc"])
    for name, value in expected.items():
        assert found.history[-1][f"val_{name}"] == pytest.approx(value)


def test_what_is_evaluated_can_be_the_optimiser_s_average():
    optimizer = Optimizer("sgd", 0.5, ema=0.9).build()

    def view(state):
        return state._replace(split=state.split._replace(train=averaged(state.opt_state, state.split.train)))

    found = run(task(optimizer, view=view))
    mean = averaged(found.state.opt_state, found.state.split.train)
    jax.tree.map(np.testing.assert_array_equal, found.split.train, mean)
    exact = classify(MODEL, train=False)(full().apply(found.split), {}, DATA, None)[0]
    assert found.history[-1]["val_loss"] == pytest.approx(float(exact), rel=1e-5)
    assert float(jnp.abs(mean["kernel"] - found.state.split.train["kernel"]).max()) > 1e-3


def test_callbacks_see_each_line_and_the_parameters_of_its_time(tmp_path):
    seen = []

    def watch(moment):
        loss = classify(MODEL, train=False)(moment.params(), moment.vars, DATA, None)[0]
        seen.append((moment.line["step"], float(loss), moment.workdir))

    found = run(workdir=tmp_path, callbacks=[watch])
    for (step, loss, workdir), line in zip(seen, found.history, strict=True):
        assert (step, workdir) == (line["step"], tmp_path)
        assert loss == pytest.approx(line["val_loss"], rel=1e-5)


def test_the_line_tells_the_rate_and_how_long_the_step_waited():
    console = Console(file=io.StringIO(), width=200)
    found = run(quiet=False, console=console)
    for line in found.history:
        assert line["examples_per_second"] > 0
        assert 0 <= line["data_wait"] <= 1
        assert 0 <= line["save_wait"] <= 1
    assert "waiting for data" in console.file.getvalue()


def test_ways_are_part_of_the_run_s_identity(tmp_path):
    run(task(ways=(Accumulate(2),)), workdir=tmp_path, epochs=1)
    with pytest.raises(UserError, match=r"its ways was \['Accumulate\(chunks=2\)'\], now \['SAM\(radius=0.1\)'\]"):
        run(task(ways=(SAM(0.1),)), workdir=tmp_path, resume=True)
    turned = task(ways=(Accumulate(2),))
    turned = turned._replace(data=dataclasses.replace(turned.data, augment=Flip()))
    with pytest.raises(UserError, match=r"its augment was None, now Flip\("):
        run(turned, workdir=tmp_path, resume=True)
    other = {"image": DATA["image"] + 1e-3, "label": DATA["label"]}
    with pytest.raises(UserError, match="its data was"):
        run(task(ways=(Accumulate(2),), data=other), workdir=tmp_path, resume=True)


def test_the_base_is_saved_once_if_asked(tmp_path):
    split = full(where="bias").init(KEY, {"kernel": jnp.ones((6, 3)), "bias": jnp.zeros(3)}, {})
    job = task()._replace(transform=full(where="bias"))
    fit(job, split, KEY, Run(1, tmp_path, quiet=True, save_base=True))
    assert list(checkpoint.restore(tmp_path / "base")) == ["params/kernel"]
    heads = {path.split("/")[0] for path in checkpoint.restore(tmp_path / "checkpoints")}
    assert heads == {"train", "key", "step"}


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def with_nan(row):
    images = DATA["image"].copy()
    images[row, 2] = np.nan
    return {"image": images, "label": DATA["label"]}


@pytest.mark.parametrize("log_every", [1, 50])
@pytest.mark.parametrize("saved", [False, True])
def test_a_batch_that_is_not_finite_is_named_with_its_step(tmp_path, log_every, saved):
    job, row = task(data=with_nan(7)), 7
    steps = {int(position): step for step, batch in enumerate(job.data.index(0)[0]) for position in batch}
    place = int(np.flatnonzero(job.data.index(0)[0][steps[row]] == row)[0])
    number = steps[row] + 1
    says = rf"stops at step {number} \(epoch 1, batch {number}\): image of the batch has nan in row {place};"
    options = {"workdir": tmp_path, "save_every": 1} if saved else {}
    with pytest.raises(UserError, match=says) as caught:
        run(job, log_every=log_every, **options)
    if saved and steps[row]:
        assert f"the checkpoint of step {steps[row]} is kept" in str(caught.value)
        kept = checkpoint.restore(tmp_path / "checkpoints", only="train")
        assert all(np.isfinite(leaf).all() for leaf in kept.values())


def test_gradients_that_are_not_finite_are_named():
    def objective(params, variables, batch, key):
        # the square root's slope at 0 is infinite, its value is fine
        value = jnp.sqrt(jnp.abs(params["w"] - jnp.where(batch["at"][0] == 5, params["w"], 1e3))) + params["v"] ** 2
        return value, Aux({"loss": (value, jnp.float32(1))}, variables)

    split = full().init(KEY, {"w": jnp.float32(2.0), "v": jnp.float32(1.0)}, {})
    job = Task(objective, full(), optax.sgd(1e-3), Loader({"at": np.arange(8)}, 1, shuffle=False))
    with pytest.raises(UserError, match=r"step 6 .*the loss is finite .*, and the gradient of w is not finite"):
        fit(job, split, KEY, Run(1, quiet=True))


def test_an_update_that_is_too_large_is_named_by_its_gradient():
    def objective(params, variables, batch, key):
        value = 1e30 * params["w"] ** 2
        return value, Aux({"loss": (value, jnp.float32(1))}, variables)

    split = full().init(KEY, {"w": jnp.float32(1.0)}, {})
    job = Task(objective, full(), optax.sgd(1e30), Loader({"at": np.arange(8)}, 1))
    with pytest.raises(UserError, match=r"step 1 .*gradient is finite; its largest entry, in w, is 2e\+30"):
        fit(job, split, KEY, Run(1, quiet=True))


def test_a_loss_that_diverges_stops_the_run(tmp_path):
    with pytest.raises(UserError, match=r"the loss diverges: .* around step \d+, 1.099 at first; use a lower"):
        run(task(optax.sgd(1e6)), log_every=2, workdir=tmp_path, epochs=20, diverged=50)
    run(task(optax.sgd(0.1)), log_every=2, diverged=2.0)


BAD = {
    "epochs": ({"epochs": -1}, "epochs=-1; use at least 0"),
    "steps": ({"steps": -1}, "steps=-1"),
    "every": ({"every": 0}, "every=0; use at least 1"),
    "save_every": ({"save_every": 0}, "save_every=0"),
    "log_every": ({"log_every": 0}, "log_every=0"),
    "ahead": ({"ahead": -1}, "ahead=-1"),
    "keep_last": ({"keep_last": 0}, "keep_last=0"),
    "two ways to spread": ({"pmap": True, "mesh": "any"}, "pmap and mesh are two ways"),
    "no folder to resume": ({"resume": True}, "resume needs the workdir"),
    "no folder for the base": ({"save_base": True}, "save_base one to write to"),
}


@pytest.mark.parametrize(("options", "says"), BAD.values(), ids=BAD)
def test_what_makes_no_sense_is_told_before_anything_runs(options, says):
    with pytest.raises(UserError, match=says):
        run(**options)


def test_a_goal_is_checked_before_the_first_save(tmp_path):
    with pytest.raises(UserError, match="write min:METRIC or max:METRIC"):
        run(workdir=tmp_path, keep_best="accuracy")
    assert not (tmp_path / "checkpoints").exists()


def test_history_is_json_and_complete(tmp_path):
    found = run(workdir=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == found.history
    assert all({*TIMES, "epoch", "step", "loss", "val_loss"} <= set(line) for line in lines)

"""Training: golden losses, one trace, no donation of the base, vmap over seeds, resumption to the very bits."""

import dataclasses
import json
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxbig import checkpoint
from jaxbig.compress.quantize import quantize
from jaxbig.data import Loader, load_digits, select, split_fraction
from jaxbig.errors import UserError
from jaxbig.history import TIMES
from jaxbig.models import CNN, MLP
from jaxbig.objective import Aux, classify
from jaxbig.optim import Optimizer
from jaxbig.step import init_state, make_step, step_fn
from jaxbig.train import Run, Task, fit
from jaxbig.transform import Split, Transform, chain
from jaxbig.tune.bitfit import bitfit
from jaxbig.tune.full import full
from jaxbig.tune.lora import lora
from jaxbig.usage import usage

MODEL = MLP(3, (8,), dropout=0.2)
GOLDEN = [1.096281, 1.128374, 1.093415, 0.872832, 1.027016, 0.926025, 0.877178, 0.964098, 1.06046, 0.979359]


def dataset(n=40):
    generator = np.random.default_rng(0)
    label = generator.integers(0, 3, n)
    return {"image": (generator.normal(size=(n, 6)) + label[:, None]).astype(np.float32), "label": label}


def params():
    """Not from the model's init, whose random numbers a version of JAX may change: losses are pinned below."""
    generator = np.random.default_rng(1)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.ones((1, 6)))["params"]
    return jax.tree.map(lambda leaf: jnp.array(generator.normal(size=leaf.shape) * 0.3, jnp.float32), shapes)


def task(transform=None, optimizer=None, **changes):
    arguments = {"batch_size": 8, "seed": 3} | changes
    data = Loader(dataset(), **arguments)
    held_out = Loader(dataset(13), 8, shuffle=False, remainder="pad")
    optimizer = optimizer or Optimizer("adamw", 1e-2, weight_decay=1e-2).build()
    return Task(classify(MODEL), transform or full(), optimizer, data, (classify(MODEL, train=False), held_out))


def start(transform=None):
    uses = usage(lambda p, x: MODEL.apply({"params": p}, x), params(), jnp.ones((1, 6)))
    return (transform or full()).init(jax.random.key(1), params(), uses)


def quiet(**options):
    return Run(**({"epochs": 3, "quiet": True} | options))


def bits(tree):
    tree = jax.tree.map(lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, tree)
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def untimed(lines):
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def test_golden_losses_of_ten_steps():
    optimizer = Optimizer("adamw", 1e-2, weight_decay=0.1, clip=1.0, schedule="cosine", steps=10, warmup=2).build()
    base, state = init_state(start(), optimizer, jax.random.key(0))
    step = make_step(classify(MODEL), full(), optimizer)
    losses = []
    for batch in [*Loader(dataset(), 8).epoch(0), *Loader(dataset(), 8).epoch(1)]:
        state, metrics = step(base, state, batch)
        losses.append(float(metrics["loss"][0] / metrics["loss"][1]))
    np.testing.assert_allclose(losses, GOLDEN, rtol=1e-4)


@pytest.mark.slow
def test_digits_are_learnt_in_seconds():
    digits = load_digits()
    first, second = split_fraction(digits["label"], 0.2)
    model = CNN(padding="SAME")
    start = full().init(jax.random.key(0), jax.jit(model.init)(jax.random.key(0), digits["image"][:1])["params"], {})
    data = Loader(select(digits, first), 32)
    held_out = Loader(select(digits, second), 128, shuffle=False, remainder="pad")
    optimizer = Optimizer("adamw", 2e-3, schedule="cosine", steps=6 * data.steps, warmup=5).build()
    job = Task(classify(model), full(), optimizer, data, (classify(model, train=False), held_out))
    assert fit(job, start, jax.random.key(0), quiet(epochs=6)).history[-1]["val_accuracy"] > 0.95


def test_one_trace_for_many_steps_and_the_base_survives():
    traces = 0

    def counted(*arguments):
        nonlocal traces
        traces += 1
        return classify(MODEL)(*arguments)

    transform = lora(rank=2)
    job = task(transform)._replace(objective=counted)
    split = start(transform)
    before = bits(split)
    fitted = fit(job, split, jax.random.key(0), quiet())
    assert fitted.history[-1]["step"] == 15
    assert traces == 1
    assert bits(split) == before
    assert all(a is b for a, b in zip(jax.tree.leaves(fitted.split.params), jax.tree.leaves(split.params), strict=True))
    assert bits(fitted.split.train) != bits(split.train)


def test_lora_learns_and_the_frozen_part_is_the_callers():
    transform = lora(rank=2)
    history = fit(task(transform), start(transform), jax.random.key(0), quiet(epochs=6)).history
    assert history[-1]["val_loss"] < history[0]["val_loss"]


@pytest.mark.slow
def test_a_quantised_base_trains_and_resumes_to_the_same_bits(tmp_path):
    transform = chain(quantize("int4", group=2), lora(rank=2, dropout=0.5), bitfit())
    one = fit(task(transform), start(transform), jax.random.key(0), quiet(epochs=2))
    fit(task(transform), start(transform), jax.random.key(0), quiet(epochs=1, workdir=tmp_path))
    two = fit(task(transform), start(transform), jax.random.key(0), quiet(epochs=2, workdir=tmp_path, resume=True))
    assert bits(two.state) == bits(one.state)
    assert bits(two.split.params) == bits(start(transform).params)


@pytest.mark.slow
def test_a_vmap_over_seeds_is_each_seed_alone():
    job = task()
    step = step_fn(job.objective, job.transform, job.optimizer)
    keys = jax.random.split(jax.random.key(0), 3)
    base, states = init_state(start(), job.optimizer, keys[0])
    states = jax.vmap(lambda key: states._replace(key=key))(keys)
    many, single = jax.jit(jax.vmap(step, in_axes=(None, 0, None))), jax.jit(step)
    batch = next(iter(job.data.epoch(0)))
    for _ in range(2):
        states, metrics = many(base, states, batch)
    assert metrics["loss"][0].shape == (3,)
    alone = init_state(start(), job.optimizer, keys[1])[1]
    for _ in range(2):
        alone, _ = single(base, alone, batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-6), states.split.train, alone.split.train
    )


def test_history_counts_each_example_once_and_is_on_disk(tmp_path):
    fitted = fit(task(remainder="pad", batch_size=16), start(), jax.random.key(0), quiet(workdir=tmp_path, epochs=2))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == fitted.history
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 3), (2, 6)]
    exact = classify(MODEL, train=False)(trained(fitted), {}, dataset(13), None)
    np.testing.assert_allclose(lines[-1]["val_loss"], exact[0], rtol=1e-5)
    assert round(lines[-1]["accuracy"] * 40, 6) % 1 == 0


def trained(fitted):
    return full().apply(fitted.split)


class Boom(Exception):
    """Stands for a kill."""


def boom():
    raise Boom


def broken_after(data, batches, act=boom):
    """A loader that acts before it gives the batch that comes after so many."""

    class Broken(Loader):
        given = 0

        def stream(self, position, epochs):
            for batch in super().stream(position, epochs):
                if Broken.given == batches:
                    act()
                Broken.given += 1
                yield batch

    return Broken(**{field.name: getattr(data, field.name) for field in dataclasses.fields(data)})


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Most tests here compile the same few programs."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    before = {name: jax.config.values[name] for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.parametrize(
    ("number", "ends"),
    [pytest.param(signal.SIGINT, KeyboardInterrupt, marks=pytest.mark.slow), (signal.SIGTERM, SystemExit)],
)
@pytest.mark.parametrize("batches", [pytest.param(7, marks=pytest.mark.slow), 10])
def test_a_signal_saves_the_state_in_mid_epoch(tmp_path, whole, number, ends, batches):
    job = task()
    data = broken_after(job.data, batches - 1, lambda: signal.raise_signal(number))
    with pytest.raises(ends):
        fit(job._replace(data=data), start(), jax.random.key(0), quiet(workdir=tmp_path, ahead=0))
    assert checkpoint.latest(tmp_path / "checkpoints") == batches
    resumed = fit(job, start(), jax.random.key(0), quiet(workdir=tmp_path, resume=True))
    assert bits(resumed.state) == bits(whole.state)
    assert untimed(resumed.history) == untimed(whole.history)


@pytest.fixture(scope="module")
def whole():
    """A run that nobody has disturbed."""
    return fit(task(), start(), jax.random.key(0), quiet())


@pytest.mark.parametrize(
    "batches", [pytest.param(2, marks=pytest.mark.slow), 5, pytest.param(8, marks=pytest.mark.slow)]
)
def test_resumed_runs_end_in_the_same_bits(tmp_path, whole, batches):
    job = task()
    with pytest.raises(Boom):
        fit(
            job._replace(data=broken_after(job.data, batches)),
            start(),
            jax.random.key(0),
            quiet(workdir=tmp_path / "cut"),
        )
    resumed = fit(job, start(), jax.random.key(0), quiet(workdir=tmp_path / "cut", resume=True))
    assert bits(resumed.state) == bits(whole.state)
    assert untimed(resumed.history) == untimed(whole.history)
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert untimed(lines) == untimed(whole.history)


def test_resuming_a_finished_run_changes_nothing_and_more_epochs_go_on(tmp_path, whole):
    first = fit(task(), start(), jax.random.key(0), quiet(workdir=tmp_path, epochs=2))
    again = fit(task(), start(), jax.random.key(0), quiet(workdir=tmp_path, epochs=2, resume=True))
    assert bits(again.state) == bits(first.state)
    assert again.history == first.history
    more = fit(task(), start(), jax.random.key(0), quiet(workdir=tmp_path, epochs=3, resume=True))
    assert bits(more.state) == bits(whole.state)


def test_how_often_one_looks_changes_no_bit(whole):
    often = fit(task(), start(), jax.random.key(0), quiet(log_every=1))
    assert bits(often.state) == bits(whole.state)
    assert untimed(often.history) == untimed(whole.history)


def test_a_folder_of_another_run_is_refused(tmp_path):
    fit(task(), start(), jax.random.key(0), quiet(workdir=tmp_path, epochs=1))
    with pytest.raises(UserError, match="holds a run already"):
        fit(task(), start(), jax.random.key(0), quiet(workdir=tmp_path))
    again = quiet(workdir=tmp_path, resume=True)
    with pytest.raises(UserError, match="its batch_size was 8, now 4"):
        fit(task(batch_size=4), start(), jax.random.key(0), again)
    with pytest.raises(UserError, match="its key was"):
        fit(task(), start(), jax.random.key(9), again)
    other = start()._replace(train=jax.tree.map(lambda leaf: leaf + 1, start().train))
    with pytest.raises(UserError, match="its first train was"):
        fit(task(), other, jax.random.key(0), again)
    with pytest.raises(UserError, match="resume needs the workdir"):
        fit(task(), start(), jax.random.key(0), quiet(resume=True))


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(tmp_path):
    job = task(optimizer=Optimizer("sgd", 1e30).build())
    with pytest.raises(UserError, match=r"training stops at step 2 \(epoch 1, batch 2\): the loss is nan"):
        fit(job, start(), jax.random.key(0), quiet(workdir=tmp_path))
    assert checkpoint.latest(tmp_path / "checkpoints") is None


def test_vars_are_carried_through_the_run():
    class Counter(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(3)(nn.BatchNorm(use_running_average=not train, momentum=0.5)(x))

    model = Counter()
    variables = model.init(jax.random.key(0), jnp.ones((1, 6)))
    job = task()._replace(objective=classify(model), validation=(classify(model, train=False), Loader(dataset(), 8)))
    rest = {"batch_stats": variables["batch_stats"]}
    split = full().init(jax.random.key(0), variables["params"], {})
    fitted = fit(job, split, jax.random.key(0), quiet(epochs=2), rest)
    mean = fitted.vars["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, dataset()["image"].mean(0), atol=0.3)
    assert float(jnp.abs(rest["batch_stats"]["BatchNorm_0"]["mean"]).max()) == 0


def test_a_transform_sees_its_gradients_and_the_step():
    def update(split, grads, step):
        return split._replace(state={"norm": optax.tree.norm(grads), "step": step})

    base_of = full()
    watched = Transform(
        "watched",
        lambda key, params, uses: base_of.init(key, params, uses)._replace(
            state={"norm": jnp.zeros(()), "step": jnp.zeros((), jnp.int32)}
        ),
        lambda split, key=None: base_of.apply(split._replace(state={}), key),
        update,
    )
    fitted = fit(task(watched), start(watched), jax.random.key(0), quiet(epochs=1))
    assert int(fitted.split.state["step"]) == 4
    assert float(fitted.split.state["norm"]) > 0


def test_a_transform_that_changes_the_frozen_base_is_an_error():
    def init(key, params, uses):
        return Split(params, {"w": jnp.ones(())}, {})

    moving = Transform(
        "moving",
        init,
        lambda split, key=None: jax.tree.map(lambda leaf: leaf * split.train["w"], split.params),
        lambda split, grads, step: split._replace(params=jax.tree.map(lambda leaf: leaf + 1, split.params)),
    )
    with pytest.raises(UserError, match="moving: update"):
        fit(task(moving), start(moving), jax.random.key(0), quiet())


def test_an_objective_of_ones_own_needs_no_labels():
    def objective(params, variables, batch, key):
        loss = ((batch["image"] @ params["w"]) ** 2).mean()
        return loss, Aux({"loss": (loss, jnp.float32(1))}, variables)

    split = full().init(jax.random.key(0), {"w": jnp.ones(6)}, {})
    job = Task(objective, full(), optax.sgd(1e-2), Loader({"image": dataset()["image"]}, 8))
    history = fit(job, split, jax.random.key(0), quiet()).history
    assert history[-1]["loss"] < history[0]["loss"]

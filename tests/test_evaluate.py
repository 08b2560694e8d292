"""Evaluation: padding never counts, predictions and outputs keep the dataset's order."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import precision_recall_fscore_support

from jaxbig import full
from jaxbig.data import Loader
from jaxbig.errors import UserError
from jaxbig.evaluate import collect, evaluate, predict
from jaxbig.metrics import auc, classification_report
from jaxbig.objective import Aux, classify
from jaxbig.step import init_state, measure_fn, step_fn
from jaxbig.train import Run, Task, fit

RNG = np.random.default_rng(0)
ARRAYS = {"image": RNG.normal(size=(11, 4)).astype(np.float32), "label": RNG.integers(0, 3, 11)}
PARAMS = {"kernel": jnp.array(RNG.normal(size=(4, 3)), jnp.float32), "bias": jnp.zeros(3)}


def apply(params, x):
    return nn.Dense(3).apply({"params": params}, x)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 16])
def test_metrics_do_not_depend_on_the_batch_size(batch_size):
    found = evaluate(classify(nn.Dense(3), train=False), PARAMS, Loader(ARRAYS, batch_size, remainder="pad"))
    logits = ARRAYS["image"] @ np.asarray(PARAMS["kernel"])
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == ARRAYS["label"]).mean())
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert found["loss"] == pytest.approx(-log_p[np.arange(11), ARRAYS["label"]].mean(), rel=1e-5)


@pytest.mark.parametrize("shuffle", [False, True])
def test_predictions_come_in_the_order_of_the_dataset(shuffle):
    logits = predict(apply, PARAMS, Loader(ARRAYS, 4, shuffle=shuffle, remainder="pad"))
    np.testing.assert_allclose(logits, ARRAYS["image"] @ np.asarray(PARAMS["kernel"]), rtol=1e-4, atol=1e-6)


def test_one_shape_means_one_trace():
    traces = []

    def counted(params, x):
        traces.append(x.shape)
        return apply(params, x)

    predict(counted, PARAMS, Loader(ARRAYS, 4, remainder="pad"))
    assert traces == [(4, 4)]


@pytest.mark.parametrize("batch_size", [1, 4, 11])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_report_sees_the_whole_set_in_its_order(batch_size, shuffle):
    seen = {}

    def report(outputs):
        seen.update(outputs)
        return classification_report(outputs["label"], outputs["logits"], only=["f1", "auc"]) | {"loss": -1.0}

    objective = classify(nn.Dense(3), train=False, confusion=True)
    data = Loader(ARRAYS, batch_size, shuffle=shuffle, remainder="pad")
    found = evaluate(objective, PARAMS, data, report=report)
    logits = ARRAYS["image"] @ np.asarray(PARAMS["kernel"])
    np.testing.assert_array_equal(seen["label"], ARRAYS["label"])
    np.testing.assert_allclose(seen["logits"], logits, rtol=1e-4, atol=1e-6)
    assert list(found) == ["loss", "accuracy", "f1", "precision", "recall", "auc"]
    assert found["loss"] == -1.0
    assert found["auc"] == pytest.approx(auc(ARRAYS["label"], logits))
    sums = evaluate(objective, PARAMS, data)
    options = {"average": "macro", "zero_division": 0.0}
    expected = precision_recall_fscore_support(ARRAYS["label"], logits.argmax(1), **options)[:3]
    assert (sums["precision"], sums["recall"], sums["f1"]) == pytest.approx(expected)
    assert sums["f1"] == pytest.approx(found["f1"])


def test_examples_that_the_dataset_masks_are_left_out():
    mask = (np.arange(12) % 3 > 0).astype(np.float32)
    arrays = {name: np.concatenate([array, array[:1]]) for name, array in ARRAYS.items()} | {"mask": mask}
    data = Loader(arrays, 4)
    found = evaluate(
        classify(nn.Dense(3), train=False),
        PARAMS,
        data,
        report=lambda o: {"n": len(o["label"]), "sum": o["label"].sum()},
    )
    assert (found["n"], found["sum"]) == (8, arrays["label"][mask == 1].sum())


def test_many_batches_outrun_what_waits_on_the_device():
    arrays = {"image": np.arange(40, dtype=np.float32)[:, None], "label": np.zeros(40, np.int32)}
    _, outputs = collect(
        lambda batch: Aux({}, {}, {"x": jnp.asarray(batch["image"])}), Loader(arrays, 2, seed=3), outputs=True
    )
    np.testing.assert_array_equal(outputs["x"][:, 0], np.arange(40))


def test_a_state_is_measured_as_its_parameters_are():
    split = full().init(jax.random.key(0), PARAMS, {})
    base, state = init_state(split, optax.sgd(0.1), jax.random.key(0))
    objective = classify(nn.Dense(3), train=False)
    data = Loader(ARRAYS, 4, remainder="pad")
    for outputs in (False, True):
        measure = jax.jit(measure_fn(objective, full(), outputs))
        totals, found = collect(lambda batch, measure=measure: measure(base, state, batch), data, outputs)
        assert totals.means() == evaluate(objective, PARAMS, data)
        assert sorted(found) == (["label", "logits"] if outputs else [])


def test_a_run_tells_precision_recall_and_f1_of_training_and_validation():
    data = Loader(ARRAYS, 4, remainder="pad")
    judged = classify(nn.Dense(3), train=False, confusion=True)
    task = Task(classify(nn.Dense(3), confusion=True), full(), optax.sgd(0.1), data, (judged, data))
    fitted = fit(task, full().init(jax.random.key(0), PARAMS, {}), jax.random.key(0), Run(epochs=2, quiet=True))
    chosen = predict(apply, full().apply(fitted.split), data).argmax(1)
    expected = precision_recall_fscore_support(ARRAYS["label"], chosen, average="macro", zero_division=0.0)[:3]
    line = fitted.history[-1]
    assert (line["val_precision"], line["val_recall"], line["val_f1"]) == pytest.approx(expected)
    assert 0 < line["precision"] < 1


def test_nothing_but_metrics_and_vars_leaves_a_training_step():
    split = full().init(jax.random.key(0), PARAMS, {})
    base, state = init_state(split, optax.sgd(0.1), jax.random.key(0))
    step = step_fn(classify(nn.Dense(3), train=False), full(), optax.sgd(0.1))
    after, metrics = jax.eval_shape(step, base, state, ARRAYS)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert {name: (total.shape, count.shape) for name, (total, count) in metrics.items()} == {
        "accuracy": ((), ()),
        "loss": ((), ()),
    }


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: evaluate(classify(nn.Dense(3)), PARAMS, Loader(ARRAYS, 4)), "leaves out 3 of 11"),
        (lambda: predict(apply, PARAMS, Loader(ARRAYS, 4)), "remainder='pad'"),
        (
            lambda: evaluate(
                classify(nn.Dense(3)), PARAMS, Loader(ARRAYS, 4, remainder="pad"), report=lambda outputs: {}
            ),
            "use train=False",
        ),
    ],
)
def test_errors_say_how_to_mend(act, words):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        act()
    assert words in str(caught.value)


def test_a_share_of_the_examples_is_not_all_of_them():
    share = Loader({"image": np.zeros((4, 2)), "label": np.zeros(4, int)}, 2, remainder="pad", process_count=2)
    for act in (lambda: predict(lambda params, x: x, {}, share), lambda: evaluate(classify(nn.Dense(2)), {}, share)):
        with pytest.raises(UserError, match="1 of 2 parts; give it process_count=1"):
            act()

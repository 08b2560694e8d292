"""DPO: against its equation in NumPy, and with the reference that the frozen base gives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbig import lora, usage
from jaxbig.data import Example, Loader, one_a_row
from jaxbig.errors import UserError
from jaxbig.evaluate import evaluate, predict
from jaxbig.gradient import gradient_fn
from jaxbig.models.llama import Llama
from jaxbig.objective import answer_log_p, prefer
from jaxbig.train import Run, Task, fit

MODEL = Llama(vocabulary=19, width=16, layers=1, heads=2, kv_heads=1, head_width=8, hidden=24, tied=True, std=0.2)
PAIRS, LENGTH = 6, 9


def texts():
    """(ids, answers) of the chosen and of the rejected answers: a prompt of 3, and 1 to 6 tokens more."""
    rng = np.random.default_rng(0)
    sides = []
    for _ in range(2):
        sizes = rng.integers(1, 7, PAIRS)
        sides.append([Example(np.r_[1, 2, i + 3, rng.integers(1, 19, n)], np.arange(n + 3) > 2) for i, n in
                      enumerate(sizes)])  # fmt: skip
    return sides


def pairs():
    rows = [one_a_row(side, LENGTH) for side in texts()]
    return {name: np.stack([each[name] for each in rows], axis=1) for name in rows[0]}


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(0), jnp.zeros((1, 4), int))["params"]


def by_hand(params):
    """log p of each answer, [PAIRS, 2], a text by itself in NumPy."""
    found = np.zeros((PAIRS, 2))
    for side, own in enumerate(texts()):
        for i, (ids, answers) in enumerate(own):
            logits = np.asarray(MODEL.apply({"params": params}, jnp.asarray(ids)[None])[0], np.float64)
            log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            found[i, side] = sum(log_p[t, ids[t + 1]] for t in range(len(ids) - 1) if answers[t + 1])
    return found


def test_the_papers_equation(params):
    other = jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(3), leaf.shape), params)
    beta, batch = 0.3, pairs()
    reference = jax.jit(answer_log_p(MODEL, chunk=4))(params, batch)
    np.testing.assert_allclose(reference, by_hand(params), rtol=1e-5)
    batch |= {"reference": reference, "weight": np.array([1, 2, 1, 0, 1, 1], np.float32)}
    loss, aux = jax.jit(prefer(MODEL, beta=beta, chunk=4, train=False))(other, {}, batch, None)
    rewards = beta * (by_hand(other) - by_hand(params))
    margin, weight = rewards[:, 0] - rewards[:, 1], batch["weight"]
    mean = lambda each: (weight * each).sum() / weight.sum()  # noqa: E731
    np.testing.assert_allclose(loss, mean(np.log1p(np.exp(-margin))), rtol=1e-4)
    expected = {"margin": margin, "chosen": rewards[:, 0], "rejected": rewards[:, 1], "accuracy": margin > 0}
    for name, each in expected.items():
        total, count = aux.metrics[name]
        np.testing.assert_allclose(total / count, mean(each), rtol=1e-3, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(aux.outputs["rewards"], rewards, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_reference_is_the_tree_with_the_adapter_off(params):
    uses = usage(lambda params, ids: MODEL.apply({"params": params}, ids), params, jnp.zeros((1, 4), int))
    technique = lora(rank=4)
    split = technique.init(jax.random.key(1), params, uses)
    given = pairs()
    loader = Loader(given, 4, shuffle=False, remainder="pad")
    given["reference"] = predict(answer_log_p(MODEL), split.params, loader, {name: name for name in given})
    data = Loader(given, 4, seed=0, remainder="pad")
    measured = prefer(MODEL, train=False)
    before = evaluate(measured, technique.apply(split), data)
    assert before["margin"] == pytest.approx(0, abs=1e-5)
    assert before["loss"] == pytest.approx(np.log(2), abs=1e-5)
    task = Task(prefer(MODEL), technique, optax.adam(1e-2), data)
    done = fit(task, split, jax.random.key(0), Run(epochs=60, quiet=True))
    after = evaluate(measured, technique.apply(done.split), data)
    assert after["accuracy"] == 1
    assert after["margin"] > 0.5
    assert after["chosen"] - after["rejected"] == pytest.approx(after["margin"], rel=1e-4)
    grads = gradient_fn(prefer(MODEL), technique)(split, {}, next(iter(data.epoch(0))), jax.random.key(0))[0]
    assert jax.tree.structure(grads) == jax.tree.structure(split.train)


def test_what_does_not_fit_is_told(params):
    batch = pairs()
    with pytest.raises(UserError, match="no 'reference' in the batch"):
        prefer(MODEL)(params, {}, batch, None)
    with pytest.raises(UserError, match=r"reference \(6,\) for 6 pairs; give \[B, 2\]"):
        prefer(MODEL)(params, {}, batch | {"reference": np.zeros(6)}, None)
    with pytest.raises(UserError, match=r"ids is \(6, 9\); give \[B, 2, T\]"):
        answer_log_p(MODEL)(params, batch | {"ids": batch["ids"][:, 0]})
    with pytest.raises(UserError, match="beta=0"):
        prefer(MODEL, beta=0)

"""Classification: the loss against its equation and torch, masks, mutable collections, dropout keys."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.errors import UserError
from jaxbig.objective import classify, cross_entropy

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 4)).astype(np.float32) * 3
LABELS = RNG.integers(0, 4, 6)
BATCH = {"image": RNG.normal(size=(6, 4)).astype(np.float32), "label": LABELS}


class Noisy(nn.Module):
    """A module with running statistics and dropout."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        return nn.Dense(4)(nn.Dropout(0.5, deterministic=not train)(x))


class Other(nn.Module):
    """The same flag under flax's other name."""

    @nn.compact
    def __call__(self, x, deterministic=True):
        return nn.Dropout(0.5, deterministic=deterministic)(x)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_its_equation(smoothing):
    z = LOGITS.astype(np.float64)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    q = (1 - smoothing) * np.eye(4)[LABELS] + smoothing / 4
    np.testing.assert_allclose(cross_entropy(jnp.array(LOGITS), LABELS, smoothing), -(q * log_p).sum(1), rtol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(smoothing):
    torch = pytest.importorskip("torch")
    loss = torch.nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="none")
    expected = loss(torch.tensor(LOGITS), torch.tensor(LABELS)).numpy()
    np.testing.assert_allclose(cross_entropy(jnp.array(LOGITS), LABELS, smoothing), expected, rtol=1e-5)


def test_masked_examples_count_nowhere():
    module = nn.Dense(4)
    params = module.init(jax.random.key(0), BATCH["image"])["params"]
    objective = jax.jit(jax.value_and_grad(classify(module), has_aux=True), static_argnums=3)
    padded = {name: np.concatenate([value, value[:2] * 0 + 3]) for name, value in BATCH.items()}
    padded["mask"] = np.array([1] * 6 + [0] * 2, np.float32)
    (loss, aux), grads = objective(params, {}, BATCH, None)
    (loss_padded, aux_padded), grads_padded = objective(params, {}, padded, None)
    np.testing.assert_allclose(loss_padded, loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), grads_padded, grads)
    assert float(aux_padded.metrics["accuracy"][1]) == 6 == float(aux.metrics["loss"][1])
    empty, aux = classify(module)(params, {}, {**BATCH, "mask": np.zeros(6)}, None)
    assert float(empty) == 0.0
    assert float(aux.metrics["loss"][1]) == 0.0


def test_weights_weigh():
    params = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
    batch = {"image": LOGITS, "label": LABELS, "weight": np.array([3, 0, 0, 0, 0, 1.0])}
    each = cross_entropy(jnp.array(LOGITS), LABELS)
    loss, _ = classify(nn.Dense(4))(params, {}, batch, None)
    np.testing.assert_allclose(loss, (3 * each[0] + each[5]) / 4, rtol=1e-6)


def test_statistics_move_in_training_only_and_dropout_follows_the_key():
    module = Noisy()
    variables = module.init(jax.random.key(0), BATCH["image"])
    params, rest = variables["params"], {"batch_stats": variables["batch_stats"]}
    _, aux = classify(module)(params, rest, BATCH, jax.random.key(1))
    mean = aux.vars["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, 0.5 * BATCH["image"].mean(0), rtol=1e-5, atol=1e-6)
    losses = [float(classify(module)(params, rest, BATCH, jax.random.key(seed))[0]) for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    _, still = classify(module, train=False)(params, rest, BATCH, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, still.vars, rest)


def test_the_flag_called_deterministic_is_set_too():
    loss = [float(classify(Other(), train=train)({}, {}, BATCH, jax.random.key(0))[0]) for train in (True, False)]
    np.testing.assert_allclose(loss[1], cross_entropy(jnp.array(BATCH["image"]), LABELS).mean(), rtol=1e-6)
    assert loss[0] != loss[1]


def test_smoothing_out_of_range_is_an_error():
    with pytest.raises(UserError, match="between 0 and 1"):
        classify(nn.Dense(2), smoothing=2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_labels_are_their_equation_and_one_hot_ones_the_hard_labels(smoothing):
    p = RNG.dirichlet(np.ones(4), 6).astype(np.float32)
    z = LOGITS.astype(np.float64)
    q = (1 - smoothing) * p + smoothing / 4
    expected = -(q * (z - np.log(np.exp(z).sum(1, keepdims=True)))).sum(1)
    np.testing.assert_allclose(cross_entropy(jnp.array(LOGITS), p, smoothing), expected, rtol=1e-5)
    params = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
    soft = {**BATCH, "label": np.eye(4, dtype=np.float32)[LABELS]}
    ours, theirs = (classify(nn.Dense(4), smoothing=smoothing)(params, {}, batch, None) for batch in (soft, BATCH))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    assert float(ours[1].metrics["accuracy"][0]) == float(theirs[1].metrics["accuracy"][0])

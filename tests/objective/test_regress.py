"""Regression: losses against their equations and torch, sums over batches against scikit-learn."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from jaxbig.data import Loader
from jaxbig.errors import UserError
from jaxbig.evaluate import evaluate
from jaxbig.objective import regress

RNG = np.random.default_rng(0)
X = RNG.normal(size=(23, 3)).astype(np.float32)
Y = RNG.normal(size=(23, 2)).astype(np.float32) * 2 + 1
KERNEL = RNG.normal(size=(3, 2)).astype(np.float32)
PARAMS = {"kernel": jnp.array(KERNEL), "bias": jnp.zeros(2)}
RHO = {
    "mse": np.square,
    "mae": np.abs,
    "huber": lambda e: np.where(np.abs(e) <= 0.7, e**2 / 2, 0.7 * (np.abs(e) - 0.35)),
}


@pytest.mark.parametrize("loss", RHO)
def test_the_loss_is_its_equation_with_masks_and_weights(loss):
    weight, mask = RNG.uniform(size=23), np.arange(23) % 3 > 0
    batch = {"image": X, "label": Y, "weight": weight, "mask": mask}
    found, aux = regress(nn.Dense(2), loss=loss, delta=0.7)(PARAMS, {}, batch, None)
    expected = np.average(RHO[loss](X.astype(np.float64) @ KERNEL - Y).mean(1), weights=weight * mask)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert aux.outputs is None


@pytest.mark.parity
@pytest.mark.parametrize("loss", RHO)
def test_loss_and_gradient_are_torchs(loss):
    torch = pytest.importorskip("torch")
    losses = {"mse": torch.nn.MSELoss(), "mae": torch.nn.L1Loss(), "huber": torch.nn.HuberLoss(delta=0.7)}
    kernel = torch.tensor(KERNEL, requires_grad=True)
    expected = losses[loss](torch.tensor(X) @ kernel, torch.tensor(Y))
    expected.backward()
    objective = regress(nn.Dense(2), loss=loss, delta=0.7)
    value, grad = jax.value_and_grad(lambda p: objective(p, {}, {"image": X, "label": Y}, None)[0])(PARAMS)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(grad["kernel"], kernel.grad.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 5, 23])
def test_sums_over_batches_are_scikit_learns(batch_size):
    arrays = {"image": X, "label": Y, "weight": RNG.integers(1, 4, 23).astype(np.float32)}
    data = Loader(arrays, batch_size, remainder="pad")
    found = evaluate(
        regress(nn.Dense(2), train=False), PARAMS, data, report=lambda outputs: {"n": len(outputs["label"])}
    )
    y, weights = X.astype(np.float64) @ KERNEL, arrays["weight"]
    assert found["mse"] == pytest.approx(mean_squared_error(Y, y, sample_weight=weights), rel=1e-5)
    assert found["mae"] == pytest.approx(mean_absolute_error(Y, y, sample_weight=weights), rel=1e-5)
    assert found["r2"] == pytest.approx(r2_score(Y, y, sample_weight=weights), rel=1e-4)
    assert found["loss"] == found["mse"]
    assert found["n"] == 23


def test_far_from_zero_r2_needs_a_center_and_without_one_says_nan():
    far = {"image": X, "label": Y[:, :1] + 10_000}
    params = {"kernel": jnp.array(KERNEL[:, :1]), "bias": jnp.full(1, 10_000.0)}
    data = Loader(far, 8, remainder="pad")
    expected = r2_score(far["label"].astype(np.float64), X.astype(np.float64) @ KERNEL[:, :1] + 10_000)
    centred = evaluate(regress(nn.Dense(1), center=10_000.0, train=False), params, data)
    assert centred["r2"] == pytest.approx(expected, rel=1e-3)  # float32 keeps targets of 1e4 to 1e-3
    assert np.isnan(evaluate(regress(nn.Dense(1), train=False), params, data)["r2"])


@pytest.mark.parametrize("shape", [(23,), (23, 1)])
def test_one_column_and_none_are_one_thing(shape):
    params = {"kernel": PARAMS["kernel"][:, :1], "bias": jnp.zeros(1)}
    batch = {"image": X, "label": Y[:, 0].reshape(shape)}
    loss, aux = regress(nn.Dense(1), train=False)(params, {}, batch, None)
    np.testing.assert_allclose(loss, ((X @ KERNEL[:, 0] - Y[:, 0]) ** 2).mean(), rtol=1e-5)
    assert aux.outputs["prediction"].shape == aux.outputs["label"].shape == shape


@pytest.mark.parametrize(
    ("options", "label", "words"),
    [
        ({"loss": "rmse"}, Y, "loss='rmse'"),
        ({"delta": 0.0}, Y, "delta=0.0"),
        ({}, Y[:, :1], r"predictions \(23, 2\) and targets \(23, 1\)"),
    ],
)
def test_what_does_not_fit_is_an_error(options, label, words):
    with pytest.raises(UserError, match=words):
        regress(nn.Dense(2), **options)(PARAMS, {}, {"image": X, "label": label}, None)

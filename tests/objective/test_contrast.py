"""Contrastive losses: their equations in NumPy, torch's gradient, padding that is no alternative, the objective."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.errors import UserError
from jaxbig.objective import contrast, info_nce, pairwise_sigmoid

RNG = np.random.default_rng(3)
LOGITS = RNG.normal(size=(5, 5)).astype(np.float32) * 3
THERE = np.array([1, 1, 0, 1, 0], bool)


def softmax_by_hand(z):
    z = z.astype(np.float64)
    rows = [-np.log(np.exp(z[i, i]) / np.exp(z[i]).sum()) for i in range(len(z))]
    columns = [-np.log(np.exp(z[i, i]) / np.exp(z[:, i]).sum()) for i in range(len(z))]
    return (np.array(rows) + np.array(columns)) / 2


def sigmoid_by_hand(z):
    y = 2 * np.eye(len(z)) - 1
    each = np.log(1 + np.exp(-y * z.astype(np.float64)))
    return (each.sum(0) + each.sum(1)) / 2


LOSSES = {"softmax": (info_nce, softmax_by_hand), "sigmoid": (pairwise_sigmoid, sigmoid_by_hand)}


class Given(nn.Module):
    """The logits that are given, times a parameter."""

    @nn.compact
    def __call__(self, logits):
        return logits * self.param("scale", nn.initializers.ones, ())


@pytest.mark.parametrize(("loss", "by_hand"), LOSSES.values(), ids=LOSSES)
def test_it_is_its_equation_and_what_is_not_there_counts_for_nothing(loss, by_hand):
    np.testing.assert_allclose(loss(jnp.asarray(LOGITS)), by_hand(LOGITS), rtol=1e-5, atol=1e-6)
    found = loss(jnp.asarray(LOGITS), jnp.asarray(THERE))
    np.testing.assert_allclose(found[THERE], by_hand(LOGITS[np.ix_(THERE, THERE)]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[~THERE], 0)
    grad = jax.grad(lambda z: loss(z, jnp.asarray(THERE)).sum())(jnp.asarray(LOGITS))
    assert np.isfinite(grad).all()
    np.testing.assert_array_equal(grad[~THERE], 0)
    np.testing.assert_array_equal(grad[:, ~THERE], 0)


@pytest.mark.parity
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_are_transformers(torch, name):
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    loss, _ = LOSSES[name]
    z = torch.tensor(LOGITS, requires_grad=True)
    if name == "softmax":
        expected = image_text_contrastive_loss(z)
    else:  # as SiglipModel computes it
        sign = 2 * torch.eye(len(z)) - 1
        expected = -torch.nn.functional.logsigmoid(sign * z).sum(-1).mean()
    expected.backward()
    found, grad = jax.value_and_grad(lambda z: loss(z).mean())(jnp.asarray(LOGITS))
    np.testing.assert_allclose(found, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(grad, z.grad.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_objective_weighs_masks_and_counts(name):
    by_hand = LOSSES[name][1]
    weight = np.array([1, 2, 3, 0.5, 1], np.float32)
    batch = {"z": LOGITS, "mask": THERE.astype(np.float32), "weight": weight}
    value, aux = contrast(Given(), loss=name, inputs="z")({"scale": jnp.ones(())}, {}, batch, None)
    small, its = LOGITS[np.ix_(THERE, THERE)], weight[THERE]
    np.testing.assert_allclose(value, (its * by_hand(small)).sum() / its.sum(), rtol=1e-5)
    for metric, axis in (("row_accuracy", 1), ("column_accuracy", 0)):
        total, count = aux.metrics[metric]
        assert float(total) == (its * (small.argmax(axis) == np.arange(len(small)))).sum()
        assert float(count) == its.sum()
    empty = contrast(Given(), loss=name, inputs="z")
    nothing = {"z": LOGITS, "mask": np.zeros(5, np.float32)}
    value, grad = jax.value_and_grad(lambda p: empty(p, {}, nothing, None)[0])({"scale": jnp.ones(())})
    assert float(value) == float(grad["scale"]) == 0


def test_misuse_is_told():
    with pytest.raises(UserError, match="use one of softmax, sigmoid"):
        contrast(Given(), loss="triplet")
    for loss, _ in LOSSES.values():
        with pytest.raises(UserError, match=r"logits \(2, 3\)"):
            loss(jnp.ones((2, 3)))

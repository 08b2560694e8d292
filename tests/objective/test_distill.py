"""Distillation: the divergence against its equation and torch, the mix, no gradient for the teacher."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.errors import UserError
from jaxbig.objective import classify, cross_entropy, distill, soft_cross_entropy

RNG = np.random.default_rng(1)
TEACHER, STUDENT = (RNG.normal(size=(5, 3)).astype(np.float32) * 2 for _ in range(2))
LABELS = RNG.integers(0, 3, 5)
IDENTITY = {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}
PARAMS = {"teacher": {"kernel": jnp.eye(3) * 2, "bias": jnp.arange(3.0)}, "student": IDENTITY}
BATCH = {"image": STUDENT, "label": LABELS}


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_cross_entropy_is_its_equation(temperature):
    p, q = (np.exp(z / temperature) for z in (TEACHER.astype(np.float64), STUDENT.astype(np.float64)))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    expected = temperature**2 * (p * np.log(p / q)).sum(1)
    np.testing.assert_allclose(soft_cross_entropy(TEACHER, STUDENT, temperature), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 1.0), (4.0, 0.3)])
def test_loss_and_gradient_are_torchs(temperature, alpha):
    torch = pytest.importorskip("torch")
    module = nn.Dense(3)
    loss, grad = jax.value_and_grad(
        lambda p: distill(module, module, temperature=temperature, alpha=alpha)(p, {}, BATCH, None)[0]
    )(PARAMS)
    x, kernel = torch.tensor(STUDENT), torch.eye(3, requires_grad=True)
    teacher = x @ (2 * torch.eye(3)) + torch.arange(3.0)
    soft = torch.nn.KLDivLoss(reduction="batchmean", log_target=True)(
        torch.log_softmax(x @ kernel / temperature, -1), torch.log_softmax(teacher / temperature, -1)
    )
    hard = torch.nn.CrossEntropyLoss()(x @ kernel, torch.tensor(LABELS))
    expected = alpha * temperature**2 * soft + (1 - alpha) * hard
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(grad["student"]["kernel"], kernel.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_alpha_mixes_soft_and_hard_and_the_teacher_gets_no_gradient():
    module = nn.Dense(3)
    value = jax.value_and_grad(lambda p, alpha: distill(module, module, alpha=alpha)(p, {}, BATCH, None)[0])
    (soft, _), (hard, _), (mixed, grad) = (value(PARAMS, alpha) for alpha in (1.0, 0.0, 0.25))
    np.testing.assert_allclose(mixed, 0.25 * soft + 0.75 * hard, rtol=1e-6)
    np.testing.assert_allclose(hard, classify(module)(IDENTITY, {}, BATCH, None)[0], rtol=1e-6)
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(grad["teacher"]))
    assert float(jnp.abs(grad["student"]["kernel"]).max()) > 0


def test_metrics_are_masked_and_labels_may_be_absent_with_alpha_one():
    module = nn.Dense(3)
    batch = {"image": STUDENT, "mask": np.array([1, 1, 0, 0, 0.0])}
    _, aux = distill(module, module, alpha=1.0)(PARAMS, {}, batch, None)
    same = (STUDENT @ (2 * np.eye(3)) + np.arange(3)).argmax(1) == STUDENT.argmax(1)
    assert float(aux.metrics["agreement"][0]) == same[:2].sum() == float(aux.metrics["accuracy"][0])
    assert {float(count) for _, count in aux.metrics.values()} == {2.0}


def test_hard_loss_is_the_students_cross_entropy():
    _, aux = distill(nn.Dense(3), nn.Dense(3))(PARAMS, {}, BATCH, None)
    total, count = aux.metrics["hard_loss"]
    np.testing.assert_allclose(total / count, cross_entropy(jnp.array(STUDENT), LABELS).mean(), rtol=1e-6)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"alpha": 1.5}])
def test_options_out_of_range_are_errors(options):
    with pytest.raises(UserError, match="temperature > 0 and alpha"):
        distill(nn.Dense(3), nn.Dense(3), **options)


def test_different_classes_are_an_error():
    params = PARAMS | {"student": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}
    with pytest.raises(UserError, match="must agree"):
        distill(nn.Dense(3), nn.Dense(2))(params, {}, BATCH, None)

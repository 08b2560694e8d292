"""Classification: the loss against its equation and torch, masks, mutable collections, dropout keys."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

from jaxbig.errors import UserError
from jaxbig.objective import classify, cross_entropy
from jaxbig.objective.classify import classification_metrics

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 4)).astype(np.float32) * 3
LABELS = RNG.integers(0, 4, 6)
BATCH = {"image": RNG.normal(size=(6, 4)).astype(np.float32), "label": LABELS}
WEIGHTS = [0.2, 1.0, 3.0, 0.7]
SOFT = RNG.dirichlet(np.ones(4), 6).astype(np.float32)


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


class Squeezed(nn.Module):
    """One number an example."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(x)[:, 0]


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
def test_soft_labels_and_class_weights_are_the_equation(smoothing):
    log_p = LOGITS - np.log(np.exp(LOGITS.astype(np.float64)).sum(1, keepdims=True))
    for labels, p in ((LABELS, np.eye(4)[LABELS]), (SOFT, SOFT)):
        q = (1 - smoothing) * p + smoothing / 4
        for weights, c in ((None, 1.0), (WEIGHTS, np.array(WEIGHTS))):
            found = cross_entropy(jnp.array(LOGITS), jnp.array(labels), smoothing, weights)
            np.testing.assert_allclose(found, -(c * q * log_p).sum(1), rtol=1e-5)


def test_one_hot_labels_are_the_integers():
    params = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
    hard = {"image": LOGITS, "label": LABELS, "weight": np.array([1, 2, 0, 1, 1, 3.0])}
    soft = hard | {"label": np.eye(4, dtype=np.float32)[LABELS]}
    objective = classify(nn.Dense(4), smoothing=0.1, class_weights=WEIGHTS, top_k=(2,), confusion=True)
    (a, aux_a), (b, aux_b) = (objective(params, {}, batch, None) for batch in (hard, soft))
    np.testing.assert_allclose(a, b, rtol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), aux_a.metrics, aux_b.metrics)


@pytest.mark.parity
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_normalise_as_torchs(smoothing):
    torch = pytest.importorskip("torch")
    weight, kernel = torch.tensor(WEIGHTS), torch.eye(4, requires_grad=True)
    criterion = torch.nn.CrossEntropyLoss(weight, label_smoothing=smoothing)
    expected = criterion(torch.tensor(LOGITS) @ kernel, torch.tensor(LABELS))
    expected.backward()
    objective = classify(nn.Dense(4), smoothing=smoothing, class_weights=WEIGHTS)
    batch = {"image": LOGITS, "label": LABELS}
    params = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
    loss, grad = jax.value_and_grad(lambda params: objective(params, {}, batch, None)[0])(params)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(grad["kernel"], kernel.grad.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parity
def test_soft_labels_are_torchs():
    torch = pytest.importorskip("torch")
    expected = torch.nn.CrossEntropyLoss(torch.tensor(WEIGHTS), reduction="none")(
        torch.tensor(LOGITS), torch.tensor(SOFT)
    )
    np.testing.assert_allclose(cross_entropy(jnp.array(LOGITS), SOFT, 0.0, WEIGHTS), expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_top_k_is_scikit_learns_with_ties(k):
    rng = np.random.default_rng(k)
    logits, labels = rng.integers(0, 3, (60, 4)).astype(np.float32), rng.integers(0, 4, 60)
    weights = rng.integers(0, 3, 60).astype(np.float32)
    metrics = classification_metrics(jnp.array(logits), jnp.array(labels), jnp.array(weights), top_k=(k,))
    # Of equal scores scikit-learn takes the last, we the first: so it sees the classes in reverse.
    counted = weights > 0
    seen, options = logits[counted, ::-1], {"sample_weight": weights[counted], "normalize": False, "labels": range(4)}
    expected = top_k_accuracy_score(3 - labels[counted], seen, k=k, **options) if k < 4 else weights.sum()
    assert float(metrics[f"top_{k}_accuracy"][0]) == expected
    if k == 1:
        assert float(metrics["accuracy"][0]) == expected


def test_top_k_counts_no_nan_as_right():
    metrics = classification_metrics(jnp.full((1, 3), jnp.nan), jnp.array([2]), jnp.ones(1), top_k=(2,))
    assert float(metrics["top_2_accuracy"][0]) == 0


def test_the_confusion_matrix_is_scikit_learns():
    rng = np.random.default_rng(2)
    logits, labels = rng.normal(size=(40, 4)).astype(np.float32), rng.integers(0, 3, 40)
    weights = rng.integers(0, 4, 40).astype(np.float32)
    matrix, count = classification_metrics(jnp.array(logits), jnp.array(labels), jnp.array(weights), confusion=True)[
        "confusion"
    ]
    expected = confusion_matrix(labels, logits.argmax(1), labels=range(4), sample_weight=weights)
    np.testing.assert_array_equal(matrix, expected)
    assert float(count) == weights.sum()


@pytest.mark.parametrize("shape", [(8,), (8, 1)])
def test_one_output_is_a_binary_classifier(shape):
    z = np.linspace(-3, 3, 8, dtype=np.float32)
    y = np.array([0, 1, 0, 0, 1, 1, 0, 1])
    module = nn.Dense(1) if len(shape) == 2 else Squeezed()
    params = {"kernel": jnp.eye(1), "bias": jnp.zeros(1)}
    params = params if len(shape) == 2 else {"Dense_0": params}
    loss, aux = classify(module, train=False)(params, {}, {"image": z[:, None], "label": y}, None)
    p = 1 / (1 + np.exp(-z.astype(np.float64)))
    np.testing.assert_allclose(loss, -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(), rtol=1e-6)
    assert float(aux.metrics["accuracy"][0]) == ((z > 0) == y).sum()
    assert aux.outputs["logits"].shape == (8, 2)


def test_outputs_are_given_in_evaluation_only():
    params = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
    batch = {"image": LOGITS, "label": LABELS, "weight": np.ones(6)}
    assert classify(nn.Dense(4))(params, {}, batch, None)[1].outputs is None
    outputs = classify(nn.Dense(4), train=False)(params, {}, batch, None)[1].outputs
    np.testing.assert_allclose(outputs["logits"], LOGITS, rtol=1e-6)
    np.testing.assert_array_equal(outputs["label"], LABELS)
    assert sorted(outputs) == ["label", "logits", "weight"]


@pytest.mark.parametrize(
    ("options", "label", "words"),
    [
        ({"top_k": (5,)}, LABELS, "top_k has 5, but the model has 4 classes"),
        ({"class_weights": [1.0, 2.0]}, LABELS, r"class_weights \(2,\) for 4 classes"),
        ({}, LABELS[:, None], r"logits \(6, 4\) and labels \(6, 1\)"),
    ],
)
def test_what_does_not_fit_is_an_error(options, label, words):
    params = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
    with pytest.raises(UserError, match=words):
        classify(nn.Dense(4), **options)(params, {}, {"image": LOGITS, "label": label}, None)

"""Streaming moments against NumPy's, class weights against scikit-learn's."""

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight

from jaxbig.data import load_digits, mnist
from jaxbig.data.statistics import class_weights, in_order, moments, normalise
from jaxbig.errors import UserError


def test_streaming_is_the_same_as_all_at_once():
    # A mean far from zero loses all digits of the variance where sums of squares are subtracted.
    x = np.random.default_rng(0).normal([1e4, -3, 0], [1e-2, 2, 1], (1500, 4, 3))
    found = moments({"x": x}, ["x"])["x"]
    np.testing.assert_allclose(found.mean, x.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(found.std, x.std((0, 1)), rtol=1e-6)
    assert found.count == 6000
    whole = moments({"x": x}, ["x"], per="array")["x"]
    np.testing.assert_allclose([whole.mean, whole.std], [x.mean(), x.std()], rtol=1e-6)


def test_normalised_is_what_scikit_learn_makes():
    table = np.random.default_rng(0).normal(3, 5, (700, 4)).astype(np.float32)
    table[:, 2] = 7  # never varies
    train, test = {"x": table[:600], "label": np.arange(600)}, {"x": table[600:], "label": np.arange(100)}
    batch = normalise(test, by=moments(train, ["x"])).batch(np.arange(100))
    expected = StandardScaler().fit(table[:600]).transform(table[600:])
    np.testing.assert_allclose(batch["x"], expected, atol=1e-5)
    assert batch["x"].dtype == np.float32
    assert batch["label"].tolist() == list(range(100))


def test_bytes_are_normalised_without_overflow():
    images = {"image": np.array([0, 255, 255, 0], np.uint8).reshape(2, 1, 2, 1)}
    batch = normalise(images, by=moments(images, ["image"])).batch(np.array([0]))
    assert batch["image"].ravel().tolist() == [-1, 1]


def test_mnist_has_the_published_moments(real_data):
    found = moments(mnist(real_data("mnist")), ["image"])["image"]
    np.testing.assert_allclose([found.mean[0] / 255, found.std[0] / 255], [0.1307, 0.3081], atol=5e-5)


def test_class_weights_are_those_of_scikit_learn():
    labels = load_digits()["label"][:333] // 4
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(class_weights(labels), expected, rtol=1e-6)
    assert class_weights(labels)[labels].mean() == pytest.approx(1)


def test_in_order_yields_each_row_once():
    source = normalise({"x": np.arange(1030)}, {})
    assert np.concatenate([batch["x"] for batch in in_order(source)]).tolist() == list(range(1030))
    assert [batch["x"].tolist() for batch in in_order(source, np.array([3, 1]))] == [[3, 1]]


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (lambda: moments({"x": np.zeros(3)}, ["y"]), "no array 'y'; there are x"),
        (lambda: moments({"x": np.array(["a"], object)}, ["x"]), "'x' is object"),
        (lambda: moments({"x": np.array([1, np.nan])}, ["x"]), "NaN or infinity"),
        (lambda: moments({"x": np.zeros(0)}, ["x"]), "no examples"),
        (lambda: moments({"x": np.zeros(3)}, ["x"], per="row"), "per='row'"),
        (
            lambda: normalise({"x": np.zeros((3, 2))}, moments({"x": np.ones((3, 3))}, ["x"])).batch(np.array([0])),
            "2 channels, the moments 3",
        ),
        (lambda: class_weights(np.array([0, 2])), "class 1 has no examples"),
        (lambda: class_weights(np.array([0, 2]), classes=2), "label 2, but there are 2 classes"),
        (lambda: class_weights(np.array([0.5])), "float64"),
    ],
)
def test_errors_say_what_and_how_to_mend(act, word):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        act()
    assert word in str(caught.value)

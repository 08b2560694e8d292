"""A module may take several arrays of a batch: as a mapping, or one an argument."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.data import Loader
from jaxbig.errors import UserError
from jaxbig.evaluate import predict
from jaxbig.models import RNN, TabularMLP
from jaxbig.objective import classify, distill, regress

RNG = np.random.default_rng(0)
TABLE = {
    "number": RNG.normal(size=(6, 3)).astype(np.float32),
    "category": RNG.integers(0, 4, (6, 1)).astype(np.int32),
    "label": np.array([0, 1, 1, 0, 1, 0]),
}
TEXT = {"ids": RNG.integers(1, 9, (6, 5)), "length": np.array([5, 1, 3, 2, 4, 5]), "label": TABLE["label"]}
COLUMNS = {"numbers": "number", "categories": "category"}


def test_a_mapping_of_arrays_is_what_the_module_gets():
    module = TabularMLP(num_classes=2, categories=(4,), features=(4,))
    x = {theirs: TABLE[name] for theirs, name in COLUMNS.items()}
    params = module.init(jax.random.key(0), x)["params"]
    _, aux = classify(module, train=False, inputs=COLUMNS)(params, {}, TABLE, None)
    logits = module.apply({"params": params}, x)
    np.testing.assert_array_equal(aux.outputs["logits"], logits)
    loader = Loader(TABLE, 4, remainder="pad")
    found = predict(lambda params, x: module.apply({"params": params}, x), params, loader, COLUMNS)
    np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-6)


def test_a_sequence_of_names_is_one_an_argument():
    module = RNN(num_classes=2, hidden=3, cell="gru", vocabulary=9, embedding=4)
    ids, lengths = jnp.asarray(TEXT["ids"]), jnp.asarray(TEXT["length"])
    params = module.init(jax.random.key(0), ids, lengths)["params"]
    with_lengths, without = (module.apply({"params": params}, ids, length) for length in (lengths, None))
    assert not np.allclose(with_lengths, without)
    names = ("ids", "length")
    _, aux = classify(module, train=False, inputs=names)(params, {}, TEXT, None)
    np.testing.assert_allclose(aux.outputs["logits"], with_lengths, rtol=1e-6)
    both = {"teacher": params, "student": params}
    _, aux = distill(module, module, train=False, inputs=names)(both, {}, TEXT, None)
    np.testing.assert_allclose(aux.outputs["logits"], with_lengths, rtol=1e-6)
    _, aux = regress(module, train=False, inputs=names)(
        params, {}, TEXT | {"label": np.zeros((6, 2), np.float32)}, None
    )
    np.testing.assert_allclose(aux.outputs["prediction"], with_lengths, rtol=1e-6)
    loader = Loader(TEXT, 4, remainder="pad")
    found = predict(lambda params, *x: module.apply({"params": params}, *x), params, loader, names)
    np.testing.assert_allclose(found, with_lengths, rtol=1e-5, atol=1e-6)


def test_an_array_that_is_not_there_is_named():
    with pytest.raises(UserError, match="no 'image' in the batch, only category, label, number"):
        classify(nn.Dense(2))({}, {}, TABLE, None)

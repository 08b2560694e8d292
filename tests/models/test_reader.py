"""A published model as objectives call one, and texts as it reads them."""

import jax
import numpy as np
import pytest

from jaxbig.data.texts import Texts
from jaxbig.errors import UserError
from jaxbig.models.bert import Bert
from jaxbig.models.reader import Reader
from jaxbig.objective.classify import classify

BERT = Bert(9, 8, 1, 2, 16, 12, task="sequence_classification", num_classes=3)


def test_it_is_the_module_on_its_own_parameters_and_padding_changes_nothing():
    source = Texts([[2, 7, 3, 8, 3], [2, 5, 3]], (3, 8), {"label": [1, 2]}, types=[[0, 0, 0, 1, 1], [0, 0, 0]])
    batch = source.batch(np.array([0, 1]))
    assert batch["ids"].shape == (2, 8)
    np.testing.assert_array_equal(batch["types"][0], [0, 0, 0, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(batch["segments"].sum(1), [5, 3])
    params = BERT.init(jax.random.key(0), batch["ids"])["params"]
    reader = Reader(BERT, ("segments", "types"))
    arrays = batch["ids"], batch["segments"], batch["types"]
    assert jax.tree.structure(reader.init(jax.random.key(0), *arrays)["params"]) == jax.tree.structure(params)
    logits = reader.apply({"params": params}, *arrays)
    alone = BERT.apply({"params": params}, np.array([[2, 5, 3]]), types=np.zeros((1, 3), int))
    np.testing.assert_allclose(logits[1:], alone, rtol=1e-4, atol=1e-6)
    loss, aux = classify(reader, train=False, inputs=("ids", "segments", "types"))(params, {}, batch, None)
    np.testing.assert_array_equal(aux.outputs["logits"], logits)
    expected = -jax.nn.log_softmax(logits)[np.arange(2), [1, 2]].mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_arrays_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match="zip"):
        Reader(BERT, ("segments", "types")).init(jax.random.key(0), np.ones((1, 3), int), np.ones((1, 3), int))
    with pytest.raises(UserError, match="one for each token of each text"):
        Texts([[1, 2]], (4,), types=[[0]])

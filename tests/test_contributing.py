"""The technique that CONTRIBUTING.md writes does what it says, in an unedited flax model too."""

import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.lift import lift
from jaxbig.usage import usage

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def gain():
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {"__name__": "contributing"}
    exec(compile(block, "CONTRIBUTING.md", "exec"), names)  # noqa: S102 - a text of this repository
    return names["gain"]


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(5)(x)))


def test_the_written_technique_trains_its_factors(gain):
    x = jax.random.normal(jax.random.key(0), (4, 6))
    model = Model()
    params = model.init(jax.random.key(1), x)
    transform = gain()
    split = transform.init(jax.random.key(2), params, usage(model.apply, params, x))
    assert list(split.train) == ["params/Dense_0/kernel", "params/Dense_1/kernel"]
    assert transform.config == {"technique": "gain", "where": None}

    def output(train):
        return lift(model.apply, strict=True)(transform.apply(split._replace(train=train)), x)

    np.testing.assert_array_equal(output(split.train), jnp.asarray(model.apply(params, x)))
    grads = jax.grad(lambda train: jnp.sum(output(train) ** 2))(split.train)
    assert all(abs(grad) > 0 for grad in grads.values())
    train = {"params/Dense_0/kernel": jnp.array(2.0), "params/Dense_1/kernel": jnp.array(-0.5)}
    scaled = jax.tree_util.tree_map_with_path(
        lambda keys, leaf: leaf * train.get("/".join(key.key for key in keys), 1.0), params
    )
    np.testing.assert_allclose(output(train), jnp.asarray(model.apply(scaled, x)), rtol=1e-5, atol=1e-6)


def test_the_files_it_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:jaxbig|tests|docs|\.ci)/[\w/.]+)`", text):
        if "NAME" not in path:
            assert (ROOT / path).exists(), path

"""Exported files: any Weight inside, any batch size, the same bits elsewhere, and damage told in one line."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig import chain, lift, lora, prune, quantize, usage
from jaxbig.errors import UserError
from jaxbig.export import export, load, run_in_fresh_process

MODEL = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(3)])
X = np.asarray(jax.random.normal(jax.random.key(0), (5, 8)))


def fn(params, x):
    return MODEL.apply({"params": params}, x)


@pytest.fixture(scope="module")
def params():
    base = MODEL.init(jax.random.key(1), X)["params"]
    everything = chain(prune(pattern="2:4"), quantize("int4", group=4), lora(rank=2, where=".*kernel"))
    split = everything.init(jax.random.key(2), base, usage(fn, base, X))
    train = jax.tree.map(lambda leaf: leaf + 0.1, split.train)
    return everything.apply(split._replace(train=train))


def test_any_batch_size_and_a_fresh_process_give_the_same_bits(params, tmp_path):
    path = tmp_path / "deep" / "model.jaxexport"
    size = export(fn, params, jax.ShapeDtypeStruct(X.shape, X.dtype), path)
    assert path.stat().st_size == size
    model = load(path)
    for batch in (1, 5):
        np.testing.assert_array_equal(model(X[:batch]), jax.jit(lift(fn))(params, jnp.asarray(X[:batch])))
    np.testing.assert_array_equal(run_in_fresh_process(path, X), model(X))


def test_codes_stay_codes(params, tmp_path):
    """The file of a 4-bit model is smaller than its dense weights alone."""
    wide = nn.Dense(256, use_bias=False)
    base = {"kernel": jax.random.normal(jax.random.key(0), (256, 256))}
    run = lambda p, x: wide.apply({"params": p}, x)  # noqa: E731
    example = jax.ShapeDtypeStruct((1, 256), jnp.float32)
    split = quantize("int4").init(None, base, usage(run, base, jnp.ones((1, 256))))
    size = export(run, split.params, example, tmp_path / "codes")
    assert size < base["kernel"].nbytes / 4 < export(run, base, example, tmp_path / "dense")


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"PK" + data])
def test_damage_is_told(params, tmp_path, damage):
    path = tmp_path / "model.jaxexport"
    export(fn, params, jax.ShapeDtypeStruct(X.shape, X.dtype), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"model.jaxexport: is damaged"):
        load(path)(X)


def test_a_process_that_fails_says_why(params, tmp_path):
    path = tmp_path / "model.jaxexport"
    export(fn, params, jax.ShapeDtypeStruct(X.shape, X.dtype), path)
    with pytest.raises(UserError, match="does not run in a fresh process"):
        run_in_fresh_process(path, X[:, :3])

"""`Shifted`: its parts follow its axes, and nothing is rounded twice."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxbig import lift
from jaxbig.codes import encode
from jaxbig.shifted import Shifted
from jaxbig.weight import innermost, restack

RANDOM = np.random.default_rng(0)


def made(*shape):
    """Codes in groups of 4 along the last axis but one, shifted in groups of 2."""
    groups = (*shape[:-2], shape[-2] // 4, shape[-1])
    codes = encode(jnp.asarray(RANDOM.normal(size=shape), jnp.float32), "int4", False, groups, -1)
    shift = RANDOM.normal(size=(*shape[:-2], shape[-2] // 2, shape[-1])).astype(np.float32)
    return Shifted(codes, jnp.asarray(shift)), np.asarray(codes.materialise()) + np.repeat(shift, 2, -2)


def test_layers_and_rows():
    weight, value = made(3, 8, 6)
    np.testing.assert_array_equal(weight.materialise(), value)
    stacked, shared = weight.unstack()
    layer = restack(jax.tree.map(lambda part: part[1], stacked), shared)
    np.testing.assert_array_equal(layer.materialise(), value[1])
    assert layer.lookup(jnp.array([5]), -2) is NotImplemented
    assert layer.kind() == "Shifted(Quantized int4 g4)"
    assert innermost(layer) is layer.base


def test_a_scan_over_layers():
    weight, value = made(3, 8, 8)
    x = RANDOM.normal(size=(2, 8)).astype(np.float32)
    run = lift(lambda stack, x: lax.scan(lambda x, w: (x @ w, None), x, stack)[0])
    np.testing.assert_allclose(jax.jit(run)(weight, x), x @ value[0] @ value[1] @ value[2], rtol=1e-4, atol=1e-4)


def test_a_cast_keeps_the_shift_whole():
    weight, value = made(8, 6)
    half = weight.cast(jnp.bfloat16)
    assert (half.dtype, half.shift.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(half.materialise(), jnp.asarray(value).astype(jnp.bfloat16))


def test_specs_follow_the_base():
    specs = made(3, 8, 6)[0].specs(P(None, "fsdp", "model"))
    assert (specs.shift, specs.base.codes) == (P(None, "fsdp", "model"), P(None, "fsdp", "model"))

"""Techniques on models that know nothing of them: those of `user_models.py`."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from user_models import MODELS

from jaxbig.codes import Quantized
from jaxbig.compress.merge import merge
from jaxbig.compress.prune import Sparse, prune
from jaxbig.compress.quantize import quantize
from jaxbig.lift import MaterialiseWarning, lift
from jaxbig.transform import chain
from jaxbig.tree import paths
from jaxbig.tune.bitfit import bitfit
from jaxbig.tune.full import full
from jaxbig.tune.lora import lora
from jaxbig.usage import usage

TECHNIQUES = {
    "lora": lambda: lora(rank=2),
    "qlora": lambda: chain(quantize("nf4", group=4), lora(rank=2)),
    "bitfit": bitfit,
    "pruned, then trained": lambda: chain(prune(0.5), full()),
}
QUICK_TO_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
LARGER = ("seq2seq with attention", "U-Net", "MLP-mixer", "transformer with a cache")
IDENTICAL = ("lora", "bitfit")
KEPT_SHARE = 0.5
# (model, technique) -> the parameters that are expanded, and why
LOUD: dict[tuple[str, str], str] = {}


def loss(outputs):
    return sum(y.reshape(-1) @ jnp.cos(jnp.arange(y.size, dtype=y.dtype)) for y in jax.tree.leaves(outputs))


def close(ours, theirs, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1e-3)


@pytest.mark.parametrize("technique", [pytest.param(t, marks=[pytest.mark.slow] * (t != "qlora")) for t in TECHNIQUES])
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LARGER)) for n in MODELS])
def test_a_users_model(name, technique):
    fn, params, args = MODELS[name]()
    before = jax.tree.map(np.array, params)
    transform, traces = TECHNIQUES[technique](), []
    uses = usage(fn, params, *args)
    start = jax.jit(lambda params: transform.init(jax.random.key(0), params, uses), compiler_options=QUICK_TO_COMPILE)
    split = start(params)
    strict = (name, technique) not in LOUD

    @functools.partial(jax.jit, compiler_options=QUICK_TO_COMPILE)
    def step(split, args):
        """Outputs, the same of the merged tree, and the trained parts after a step of gradient descent."""
        traces.append(name)

        def outputs(train):
            y = lift(fn, strict=strict)(transform.apply(split._replace(train=train)), *args)
            return loss(y), y

        gradients, ours = jax.grad(outputs, has_aux=True)(split.train)
        moved = jax.tree.map(lambda w, g: w - 1e-2 * g, split.train, gradients)
        tree = merge(transform.apply(split))
        return ours, fn(tree, *args), gradients, split._replace(train=moved), tree

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours, merged, _, later, tree = step(split, args)
    assert all(warning.category is MaterialiseWarning for warning in caught)
    assert bool(caught) is not strict
    close(ours, merged)
    if technique in IDENTICAL:
        # forward programs alone: XLA rounds a forward pass that belongs to a gradient otherwise, with or without us
        forward = jax.jit(lambda p, args: lift(fn, strict=strict)(p, *args), compiler_options=QUICK_TO_COMPILE)
        jax.tree.map(np.testing.assert_array_equal, forward(transform.apply(split), args), forward(params, args))
    ours, merged, gradients, _, tree = step(later, args)
    close(ours, merged)
    assert len(traces) == 1
    assert jax.tree.leaves(gradients)
    for path, gradient in paths(gradients).items():
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() > 0, path
    assert {p: (leaf.shape, leaf.dtype) for p, leaf in paths(tree).items()} == {
        p: (leaf.shape, leaf.dtype) for p, leaf in paths(params).items()
    }
    jax.tree.map(np.testing.assert_array_equal, params, before)
    has_what_it_claims(technique, transform.apply(later), tree)


def has_what_it_claims(technique, tree, merged):
    kinds = [leaf for leaf in paths(tree).values() if isinstance(leaf, Sparse | Quantized)]
    if technique == "qlora":
        assert any(isinstance(leaf.base, Quantized) for leaf in paths(tree).values() if hasattr(leaf, "base"))
    elif technique == "pruned, then trained":
        kept = sum(int(leaf.mask.sum()) for leaf in kinds)
        assert kept == sum(leaf.mask.size for leaf in kinds) - round(KEPT_SHARE * sum(leaf.mask.size for leaf in kinds))
        for path, leaf in paths(tree).items():
            if isinstance(leaf, Sparse):
                assert not paths(merged)[path][~leaf.mask].any()
    else:
        assert not kinds

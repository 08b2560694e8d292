"""Every model family under every kind of weight: `usage` sees all kernels, nothing is expanded, factored is merged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.compress.merge import merge
from jaxbig.compress.quantize import quantize
from jaxbig.lift import lift
from jaxbig.models import CNN, CRNN, MLP, RNN, FTTransformer, ResNet, TabularMLP, ViT
from jaxbig.transform import chain
from jaxbig.tree import paths
from jaxbig.tune.lora import lora
from jaxbig.usage import usage

QUICK_TO_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
RANDOM = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


def row(numbers):
    return {"numbers": numbers, "categories": jnp.array([[3, 0], [1, 4]])}


# name -> model, inputs
MODELS = {
    "mlp": lambda: (MLP(3, (8,)), (normal(2, 6),)),
    "cnn": lambda: (CNN(3, (4, 6), 8, "SAME"), (normal(2, 8, 8, 1),)),
    "cnn of patches": lambda: (CNN(3, (4, 6), 8, patches=True), (normal(2, 12, 12, 1),)),
    "resnet basic": lambda: (ResNet(3, blocks=(1, 1), channels=4), (normal(2, 32, 32, 3),)),
    "resnet bottleneck": lambda: (ResNet(3, (1, 1), 4, "cifar", bottleneck=True, remat=True), (normal(2, 8, 8, 3),)),
    "lstm of tokens": lambda: (
        RNN(3, 4, layers=2, bidirectional=True, vocabulary=9, embedding=6, remat=True),
        (jnp.array([[1, 8, 2], [4, 0, 0]]), jnp.array([3, 1])),
    ),
    "gru of features": lambda: (RNN(3, 4, cell="gru", pool="mean"), (normal(2, 5, 6), jnp.array([5, 2]))),
    "crnn": lambda: (CRNN(3, (4, 6), hidden=5), (normal(2, 8, 8), jnp.array([8, 4]))),
    "tabular transformer": lambda: (FTTransformer(3, (4, 5), 8, layers=2, heads=2), (row(normal(2, 6)),)),
    "tabular transformer, encoded": lambda: (FTTransformer(3, (4, 5), 8, layers=1, heads=2), (row(normal(2, 6, 3)),)),
    "tabular mlp": lambda: (TabularMLP(3, (4, 5), (8, 10), embedding=2), (row(normal(2, 6)),)),
    "vit": lambda: (ViT(3, 4, 8, layers=2, heads=2, hidden=12), (normal(2, 8, 8, 1),)),
}
# Larger than another of its kind, which the fast tier has.
LARGER = (
    "cnn",
    "tabular mlp",
    "resnet basic",
    "resnet bottleneck",
    "lstm of tokens",
    "tabular transformer",
    "tabular transformer, encoded",
    "gru of features",
    "crnn",
)
TECHNIQUES = {"lora": lambda: lora(rank=2), "lora over int8": lambda: chain(quantize("int8"), lora(rank=2))}


def made(name):
    """The function of the parameters, parameters without zeros, inputs; statistics are updated in the function."""
    model, inputs = MODELS[name]()
    shapes = dict(jax.eval_shape(model.init, jax.random.key(0), *inputs))
    params = jax.tree.map(lambda leaf: normal(*leaf.shape) / max(leaf.shape) ** 0.5, shapes.pop("params"))
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)

    def fn(params, *inputs):
        options = {"train": True, "mutable": list(variables), "rngs": {"dropout": jax.random.key(1)}}
        return model.apply({"params": params, **variables}, *inputs, **options)[0]

    return fn, params, inputs


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in ("resnet bottleneck", "tabular transformer"))) for n in MODELS],
)
def test_usage_sees_every_kernel_and_the_head(name):
    fn, params, inputs = made(name)
    uses = usage(fn, params, *inputs)
    kinds = {path: {use.kind for use in found} for path, found in uses.items()}
    for path in kinds:
        if path.endswith("kernel"):
            assert kinds[path] & {"product", "conv"}, path
        if path.endswith("embedding"):
            assert kinds[path] == {"lookup"}, path
    assert {path for path, found in uses.items() if any(use.head for use in found)} == {"head/kernel"}


@pytest.mark.parametrize("technique", [pytest.param("lora", marks=pytest.mark.slow), "lora over int8"])
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LARGER)) for n in MODELS])
def test_nothing_is_expanded_and_factored_is_merged(name, technique):
    fn, params, inputs = made(name)
    transform = TECHNIQUES[technique]()
    split = transform.init(jax.random.key(0), params, usage(fn, params, *inputs))
    moved = jax.tree.map(lambda leaf: leaf + 0.1 * normal(*leaf.shape), split.train)
    kernels = [path for path in paths(params) if path.endswith("kernel") and not path.startswith("head")]
    assert set(kernels) <= set(split.train.get("lora", split.train))

    @jax.jit
    def both(train):
        tree = transform.apply(split._replace(train=train))
        return lift(fn, strict=True)(tree, *inputs), fn(merge(tree), *inputs)

    ours, merged = both.lower(moved).compile(compiler_options=QUICK_TO_COMPILE)(moved)
    # traced only: a derivative that expanded a weight would warn, and a warning is an error
    jax.eval_shape(jax.grad(lambda train: both(train)[0].sum()), moved)
    np.testing.assert_allclose(ours, merged, rtol=1e-4, atol=1e-4 * float(jnp.abs(merged).max()))

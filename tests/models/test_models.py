"""Models: shapes, initialisation, stacked layers equal to unrolled ones, heads."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.errors import UserError
from jaxbig.models import CNN, MLP, PatchConv, ViT, max_pool, replace_head, stack_layers, unstack_layers, vit

SMALL = {"num_classes": 3, "patch": 4, "width": 8, "layers": 2, "heads": 2, "hidden": 16}


def images(size=8):
    return jax.random.normal(jax.random.key(7), (2, size, size, 1))


def init(model, size=8):
    """Compiled whole: op by op, each initialiser would be compiled on its own."""
    return jax.jit(model.init)(jax.random.key(0), images(size))["params"]


def shapes_of(model):
    return jax.eval_shape(model.init, jax.random.key(0), images())["params"]


def noisy(params, scale=0.1):
    """No zeros left: a head of zeros would hide every difference below it."""
    generator = np.random.default_rng(9)
    return jax.tree.map(lambda leaf: leaf + scale * generator.normal(size=leaf.shape).astype(leaf.dtype), params)


@pytest.mark.parametrize(
    "model", [MLP(3, (8,)), CNN(3, (4, 8), 16, "SAME"), ViT(**SMALL), ViT(**SMALL, pool="mean", scan_layers=True)]
)
def test_logits_are_float32_and_the_head_is_called_head(model):
    params = shapes_of(model)
    logits = jax.eval_shape(model.apply, {"params": params}, images())
    assert logits.shape == (2, 3)
    assert logits.dtype == jnp.float32
    assert params["head"]["kernel"].shape[1] == 3


def test_the_classic_cnn_on_mnist_shapes():
    shapes = jax.eval_shape(CNN().init, jax.random.key(0), jnp.ones((1, 28, 28, 1)))["params"]
    assert shapes["dense"]["kernel"].shape == (5 * 5 * 64, 128)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 225_034


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_a_convolution_as_patches_is_the_convolution(padding):
    """Parameters, outputs and gradients, kernels of even and unequal sides too."""
    plain, patches = CNN(3, (4, 6), 8, padding), CNN(3, (4, 6), 8, padding, patches=True)
    x = jax.random.normal(jax.random.key(7), (2, 12, 11, 2))
    params = jax.jit(plain.init)(jax.random.key(0), x)["params"]
    jax.tree.map(np.testing.assert_array_equal, params, jax.jit(patches.init)(jax.random.key(0), x)["params"])
    step = jax.jit(lambda params: [jax.value_and_grad(loss)(params, m) for m in (plain, patches)])

    def loss(params, model):
        return jnp.sum(model.apply({"params": params}, x) ** 2)

    theirs, ours = step(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max()), ours, theirs)
    for size in [(2, 3), (1, 4)]:
        conv = nn.Conv(4, size, padding=padding)
        kernel = conv.init(jax.random.key(0), x)
        expected = conv.apply(kernel, x)
        np.testing.assert_allclose(PatchConv(4, size, padding).apply(kernel, x), expected, atol=1e-5)
        for pool in (2, 3):
            pooled = PatchConv(4, size, padding, pool).apply(kernel, x)
            np.testing.assert_allclose(pooled, max_pool(expected, pool), atol=1e-5)


def test_the_gradient_of_a_maximum_pool_is_finite_where_its_input_is_computed_twice():
    """Without optimisation XLA recomputes the norm in the backward pass, rounded otherwise: no entry is the maximum."""
    norm, random = nn.LayerNorm(), np.random.default_rng(0)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    params = {name: jnp.asarray(random.normal(size=4), jnp.float32) for name in ("scale", "bias")}
    unoptimised = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

    def loss(x, params):
        return (max_pool(norm.apply({"params": params}, x)) ** 2).sum()

    assert np.isfinite(jax.jit(jax.grad(loss), compiler_options=unoptimised)(x, params)).all()


@pytest.mark.parametrize("size", [pytest.param(4, marks=pytest.mark.slow), 5, pytest.param(7, marks=pytest.mark.slow)])
def test_max_pool_is_flax_max_pool_in_value_and_gradient(size):
    x = jax.random.normal(jax.random.key(0), (2, size, size + 1, 3))
    ours, grad = jax.value_and_grad(lambda x: (max_pool(x) ** 2).sum())(x)
    theirs, expected = jax.value_and_grad(lambda x: (nn.max_pool(x, (2, 2), (2, 2)) ** 2).sum())(x)
    np.testing.assert_array_equal(max_pool(x), nn.max_pool(x, (2, 2), (2, 2)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    np.testing.assert_allclose(grad, expected, rtol=1e-6)


def test_he_initialisation_has_variance_two_over_fan_in():
    kernel = MLP(10, (400,)).init(jax.random.key(0), jnp.ones((1, 300)))["params"]["dense_0"]["kernel"]
    assert abs(float(kernel.std()) - (2 / 300) ** 0.5) < 0.01 * (2 / 300) ** 0.5


def test_vit_starts_at_zero_logits_with_glorot_kernels():
    params = init(ViT(**{**SMALL, "width": 64, "hidden": 256}))
    assert float(jnp.abs(params["head"]["kernel"]).max()) == 0.0
    kernel = params["encoder"]["layer_1"]["mlp_in"]["kernel"]
    bound = (6 / (64 + 256)) ** 0.5
    assert 0.98 * bound < float(jnp.abs(kernel).max()) <= bound
    query = params["encoder"]["layer_1"]["attention"]["query"]["kernel"]
    assert float(jnp.abs(query).max()) <= (6 / (64 + 64)) ** 0.5


@pytest.mark.parametrize(("pool", "remat"), [("cls", True), pytest.param("mean", False, marks=pytest.mark.slow)])
def test_scanned_equals_unrolled_in_value_and_gradient(pool, remat):
    unrolled, scanned = ViT(**SMALL, pool=pool), ViT(**SMALL, pool=pool, scan_layers=True, remat=remat)
    params = noisy(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes_of(unrolled)))
    stacked = {**params, "encoder": stack_layers(params["encoder"])}
    own = shapes_of(scanned)
    assert jax.tree.map(lambda leaf: leaf.shape, own) == jax.tree.map(jnp.shape, stacked)

    def loss(model, params):
        return (model.apply({"params": params}, images()) ** 2).sum()

    value, grad = jax.jit(jax.value_and_grad(lambda p: loss(unrolled, p)))(params)
    value_scanned, grad_scanned = jax.jit(jax.value_and_grad(lambda p: loss(scanned, p)))(stacked)
    np.testing.assert_allclose(value, value_scanned, rtol=1e-5)
    back = {**grad_scanned, "encoder": unstack_layers(grad_scanned["encoder"])}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), back, grad)


def test_stack_and_unstack_are_inverse():
    shapes = shapes_of(ViT(**SMALL))["encoder"]
    params = noisy(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))
    back = unstack_layers(stack_layers(params))
    assert sorted(back) == sorted(params)
    jax.tree.map(np.testing.assert_array_equal, back, dict(params))


@pytest.mark.parametrize("scan_layers", [pytest.param(False, marks=pytest.mark.slow), True])
def test_dropout_is_a_function_of_its_key(scan_layers):
    model = ViT(**SMALL, dropout=0.5, scan_layers=scan_layers, remat=True)
    params = noisy(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes_of(model)))
    noise = jax.jit(lambda key: model.apply({"params": params}, images(), train=True, rngs={"dropout": key}))
    one, two, again = (noise(jax.random.key(seed)) for seed in (1, 2, 1))
    np.testing.assert_array_equal(one, again)
    assert float(jnp.abs(one - two).max()) > 1e-3
    assert jax.eval_shape(model.apply, {"params": params}, images()).shape == (2, 3)


@pytest.mark.parametrize("model", [MLP(3, (8,)), CNN(3, (4,), 8, "SAME"), ViT(**SMALL, scan_layers=True)])
def test_bfloat16_computation_keeps_float32_parameters(model):
    half = model.clone(dtype=jnp.bfloat16)
    params = jax.eval_shape(half.init, jax.random.key(0), images())["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert jax.eval_shape(half.apply, {"params": params}, images()).dtype == jnp.bfloat16


def test_replace_head_is_pure_and_fits_the_model():
    params = init(MLP(3, (8,)))
    before = jax.tree.map(np.array, params)
    new = replace_head(params, jax.random.key(1), 7)
    assert MLP(7, (8,)).apply({"params": new}, images()).shape == (2, 7)
    assert new["dense_0"]["kernel"] is params["dense_0"]["kernel"]
    jax.tree.map(np.testing.assert_array_equal, dict(params), before)
    many = jax.vmap(lambda key: replace_head(params, key, 7)["head"]["kernel"])(jax.random.split(jax.random.key(1), 4))
    assert many.shape == (4, 8, 7)


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (lambda: CNN().init(jax.random.key(0), images()), "padding='SAME'"),
        (lambda: CNN().init(jax.random.key(0), jnp.ones((8, 8))), "batch, height"),
        (lambda: CNN(padding="FULL", patches=True).init(jax.random.key(0), images()), "'VALID' or 'SAME'"),
        (lambda: PatchConv(4, (3, 3), pool=0).init(jax.random.key(0), images()), "pool=0"),
        (lambda: ViT(patch=3).init(jax.random.key(0), images()), "side 3"),
        (lambda: ViT(**{**SMALL, "heads": 3}).init(jax.random.key(0), images()), "heads=3"),
        (lambda: vit("XL"), "Ti, S, B"),
        (lambda: ViT(**SMALL, pool="max").init(jax.random.key(0), images()), "'mean'"),
        (lambda: replace_head({"body": 1}, jax.random.key(0), 2), "body"),
        (lambda: replace_head({"head": 1}, jax.random.key(0), 2), "dense layer"),
        (lambda: stack_layers({"norm": {}}), "norm"),
        (lambda: unstack_layers({"norm": {}}), "norm"),
    ],
)
def test_errors_are_one_line_that_names_what_to_change(act, word):
    with pytest.raises(UserError) as caught:
        act()
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)

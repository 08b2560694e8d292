"""Layers of real models and the rules made of them: steps per layer in NumPy, unrolled and scanned, tuned and whole."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig import chain, full, lora, usage
from jaxbig.depth import depths, gradual, layerwise
from jaxbig.errors import UsageError
from jaxbig.models import CNN, ViT
from jaxbig.models.transformer import stack_layers
from jaxbig.optim import Optimizer

IMAGES = jnp.ones((1, 8, 8, 1))


def read(model, x=IMAGES, key=0):
    params = model.init(jax.random.key(key), x)["params"]
    return params, usage(lambda p, x: model.apply({"params": p}, x), params, x)


@pytest.fixture(scope="module")
def vit():
    sizes = {"num_classes": 3, "patch": 4, "width": 8, "layers": 3, "heads": 2, "hidden": 8}
    unrolled, scanned = read(ViT(**sizes)), read(ViT(**sizes, scan_layers=True))
    return unrolled, scanned


def first(options, train):
    optimizer = options.build()
    return optimizer.update(train, optimizer.init(train), train)[0]


def whole(params, uses):
    return full().init(None, params, uses).train


@pytest.mark.slow
def test_layers_of_a_vit_unrolled_and_scanned(vit):
    (_, unrolled), (_, scanned) = vit
    found = depths(unrolled)
    heads = {path: depth for path, depth in found.items() if not path.startswith("encoder/layer_")}
    assert heads == {
        "patches/kernel": 0, "patches/bias": 0, "cls": 0, "positions": 0, "encoder/norm/scale": 3,
        "encoder/norm/bias": 3, "head/kernel": 4, "head/bias": 4,
    }  # fmt: skip
    for path, depth in found.items():
        if path.startswith("encoder/layer_"):
            assert depth == 1 + int(path.split("/")[1][-1]), path
    for path, depth in depths(scanned).items():
        np.testing.assert_array_equal(depth, [1, 2, 3] if "/layers/" in path else found[path])


def test_steps_per_layer_are_those_of_numpy_and_scanned_those_of_unrolled(vit):
    (params, unrolled), (_, scanned) = vit
    grads = whole(params, unrolled)
    steps = first(Optimizer("sgd", 0.5, lr_rules=layerwise(grads, unrolled, 0.3)), grads)
    for path, step in steps.items():
        top = path.split("/")[1 if path.startswith("encoder") else 0]
        depth = {"patches": 0, "cls": 0, "positions": 0, "norm": 3, "head": 4}.get(top)
        depth = 1 + int(top[-1]) if depth is None else depth
        np.testing.assert_allclose(step, -0.5 * 0.3 ** (4 - depth) * np.asarray(grads[path]), rtol=1e-6)
    stacked = params | {"encoder": stack_layers(params["encoder"])}
    grads = whole(stacked, scanned)
    ours = first(Optimizer("sgd", 0.5, lr_rules=layerwise(grads, scanned, 0.3)), grads)
    for path, step in ours.items():
        if "/layers/" in path:
            step, its = step[1], steps[path.replace("/layers/", "/layer_1/")]
        else:
            its = steps[path]
        np.testing.assert_allclose(step, its, rtol=1e-6)


@pytest.mark.parametrize("kind", [0, 1])
def test_tuned_leaves_go_with_what_they_tune(vit, kind):
    params, uses = vit[kind]
    transform = chain(lora(rank=2, where=".*query/kernel"), full(where="head/.*"))
    train = transform.init(jax.random.key(0), params, uses).train
    values = {where: value for wheres, value in layerwise(train, uses, 0.5) for where in wheres}
    assert values["full/head/kernel"] == 1
    if kind:
        np.testing.assert_array_equal(values["lora/encoder/layers/attention/query/kernel/a"], [0.125, 0.25, 0.5])
    else:
        assert values["lora/encoder/layer_1/attention/query/kernel/b"] == 0.25
    assert first(Optimizer(lr_rules=layerwise(train, uses, 0.5)), train).keys() == train.keys()


def test_the_order_is_that_of_the_program_not_of_names():
    class Backwards(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(4, name="z")(x)
            return nn.Dense(2, name="m")(nn.relu(nn.Dense(4, name="a")(x)))

    found = depths(read(Backwards(), jnp.ones((1, 3)))[1])
    assert (found["z/kernel"], found["a/bias"], found["m/kernel"]) == (0, 1, 2)


@pytest.mark.slow
def test_a_convolutional_network_and_embeddings():
    found = depths(read(CNN(channels=(2, 2), hidden=4, padding="SAME"))[1])
    assert [found[f"{name}/kernel"] for name in ("conv_0", "conv_1", "dense", "head")] == [0, 1, 2, 3]

    class Text(nn.Module):
        @nn.compact
        def __call__(self, ids):
            x = nn.Embed(5, 4, name="words")(ids) + nn.Embed(3, 4, name="places")(jnp.arange(3))
            return nn.Dense(2)(nn.LayerNorm()(x))

    found = depths(read(Text(), jnp.zeros((1, 3), jnp.int32))[1])
    assert list(found.items()) == [
        ("words/embedding", 0), ("places/embedding", 0), ("LayerNorm_0/scale", 0), ("LayerNorm_0/bias", 0),
        ("Dense_0/kernel", 1), ("Dense_0/bias", 1),
    ]  # fmt: skip


def test_a_pattern_may_say_what_a_layer_is(vit):
    found = depths(vit[0][1], layer="encoder/layer_[01]|encoder/(layer_2|norm)")
    assert {found["encoder/layer_0/mlp_in/kernel"], found["encoder/layer_1/mlp_in/bias"]} == {1, 2}
    assert found["encoder/norm/scale"] == found["encoder/layer_2/mlp_out/kernel"] == 3


def test_layers_thaw_from_the_last_to_the_first(vit):
    (params, uses), (stacked, scanned) = vit
    train = whole(params, uses)
    rules = {where: step for wheres, step in gradual(train, uses, 10) for where in wheres}
    assert rules["head/kernel"] == 0
    assert rules["encoder/layer_2/mlp_in/kernel"] == rules["encoder/norm/scale"] == 10
    assert rules["patches/bias"] == 40
    updates = first(Optimizer("sgd", thaw=gradual(train, uses, 10)), jax.tree.map(jnp.ones_like, train))
    assert {path for path, update in updates.items() if np.any(update)} == {"head/kernel", "head/bias"}
    with pytest.raises(UsageError, match="3 layers in one array"):
        gradual(whole(stacked, scanned), scanned, 10)


def test_a_leaf_that_belongs_nowhere_is_an_error(vit):
    with pytest.raises(UsageError, match="prompt belongs to no leaf"):
        layerwise({"prompt": jnp.ones(2)}, vit[0][1], 0.5)
    with pytest.raises(UsageError, match="shared by 3 layers"):
        layerwise({"encoder/layers/mlp_in/kernel/m": jnp.ones(2)}, vit[1][1], 0.5)

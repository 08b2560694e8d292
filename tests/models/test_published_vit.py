"""Vision Transformers against transformers, read from the files that it writes: ten random configs a family."""

import random
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.carry import carry, leaves_of, shapes_of

from jaxbig.errors import UserError
from jaxbig.models.families import FAMILIES, family_of
from jaxbig.models.interpolate import bicubic, bicubic_matrix
from jaxbig.models.published_vit import PublishedViT
from jaxbig.tree import paths

CLASSES = {
    "vit": ("ViT", "ForImageClassification"),
    "deit": ("DeiT", "ForImageClassification"),
    "taught": ("DeiT", "ForImageClassificationWithTeacher"),
    "dinov2": ("Dinov2", "ForImageClassification"),
}


def config(kind, number):
    """The fields of random config `number` of a family."""
    rng = random.Random(f"{kind} {number}")
    heads, patch = rng.choice([1, 2, 3]), rng.choice([2, 3, 4])
    found = {
        "hidden_size": heads * rng.choice([4, 6]), "num_hidden_layers": rng.choice([1, 2, 3]),
        "num_attention_heads": heads, "intermediate_size": rng.choice([7, 12]), "patch_size": patch,
        "image_size": patch * rng.choice([2, 3, 4]), "num_channels": rng.choice([1, 3]), "num_labels": 5,
        "hidden_act": rng.choice(["gelu", "relu", "gelu_new"]), "layer_norm_eps": rng.choice([1e-12, 1e-3]),
        "qkv_bias": rng.random() < 0.7,
    }  # fmt: skip
    if kind == "dinov2":
        del found["intermediate_size"]
        found |= {"mlp_ratio": rng.choice([2, 4]), "use_swiglu_ffn": rng.random() < 0.5, "layerscale_value": 0.5}
    return found


def pair(torch, folder, kind, number, features=False, more=(), **options):
    """(their model, our family, module and parameters), from a saved folder's names; `more` fields of the config."""
    import transformers
    from safetensors.numpy import load_file

    name, head = CLASSES[kind]
    made = getattr(transformers, name + "Config")(**config(kind, number) | dict(more), attn_implementation="eager")
    pooled = {"add_pooling_layer": False} if features and kind != "dinov2" else {}
    cls = getattr(transformers, name + ("Model" if features else head))
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = cls(made, **pooled).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, dtype=parameter.dtype))
        model.save_pretrained(folder)
    fields = made.to_dict() | {"architectures": [cls.__name__]}
    family = family_of(fields)
    task = family.architectures[cls.__name__]
    module = family.module(fields, task, **options)
    return model, family, module, carry(module, family, load_file(folder / "model.safetensors"))


def images(module, rows, columns):
    return np.random.default_rng(0).normal(size=(2, rows * module.patch, columns * module.patch, module.channels))


def said(torch, model, x, **more):
    with torch.no_grad():
        found = model(pixel_values=torch.tensor(np.moveaxis(x, -1, 1)), **more)
    return (found.logits if hasattr(found, "logits") else found.last_hidden_state).numpy()


@pytest.mark.parity
@pytest.mark.parametrize("number", [pytest.param(n, marks=[pytest.mark.slow] * (n > 1)) for n in range(10)])
@pytest.mark.parametrize("kind", CLASSES)
def test_outputs(torch64, tmp_path, kind, number):
    """Of images of the size that positions are for, and of two others."""
    model, _, module, params = pair(torch64, tmp_path, kind, number, number % 4 == 3, scan_layers=number % 3 == 1)
    side, called = module.image // module.patch, jax.jit(module.apply)
    for rows, columns in ((side, side), (side + 1, side + 2), (1, 2 * side)):
        x = images(module, rows, columns)
        other = {} if kind == "dinov2" or rows == side else {"interpolate_pos_encoding": True}
        expected, ours = said(torch64, model, x, **other), called({"params": params}, x)
        assert ours.shape == expected.shape
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parity
@pytest.mark.parametrize("kind", CLASSES)
def test_gradients(torch64, tmp_path, kind):
    model, family, module, params = pair(torch64, tmp_path, kind, 1, scan_layers=True, remat=True)
    side = module.image // module.patch
    x = images(module, side, side)
    (model(pixel_values=torch64.tensor(np.moveaxis(x, -1, 1))).logits ** 2).sum().backward()
    for parameter in model.parameters():  # the file writes names; let it write the gradients under them
        parameter.data = parameter.grad if parameter.grad is not None else torch64.zeros_like(parameter)
    model.save_pretrained(tmp_path)
    from safetensors.numpy import load_file

    ours = paths(jax.jit(jax.grad(lambda params: jnp.square(module.apply({"params": params}, x)).sum()))(params))
    expected, _ = leaves_of(module, family, load_file(tmp_path / "model.safetensors"))
    assert ours.keys() == expected.keys()
    for path, leaf in ours.items():
        assert np.abs(expected[path]).max() > 0 or path.endswith("key/bias") or path == "mask", path
        np.testing.assert_allclose(leaf, expected[path], rtol=0, atol=1e-9 * np.abs(expected[path]).max() + 1e-9)


@pytest.mark.parity
@pytest.mark.parametrize("kind", CLASSES)
def test_dropout_falls_where_theirs_falls(torch64, tmp_path, kind, scaled_dropout):
    """Both rates are others, and what a rate falls on is scaled by it, on both sides."""
    rates = {"hidden_dropout_prob": 0.11, "attention_probs_dropout_prob": 0.23}
    model, _, module, params = pair(torch64, tmp_path, kind, 2, more=rates, scan_layers=True)
    side = module.image // module.patch
    x = images(module, side, side)
    called = jax.jit(lambda train: module.apply({"params": params}, x, train=train), static_argnums=0)
    expected = said(torch64, model.train(), x)
    np.testing.assert_allclose(called(True), expected, rtol=0, atol=1e-9 * np.abs(expected).max())
    assert np.abs(called(False) - expected).max() > 1e-3


@pytest.mark.parity
def test_hidden_patches(torch64, tmp_path):
    model, _, module, params = pair(torch64, tmp_path, "dinov2", 2, features=True)
    side = module.image // module.patch
    x, masked = images(module, side, side), np.random.default_rng(1).random((2, side * side)) < 0.5
    expected = said(torch64, model, x, bool_masked_pos=torch64.tensor(masked))
    np.testing.assert_allclose(module.apply({"params": params}, x, masked=masked), expected, rtol=0, atol=1e-9)
    assert np.abs(module.apply({"params": params}, x) - expected).max() > 1e-3


@pytest.mark.parity
@pytest.mark.parametrize(("old", "new"), [(4, 7), (7, 4), (5, 5), (3, 1)])
def test_bicubic_is_torch_s(torch64, old, new):
    x = np.random.default_rng(0).normal(size=(old, old + 1, 3))
    resize = torch64.nn.functional.interpolate
    expected = resize(torch64.tensor(np.moveaxis(x, -1, 0)[None]), size=(new, 2 * new), mode="bicubic")[0].numpy()
    np.testing.assert_allclose(bicubic(jnp.asarray(x), new, 2 * new), np.moveaxis(expected, 0, -1), atol=1e-12)


def test_bicubic_keeps_what_is_there_and_constants():
    np.testing.assert_array_equal(bicubic_matrix(5, 5), np.eye(5))
    np.testing.assert_allclose(bicubic_matrix(5, 13).sum(axis=1), 1)


@pytest.mark.slow
def test_scanned_with_remat_is_unrolled_and_dropout_is_a_function_of_its_key():
    rates = {"dropout": 0.3, "layer_dropout": 0.2, "attention_dropout": 0.1}
    unrolled = PublishedViT(**SMALL, **rates, scale=0.5, swiglu=True)
    scanned = unrolled.clone(scan_layers=True, remat=True)
    x = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
    rng, leaves = np.random.default_rng(1), jax.eval_shape(unrolled.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), leaves)
    stacked = {name: leaf for name, leaf in params.items() if not name.startswith("layer_")}
    stacked["layers"] = jax.tree.map(lambda *leaves: np.stack(leaves), *(params[f"layer_{i}"] for i in range(2)))
    ours = jax.jit(scanned.apply)({"params": stacked}, x)
    np.testing.assert_allclose(ours, jax.jit(unrolled.apply)({"params": params}, x), atol=1e-5)
    trained = jax.jit(lambda key: scanned.apply({"params": stacked}, x, train=True, rngs={"dropout": key}))
    one, again, other = (trained(jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "task"), [*((kind, "image_classification") for kind in CLASSES), ("dinov2", "features")]
)
def test_the_table_tells_each_leaf_once(kind, task):
    family = FAMILIES["deit" if kind == "taught" else kind]
    fields = SIZES | {"model_type": family.name, "image_size": [8, 8], "use_swiglu_ffn": True, "qkv_bias": False}
    fields |= {"architectures": [CLASSES[kind][0] + CLASSES[kind][1]]}
    module = family.module(fields, task)
    told = [path.format(0) for path, _, _ in family.tensors(module)]
    assert sorted(told) == sorted(shapes_of(module, family))


SIZES = {
    "model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip
SMALL = {"image": 8, "patch": 4, "width": 8, "layers": 2, "heads": 2, "hidden": 12}


def shapes(module, *arguments, **more):
    """What asking for a module's parameters says, nothing computed."""
    return jax.eval_shape(module.init, jax.random.key(0), *arguments, **more)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: shapes(PublishedViT(**SMALL), np.ones((1, 8, 9, 3))), "not tiled by patches"),
        (lambda: shapes(PublishedViT(**SMALL | {"heads": 3}), np.ones((1, 8, 8, 3))), "multiple of"),
        (
            lambda: shapes(PublishedViT(**SMALL), np.ones((1, 8, 8, 3)), masked=np.ones((1, 4), bool)),
            "has no mask token",
        ),
        (lambda: shapes(PublishedViT(**SMALL), np.ones((1, 8, 8, 1))), "1 channels, the model 3"),
        (lambda: shapes(PublishedViT(**SMALL, reads="max"), np.ones((1, 8, 8, 3))), "reads='max'"),
        (lambda: shapes(PublishedViT(**SMALL, reads="both"), np.ones((1, 8, 8, 3))), "teacher=True"),
        (lambda: FAMILIES["vit"].module(SIZES | {"image_size": [8, 12]}, "features"), r"image_size is \[8, 12\]"),
        (lambda: FAMILIES["vit"].module({"model_type": "vit"}, "causal_lm"), "no head for the task"),
        (lambda: FAMILIES["dinov2"].module({"drop_path_rate": 0.1}, "features"), "drop_path_rate is 0.1"),
    ],
)
def test_errors_say_what_to_change(act, message):
    with pytest.raises(UserError, match=message):
        act()


def test_vit_base_has_as_many_parameters_as_it_should():
    """ViT-B/16 at 224 with 1000 classes: 86,567,656, as the paper's 86M."""
    fields = {"model_type": "vit", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    fields |= {"intermediate_size": 3072, "image_size": 224, "patch_size": 16, "num_labels": 1000}
    module = FAMILIES["vit"].module(fields, "image_classification", scan_layers=True)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *FAMILIES["vit"].example(module))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 86_567_656

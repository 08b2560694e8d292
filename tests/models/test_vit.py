"""ViT: the published sizes, the paper's dropout, and transformers' outputs with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.models import ViT, vit

PUBLISHED = {
    ("Ti", 16): 5_717_416,
    ("S", 16): 22_050_664,
    ("B", 16): 86_567_656,
    ("B", 32): 88_224_232,
    ("L", 16): 304_326_632,
    ("H", 14): 632_045_800,
}


@pytest.mark.parametrize(("size", "patch"), PUBLISHED)
def test_published_numbers_of_parameters(size, patch):
    model = vit(size, patch, num_classes=1000, scan_layers=True)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PUBLISHED[size, patch]


def test_dropout_follows_every_dense_layer_but_query_key_and_value():
    model = ViT(3, patch=4, width=8, layers=2, heads=2, hidden=20, dropout=0.5)
    x = jnp.ones((2, 8, 8, 1))
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    jaxpr = jax.make_jaxpr(lambda variables: model.apply(variables, x, True, rngs={"dropout": jax.random.key(0)}))(
        shapes
    )
    masks = [eqn.outvars[0].aval.shape for eqn in equations(jaxpr.jaxpr) if eqn.primitive.name == "random_bits"]
    assert masks == [(2, 5, 8), *[(2, 5, 8), (2, 5, 20), (2, 5, 8)] * 2]


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        inner = eqn.params.get("jaxpr")
        if inner is not None:
            yield from equations(getattr(inner, "jaxpr", inner))


@pytest.mark.parity
def test_outputs_are_those_of_transformers():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = ViT(num_classes=5, patch=4, width=12, layers=2, heads=3, hidden=20)
    x = np.random.default_rng(0).normal(size=(2, 8, 12, 3))
    config = transformers.ViTConfig(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20, image_size=(8, 12),
        patch_size=4, num_labels=5, layer_norm_eps=1e-6,
    )  # fmt: skip
    theirs = transformers.ViTForImageClassification(config).double().eval()
    random = np.random.default_rng(1)
    with torch.no_grad():
        for leaf in theirs.parameters():
            leaf.copy_(torch.tensor(random.normal(size=leaf.shape) * 0.5))
    state = {name: leaf.numpy() for name, leaf in theirs.state_dict().items()}

    def dense(name):
        return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}

    def norm(name):
        return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}

    def heads(leaf):
        return {"kernel": leaf["kernel"].reshape(12, 3, 4), "bias": leaf["bias"].reshape(3, 4)}

    def layer(name):
        out = dense(f"{name}.attention.o_proj")
        attention = {part: heads(dense(f"{name}.attention.{part[0]}_proj")) for part in ("query", "key", "value")}
        return {
            "attention_norm": norm(f"{name}.layernorm_before"),
            "attention": {**attention, "out": {**out, "kernel": out["kernel"].reshape(3, 4, 12)}},
            "mlp_norm": norm(f"{name}.layernorm_after"),
            "mlp_in": dense(f"{name}.mlp.fc1"),
            "mlp_out": dense(f"{name}.mlp.fc2"),
        }

    patches = state["vit.embeddings.patch_embeddings.projection.weight"]
    params = {
        "patches": {
            "kernel": patches.transpose(2, 3, 1, 0).reshape(-1, 12),
            "bias": state["vit.embeddings.patch_embeddings.projection.bias"],
        },
        "cls": state["vit.embeddings.cls_token"],
        "positions": state["vit.embeddings.position_embeddings"],
        "encoder": {"layer_0": layer("vit.layers.0"), "layer_1": layer("vit.layers.1"), "norm": norm("vit.layernorm")},
        "head": dense("classifier"),
    }
    with jax.enable_x64(True):
        ours = np.asarray(jax.jit(model.apply)({"params": params}, x))
    expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).logits.detach().numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)

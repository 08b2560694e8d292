"""Models from their folders: each leaf is its tensor, whatever the layout; prefixes, heads and ties; and back again."""


import jax.numpy as jnp
import numpy as np
import pytest
from hub import made

from jaxbig import load
from jaxbig.tree import paths

LEAVES = {  # of an unrolled Llama: path -> tensor, and whether a matrix is turned
    "embed/embedding": ("model.embed_tokens.weight", False),
    "norm/scale": ("model.norm.weight", False),
    "head/kernel": ("lm_head.weight", True),
} | {
    f"layer_{i}/{path}": (f"model.layers.{i}.{name}.weight", path.endswith("kernel"))
    for i in range(3)
    for path, name in {
        "attention_norm/scale": "input_layernorm", "mlp_norm/scale": "post_attention_layernorm",
        "attention/query/kernel": "self_attn.q_proj", "attention/key/kernel": "self_attn.k_proj",
        "attention/value/kernel": "self_attn.v_proj", "attention/out/kernel": "self_attn.o_proj",
        "mlp/gate/kernel": "mlp.gate_proj", "mlp/up/kernel": "mlp.up_proj", "mlp/down/kernel": "mlp.down_proj",
    }.items()
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made.write(tmp_path_factory.mktemp("models") / "llama", parts=3)


def same(leaf, array, turned):
    return np.array_equal(np.asarray(leaf), array.T if turned else array) and leaf.dtype == array.dtype


def test_every_leaf_is_its_tensor(folder):
    model, arrays = load(folder), made.tensors()
    leaves = paths(model.params)
    assert leaves.keys() == LEAVES.keys()
    for path, (name, turned) in LEAVES.items():
        assert same(leaves[path], arrays[name], turned), path
        assert model.names(path) == name
    assert (model.task, model.family.name, model.fresh, model.unused) == ("causal_lm", "llama", (), ())


def test_stacked_layers_are_the_same_in_order(folder):
    model, arrays = load(folder, scan_layers=True), made.tensors()
    for path, (name, turned) in LEAVES.items():
        if path.startswith("layer_1/"):
            stack = paths(model.params)[path.replace("layer_1", "layers")]
            for i in range(3):
                assert same(stack[i], arrays[name.replace(".1.", f".{i}.")], turned), path
    assert model.names("layers/mlp/up/kernel")[2] == "model.layers.2.mlp.up_proj.weight"
    assert model.uses["layers/mlp/up/kernel"][0].kind == "product"
    tokens = jnp.array([[1, 5, 3]])
    unrolled = load(folder)
    assert jnp.allclose(model.apply(model.params, tokens), unrolled.apply(unrolled.params, tokens), atol=1e-6)

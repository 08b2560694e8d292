"""Rules to shardings: parts of Weights derive theirs, and what does not fit is told."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxbig import full, lora, prune, quantize, usage
from jaxbig.errors import UsageError
from jaxbig.mesh import shardings

AUTO = (AxisType.Auto, AxisType.Auto)


@pytest.fixture
def mesh():
    return jax.make_mesh((1, 1), ("fsdp", "tensor"), axis_types=AUTO)


def model(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


PARAMS = {"w": jnp.ones((8, 12)), "v": jnp.ones((12, 4))}
X = jnp.ones((2, 8))


def test_first_rule_wins_and_the_rest_is_replicated(mesh):
    found = shardings(PARAMS, [("w", P("fsdp", "tensor")), ("w|nothing else", P("tensor"))], mesh)
    assert found["w"] == NamedSharding(mesh, P("fsdp", "tensor"))
    assert found["v"].spec == P()


def test_parts_of_a_weight_follow_the_logical_axes(mesh):
    uses = usage(model, PARAMS, X)
    codes = quantize("int4", group=4, where="w").init(None, PARAMS, uses)
    split = lora(rank=2, where="w").init(jax.random.key(0), codes.params, uses)
    tree = lora(rank=2, where="w").apply(split)
    found = shardings(tree, [("w", P("fsdp", "tensor"))], mesh)["w"]
    assert found.a.spec == P("fsdp", None)
    assert found.b.spec == P(None, "tensor")
    assert found.base.codes.spec == P("fsdp", "tensor")
    assert found.base.scale.spec == P("fsdp", "tensor")
    assert found.scale.spec == P()
    placed = jax.device_put(tree, {"w": found, "v": NamedSharding(mesh, P())})
    assert placed["w"].base.codes.sharding == found.base.codes


def test_what_is_left_of_a_weight_whose_base_is_trained_follows_its_rule(mesh):
    uses = usage(model, PARAMS, X)
    pruned = prune(0.5, where="w").init(None, PARAMS, uses)
    split = full(where="w").init(None, pruned.params, uses)
    found = shardings(split.params, [("w", P("fsdp", "tensor"))], mesh)
    assert found["w"].base is None
    assert found["w"].mask.spec == P("fsdp", "tensor")
    jax.device_put(split.params, found)
    lora_state = lora(rank=2, where="w").init(jax.random.key(0), PARAMS, uses).state
    assert not jax.tree.leaves(shardings(lora_state, [], mesh))  # what an adapter keeps there is static


def test_what_does_not_fit_is_told(mesh):
    with pytest.raises(UsageError, match="names 'model', but the mesh has fsdp, tensor"):
        shardings(PARAMS, [("w", P("model"))], mesh)
    with pytest.raises(UsageError, match=r"w has 2 axes, but its spec .* names 3"):
        shardings(PARAMS, [("w", P(None, None, "fsdp"))], mesh)
    with pytest.raises(UsageError, match="matches no parameter; nearest paths"):
        shardings(PARAMS, [("ww", P())], mesh)
    five = AbstractMesh((5,), ("fsdp",), axis_types=(AxisType.Auto,))
    with pytest.raises(UsageError, match=r"w: axis 0 of \(8, 12\) is not divided by 'fsdp' \(5 devices\)"):
        shardings(PARAMS, [("w", P("fsdp"))], five)

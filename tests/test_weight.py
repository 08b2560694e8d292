"""What a Weight owes: parts that follow its axes, and products, look-ups and casts that equal the array's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P
from lift_table import KINDS, normal

from jaxbig.contraction import Contraction, Convolution, contract
from jaxbig.usage import Use
from jaxbig.weight import Concat, Dense, Scaled, Weight, cast, innermost, materialise, rebase, restack

MATRIX = Use("product", (-2,), (-1,), (8, 6), jnp.float32)


@functools.cache
def made(kind: str, shape=(8, 6)) -> Weight:
    return jax.jit(lambda w: KINDS[kind](w, MATRIX._replace(shape=shape), jax.random.key(0)))(normal(*shape))


def close(ours, theirs, tolerance=2e-5):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def einsum(x: str, w: str, out: str) -> Contraction:
    return Contraction(x, w, out, lambda a, b: jnp.einsum(f"{x},{w}->{out}", a, b))


# Each holds what others of the table hold, apart or together.
LIKE_OTHERS = ("int8 asymmetric", "int4", "LowRank(nf4)")
every_kind = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in LIKE_OTHERS)) for kind in KINDS]
)


@every_kind
@pytest.mark.parametrize(("x", "out", "shape"), [("bi", "bo", (3, 8)), ("bo", "ib", (3, 6)), ("abi", "oab", (2, 3, 8))])
def test_product_equals_the_arrays_in_both_directions(kind, x, out, shape):
    weight, c = made(kind), einsum(x, "io", out)
    close(weight.product(normal(*shape), c), c.equation(normal(*shape), weight.materialise()))


@every_kind
def test_product_of_a_stack(kind):
    weight, c = made(kind, (3, 8, 6)), einsum("nbi", "nio", "nbo")
    close(weight.product(normal(3, 5, 8), c), c.equation(normal(3, 5, 8), weight.materialise()))


@every_kind
def test_layers_come_out_of_a_stack_and_go_back_in(kind):
    weight = made(kind, (3, 8, 6))
    stacked, shared = weight.unstack()
    for layer in range(3):
        one = restack(jax.tree.map(lambda part, layer=layer: part[layer], stacked), shared)
        assert (one.shape, one.dtype, one.ndim) == ((8, 6), weight.dtype, 2)
        np.testing.assert_array_equal(one.materialise(), weight.materialise()[layer])
    whole = restack(stacked, shared)
    assert jax.tree.structure(whole) == jax.tree.structure(weight)
    np.testing.assert_array_equal(whole.materialise(), weight.materialise())


@every_kind
def test_a_slice_of_outputs_is_the_weight_of_the_slice(kind):
    weight = made(kind)
    assert not weight.blocks(-1)
    cut = weight.map_axis(-1, lambda part, i: lax.slice_in_dim(part, 1, 4, axis=i))
    close(cut.materialise(), weight.materialise()[:, 1:4])
    assert weight.blocks(-2) == ("4" in kind)


@every_kind
def test_lookup_of_rows_or_a_refusal(kind):
    weight, ids = made(kind), jnp.array([2, 0, 2])
    close(weight.lookup(ids, -1), weight.materialise()[:, ids])
    rows = weight.lookup(ids, -2)
    if "4" in kind:
        assert rows is NotImplemented
    else:
        close(rows, weight.materialise()[ids])


@every_kind
def test_cast_changes_the_logical_dtype_and_no_code(kind):
    weight = made(kind)
    half = weight.cast(jnp.bfloat16)
    assert (half.dtype, half.materialise().dtype, half.shape) == (jnp.bfloat16, jnp.bfloat16, weight.shape)
    close(half.materialise().astype(jnp.float32), weight.materialise(), 3e-2)
    for a, b in zip(jax.tree.leaves(half), jax.tree.leaves(weight), strict=True):
        assert jnp.issubdtype(b.dtype, jnp.floating) or a is b


@every_kind
def test_specs_follow_the_base(kind):
    specs = made(kind, (4, 8, 6)).specs(P("layers", None, "model"))
    parts = jax.tree.leaves(specs, is_leaf=lambda leaf: isinstance(leaf, P))
    assert all(isinstance(part, P) for part in parts)
    if kind == "LowRank":
        assert (specs.base, specs.a, specs.b, specs.scale) == (
            P("layers", None, "model"), P("layers", None, None), P("layers", None, "model"), P(),
        )  # fmt: skip
    if kind == "int8":
        assert (specs.codes, specs.scale) == (P("layers", None, "model"), P("layers", None, "model"))


@every_kind
def test_the_backward_pass_keeps_no_expanded_copy(kind):
    weight, c = made(kind, (3, 8, 6)), einsum("bi", "io", "bo")
    stacked, shared = weight.unstack()
    one = restack(jax.tree.map(lambda part: part[0], stacked), shared)
    _, back = jax.vjp(lambda x: one.product(x, c), normal(5, 8))
    arrays = {id(leaf) for leaf in jax.tree.leaves(one)}
    assert jax.tree.leaves(back)
    kept = [leaf for leaf in jax.tree.leaves(back) if hasattr(leaf, "shape") and leaf.shape == (8, 6)]
    new = [leaf for leaf in kept if jnp.issubdtype(leaf.dtype, jnp.floating) and id(leaf) not in arrays]
    assert all(any(np.array_equal(leaf, part) for part in jax.tree.leaves(one)) for leaf in new)


def test_kinds_are_named_with_what_they_hold():
    assert made("LowRank").kind() == "LowRank r=2"
    assert made("LowRank(nf4)").kind() == "LowRank(Quantized nf4 g2) r=2"
    assert made("Sparse").kind() == "Sparse 50%"
    assert Concat((Dense(jnp.ones(2)), jnp.ones(2)), -1).kind() == "Concat(Dense, array)"


def test_bottom_of_a_nest_is_found_and_exchanged():
    nest = Scaled(Scaled(jnp.ones(2), jnp.float32(3)), jnp.float32(2))
    assert innermost(nest) is nest.base.base
    assert rebase(nest, lambda array: 2 * array).materialise().tolist() == [12.0, 12.0]
    assert type(innermost(made("LowRank(nf4)"))).__name__ == "Quantized"
    assert rebase(jnp.ones(2), lambda array: None) is None


def test_helpers_take_plain_leaves_too():
    array, codes = jnp.ones(2), jnp.arange(2)
    assert materialise(array) is array
    assert cast(None, jnp.bfloat16) is None
    assert cast(codes, jnp.bfloat16) is codes
    assert cast(array, jnp.bfloat16).dtype == jnp.bfloat16


def test_concat_joins_along_contracted_and_free_axes():
    leaves = (made("int8"), normal(8, 4))
    wide = Concat(leaves, -1)
    assert (wide.shape, wide.dtype) == ((8, 10), jnp.float32)
    close(wide.product(normal(3, 8), einsum("bi", "io", "bo")), normal(3, 8) @ wide.materialise())
    tall = Concat((made("Sparse"), normal(2, 6)), -2)
    close(tall.product(normal(3, 10), einsum("bi", "io", "ob")), (normal(3, 10) @ tall.materialise()).T)
    assert tall.lookup(jnp.array([0]), -2) is NotImplemented
    assert tall.conv(normal(3, 10), Convolution("io", "bo", lambda x, w: x @ w)) is NotImplemented


@pytest.mark.parametrize(
    ("x", "w", "out"),
    [("bi", "io", "bo"), ("bi", "oi", "ob"), ("bhi", "hio", "bho"), ("bi", "hio", "b"), ("abc", "cbd", "da")],
)
def test_contract_equals_einsum(x, w, out):
    sizes = dict(zip("abcdhio", (2, 3, 4, 5, 2, 6, 7), strict=True))
    left, right = normal(*[sizes[i] for i in x]), normal(*[sizes[i] for i in w])
    close(contract(left, x, right, w, out), jnp.einsum(f"{x},{w}->{out}", left, right))


@pytest.mark.parametrize(("x", "out", "order"), [("bi", "bo", "down, up"), ("bo", "bi", "up, down")])
def test_chain_begins_with_the_factor_that_meets_x(x, out, order):
    c = einsum(x, "io", out)
    rank = c.fresh()
    assert rank not in x + "io"
    down, up = normal(8, 2), normal(2, 6)
    inputs = normal(5, 8 if "i" in x else 6)
    program = jax.make_jaxpr(lambda x: c.chain(x, (down, "i" + rank), (up, rank + "o")))(inputs)
    shapes = [eqn.outvars[0].aval.shape for eqn in program.eqns if eqn.primitive.name == "dot_general"]
    assert (5, 2) in shapes or (2, 5) in shapes, order
    assert (8, 6) not in shapes
    close(c.chain(inputs, (down, "i" + rank), (up, rank + "o")), c.equation(inputs, down @ up))


def test_contraction_labels_private_axes():
    assert einsum("bi", "io", "bo").labels((-2, None), "z") == "iz"


def test_a_weight_that_says_nothing_is_told_what_to_say():
    class Mute(Weight):
        base: object

    with pytest.raises(TypeError, match=r"Mute .* define axes\(\)"):
        Mute(jnp.ones(2)).axes()
    with pytest.raises(TypeError, match=r"Mute .* define materialise\(\)"):
        Mute(jnp.ones(2)).materialise()


def test_weights_are_pytrees_that_jit_grad_and_vmap_see_through():
    weight = Scaled(normal(8, 6), jnp.float32(2))
    c = einsum("bi", "io", "bo")
    gradient = jax.jit(jax.grad(lambda w: w.product(normal(3, 8), c).sum()))(weight)
    assert isinstance(gradient, Scaled)
    close(gradient.scale, (normal(3, 8) @ normal(8, 6)).sum())
    several = jax.vmap(lambda scale: Scaled(normal(8, 6), scale).materialise()[0, 0])(jnp.arange(3.0))
    close(several, normal(8, 6)[0, 0] * jnp.arange(3.0))

"""What `usage` reads from a function, and what `calibrate` measures in it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from user_models import MODELS, normal, of

from jaxbig.calibrate import NotMeasured, calibrate
from jaxbig.errors import UsageError
from jaxbig.usage import usage
from jaxbig.weight import Scaled

X = normal(5, 4)
IDS = jnp.array([[0, 2], [8, 1], [3, 3]])


def read(fn, *shapes, x=X):
    return usage(lambda params, x: fn(x, *params.values()), {f"w{i}": normal(*s) for i, s in enumerate(shapes)}, x)


def axes(use):
    return use.kind, use.in_axes, use.out_axes


KINDS = {
    "product": (lambda x, w: x @ w, (4, 6), ("product", (-2,), (-1,))),
    "product from the left": (lambda x, w: w @ x.T, (6, 4), ("product", (-1,), (-2,))),
    "transposed": (lambda x, w: x @ w.T, (6, 4), ("product", (-1,), (-2,))),
    "several axes": (lambda x, w: jnp.einsum("bij,ijop->bop", x.reshape(5, 2, 2), w), (2, 2, 3, 2),
                     ("product", (-4, -3), (-2, -1))),
    "heads": (lambda x, w: jnp.einsum("bhi,hio->bho", x.reshape(5, 2, 2), w), (2, 2, 3), ("product", (-2,), (-1,))),
    "lookup": (lambda x, w: jnp.take(w, jnp.array([0, 2]), axis=0), (3, 4), ("lookup", (-2,), (-1,))),
    "lookup of columns": (lambda x, w: jnp.take(w, jnp.array([0, 2]), axis=1), (3, 4), ("lookup", (-1,), (-2,))),
    "the same lookup in all of a stack": (lambda x, w: jax.vmap(lambda w: w[IDS])(w), (3, 9, 4),
                                          ("lookup", (-2,), (-3, -1))),
    "lookup in each of a stack": (lambda x, w: jax.vmap(lambda w, i: w[i], out_axes=1)(w, IDS), (3, 9, 4),
                                  ("lookup", (-2,), (-1,))),
    "lookup of columns, each layer its own": (lambda x, w: jax.vmap(lambda w, i: w[:, i])(w, IDS), (3, 4, 9),
                                              ("lookup", (-1,), (-2,))),
    "conv": (lambda x, w: lax.conv_general_dilated(x[None], w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")),
             (3, 4, 6), ("conv", (-3, -2), (-1,))),
    "other": (lambda x, w: x + w, (4,), ("other", (), ())),
    "scan over layers": (lambda x, w: lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0], (3, 4, 4),
                         ("product", (-2,), (-1,))),
    "vmap over a stack": (lambda x, w: jax.vmap(jnp.dot)(jnp.stack([x] * 3), w), (3, 4, 6),
                          ("product", (-2,), (-1,))),
    "one input to all of a stack": (lambda x, w: jax.vmap(lambda w: x @ w)(w), (3, 4, 6), ("product", (-2,), (-3, -1))),
    "one of a stack": (lambda x, w: x @ w[1], (3, 4, 6), ("product", (-2,), (-1,))),
    "in a while loop": (lambda x, w: lax.while_loop(lambda x: x.sum() < 0, lambda x: x @ w, x), (4, 4),
                        ("product", (-2,), (-1,))),
    "in a branch": (lambda x, w: lax.cond(x.sum() > 0, lambda x: x @ w, lambda x: x, x), (4, 4),
                    ("product", (-2,), (-1,))),
    "remat": (lambda x, w: jax.checkpoint(lambda x: x @ w)(x), (4, 6), ("product", (-2,), (-1,))),
    "scaled first": (lambda x, w: x @ (2 * w), (4, 6), ("product", (-2,), (-1,))),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_kind_and_axes(name):
    fn, shape, expected = KINDS[name]
    (use,) = read(fn, shape)["w0"]
    assert axes(use) == expected
    assert (use.shape, use.dtype) == (shape, jnp.float32)


def test_uses_name_the_primitive_the_groups_and_nothing_for_an_unused_leaf():
    uses = read(lambda x, b, s, unused: (x - b) * s, (4,), (4,), (2, 2))
    assert [uses[w][0].detail for w in ("w0", "w1")] == ["sub", "mul"]
    assert uses["w2"] == ()
    fn, params, args = of(nn.Conv(6, (3,), feature_group_count=2), normal(2, 7, 4))
    assert usage(fn, params, *args)["kernel"][0].groups == 2


def test_leaves_that_no_gradient_trains_are_left_out_and_weights_are_seen():
    params = {"n": jnp.arange(3), "w": Scaled(normal(4, 6), jnp.float32(2))}
    uses = usage(lambda params, x: x @ params["w"] + params["n"].sum(), params, X)
    assert list(uses) == ["w"]
    assert axes(uses["w"][0]) == ("product", (-2,), (-1,))


class Tied(nn.Module):
    @nn.compact
    def __call__(self, ids):
        table = nn.Embed(10, 8)
        return table.attend(nn.tanh(table(ids)))


def test_tied_table_has_both_uses():
    fn, params, args = of(Tied(), jnp.array([[1, 2]]))
    lookup, product = usage(fn, params, *args)["Embed_0/embedding"]
    assert axes(lookup) == ("lookup", (-2,), (-1,))
    assert axes(product) == ("product", (-1,), (-2,))
    assert (lookup.head, product.head) == (False, True)


def test_joined_gates_are_read_one_by_one_in_order_and_silently():
    fn, params, args = of(nn.RNN(nn.OptimizedLSTMCell(6)), normal(2, 3, 4))
    uses = usage(fn, params, *args)
    kernels = {path: its for path, its in uses.items() if path.endswith("kernel")}
    assert len(kernels) == 8
    for path, its in kernels.items():
        assert [axes(use) for use in its] == [("product", (-2,), (-1,))], path
    biases = [its for path, its in uses.items() if path.endswith("bias")]
    assert all(use.kind == "other" for its in biases for use in its)


class Residual(nn.Module):
    head: bool = True

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = x + nn.Dense(4)(nn.gelu(nn.Dense(8)(nn.LayerNorm()(x))))
        return nn.Dense(3, name="head")(nn.LayerNorm()(x)) if self.head else x


class TwoHeads(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(8)(x))
        return nn.log_softmax(nn.Dense(3, name="policy")(x)), nn.Dense(1, name="value")(x)[..., 0]


def heads(fn, params, args):
    return {path for path, its in usage(fn, params, *args).items() if any(use.head for use in its)}


HEADS = {
    "residual with a head": (lambda: of(Residual(), X), {"head/kernel"}),
    "residual without one": (lambda: of(Residual(head=False), X), set()),
    "two heads": (lambda: of(TwoHeads(), X), {"policy/kernel", "value/kernel"}),
    "graph network": (MODELS["graph network"], {"Dense_0/kernel"}),
    "MLP-mixer": (MODELS["MLP-mixer"], {"Dense_0/kernel"}),
    "seq2seq with attention": (MODELS["seq2seq with attention"], {"words/kernel"}),
    "transformer with a cache": (MODELS["transformer with a cache"], {"Embed_0/embedding"}),
    "nnx convnet": (MODELS["nnx convnet"], {"head/kernel"}),
}


@pytest.mark.parametrize("name", HEADS)
def test_head(name):
    make, expected = HEADS[name]
    assert heads(*make()) == expected


def test_nothing_is_computed():
    shapes = {"w": jax.ShapeDtypeStruct((1 << 20, 1 << 20), jnp.bfloat16)}
    uses = usage(lambda params, x: x @ params["w"], shapes, jax.ShapeDtypeStruct((1, 1 << 20), jnp.bfloat16))
    assert axes(uses["w"][0]) == ("product", (-2,), (-1,))


def moments_of(rows):
    rows = np.asarray(rows, np.float64).reshape(-1, rows.shape[-1])
    return len(rows), rows.sum(0), (rows**2).sum(0), rows.T @ rows


def assert_moments(ours, rows):
    for a, b in zip(ours, moments_of(rows), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)


W = normal(4, 4) / 2
WAYS = {
    "plain": lambda x, w: x @ w,
    "remat": jax.checkpoint(lambda x, w: x @ w),
    "vmap": lambda x, w: jax.vmap(lambda x: x @ w)(x),
    "branch taken": lambda x, w: lax.cond(x.sum() > -1e9, lambda x: x @ w, lambda x: x, x),
    "jit": jax.jit(jnp.dot),
}


@pytest.mark.parametrize("way", WAYS)
def test_calibrate_sums_over_batches(way):
    batches = [(X,), (X + 1,)]
    stats = calibrate(lambda params, x: WAYS[way](x, params["w"]), {"w": W}, batches, gram=True)
    assert_moments(stats["w"], np.concatenate([np.asarray(x) for (x,) in batches]))


def test_calibrate_without_gram_and_a_branch_not_taken():
    def fn(params, x):
        return lax.cond(x.sum() > 1e9, lambda x: x @ params["w"], lambda x: x, x)

    stats = calibrate(fn, {"w": W}, [(X,)])["w"]
    assert stats.gram is None
    assert (float(stats.count), float(jnp.abs(stats.square).max())) == (0.0, 0.0)


def test_calibrate_of_stacked_layers_and_of_one_shared_by_all():
    layers = normal(3, 4, 4) / 2

    def fn(params, x):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w @ params["shared"]), None), x, params["layers"])[0]

    stats = calibrate(fn, {"layers": layers, "shared": W}, [(X,)], gram=True)
    x, between = np.asarray(X, np.float64), []
    for i, w in enumerate(np.asarray(layers)):
        assert_moments([part[i] for part in stats["layers"]], x)
        between.append(x @ w)
        x = np.tanh(between[-1] @ W)
    assert_moments(stats["shared"], np.concatenate(between))


def test_calibrate_of_a_vmapped_stack_and_of_joined_weights():
    stack, inputs = normal(3, 4, 4), normal(3, 5, 4)
    stats = calibrate(lambda params, x: jax.vmap(jnp.dot)(x, params["w"]), {"w": stack}, [(inputs,)], gram=True)
    for i in range(3):
        assert_moments([part[i] for part in stats["w"]], inputs[i])
    joined = {"v": normal(2, 3), "w": normal(2, 3)}
    stats = calibrate(lambda p, x: x @ jnp.concatenate([p["v"], p["w"]]), joined, [(X,)], gram=True)
    assert_moments(stats["v"], X[:, :2])
    assert_moments(stats["w"], X[:, 2:])


@pytest.mark.parametrize("spec", [("NWC", "WIO", "NWC"), ("NCW", "OIW", "NCW"), ("NWC", "IOW", "NCW")])
def test_calibrate_sums_a_convolution_s_patches(spec):
    kernel = normal(*[{"W": 3, "I": 4, "O": 6}[axis] for axis in spec[1]])
    x = jnp.moveaxis(normal(2, 7, 4), (0, 1, 2), [spec[0].index(axis) for axis in "NWC"])

    def fn(params, x):
        return lax.conv_general_dilated(x, params["w"], (2,), ((1, 2),), dimension_numbers=spec)

    stats = calibrate(fn, {"w": kernel}, [(x,), (x + 1,)], gram=True)["w"]
    order = [spec[1].index(axis) for axis in spec[1] if axis != "O"]
    rows = []
    for batch in (x, x + 1):
        padded = np.pad(np.moveaxis(np.asarray(batch), [spec[0].index(axis) for axis in "NWC"], (0, 1, 2)),
                        ((0, 0), (1, 2), (0, 0)))  # fmt: skip
        patches = [padded[:, i : i + 3] for i in range(0, 8, 2)]  # [N, W, I]
        names = [spec[1][axis] for axis in order]
        rows += [np.moveaxis(p, (1, 2), (1 + names.index("W"), 1 + names.index("I"))).reshape(2, -1) for p in patches]
    count, total, square, gram = moments_of(np.concatenate(rows))
    assert stats.count == count
    assert stats.total.shape == tuple(kernel.shape[axis] for axis in order)
    np.testing.assert_allclose(stats.total.reshape(-1), total, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(stats.square.reshape(-1), square, rtol=1e-5)
    np.testing.assert_allclose(stats.gram, gram, rtol=1e-4, atol=1e-4)


UNMEASURED = {
    "an expanded weight": (lambda x, w: x @ (w * x.sum(0)[:, None]), (4, 6), "`mul`"),
    "a loop of unknown length": (lambda x, w: lax.while_loop(lambda x: x.sum() < 0, lambda x: x @ w, x), (4, 4),
                                 "`dot_general`"),
    "groups": (lambda x, w: lax.conv_general_dilated(x[None], w, (1,), "SAME", feature_group_count=2,
                                                     dimension_numbers=("NWC", "WIO", "NWC")), (3, 2, 6),
               "`conv_general_dilated`"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNMEASURED)
def test_calibrate_tells_what_it_does_not_measure(name):
    fn, shape, primitive = UNMEASURED[name]
    with pytest.warns(NotMeasured, match=rf"w is used for {primitive} at .*test_usage\.py:\d+") as caught:
        assert calibrate(lambda params, x: fn(x, params["w"]), {"w": normal(*shape)}, [(X,)]) == {}
    assert caught[0].filename == __file__


def test_calibrate_is_silent_about_what_is_only_added_or_looked_up():
    params = {"w": W, "position": normal(5, 4), "bias": normal(4), "table": normal(9, 4)}

    def fn(params, x):
        return (x + params["position"]) @ params["w"] + params["bias"] + params["table"][IDS[0, 1]]

    assert list(calibrate(fn, params, [(jnp.stack([X, X]),)])) == ["w"]


def test_calibrate_loses_no_batch_however_many_came_before():
    batches = [(jnp.full((1, 1), 4096.0),), (jnp.ones((1, 1)),)]  # 2**24 + 1 is no float32
    stats = calibrate(lambda params, x: x @ params["w"], {"w": jnp.ones((1, 1))}, batches)["w"]
    assert stats.square.item() == 2**24 + 1


def test_a_bar_in_a_name_is_no_join():
    params = {"a|b": W}
    (use,) = usage(lambda params, x: x @ params["a|b"], params, X)["a|b"]
    assert axes(use) == ("product", (-2,), (-1,))
    assert_moments(calibrate(lambda params, x: x @ params["a|b"], params, [(X,)], gram=True)["a|b"], X)
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec("d")
    local = jax.shard_map(lambda w, x: x @ w, mesh=mesh, in_specs=(jax.P(), rows), out_specs=rows)
    (use,) = usage(lambda params, x: local(params["a|b"], x), params, X)["a|b"]
    assert axes(use) == ("product", (-2,), (-1,))


def test_calibrate_needs_a_batch():
    with pytest.raises(UsageError, match="no batches; pass at least one"):
        calibrate(lambda params, x: x @ params["w"], {"w": W}, [])


class Normed(nn.Module):
    """Dense, BatchNorm twice, and a head: its statistics are results beside the logits."""

    @nn.compact
    def __call__(self, x, train):
        for i in range(2):
            x = nn.relu(
                nn.BatchNorm(use_running_average=not train, name=f"norm_{i}")(nn.Dense(4, name=f"dense_{i}")(x))
            )
        return nn.Dense(3, name="head")(x)


def test_results_beside_the_logits_make_no_heads():
    model = Normed()
    variables = model.init(jax.random.key(0), X, True)

    def fn(params, x, train):  # a flag among the arguments stays a flag
        return model.apply({**variables, "params": params}, x, train, mutable=["batch_stats"])

    assert heads(fn, variables["params"], (X, True)) == {"head/kernel"}
    cached = nn.MultiHeadDotProductAttention(num_heads=2, decode=True)
    variables = cached.init(jax.random.key(0), X[None], X[None])
    step = lambda params, x: cached.apply({**variables, "params": params}, x, x, mutable=["cache"])  # noqa: E731
    assert heads(step, variables["params"], (X[None, :1],)) == {"out/kernel"}


def test_a_shared_jitted_product_is_told_apart_by_its_calls():
    product = jax.jit(lambda x, w: x @ w)
    params = {name: jnp.eye(4) for name in ("body", "policy", "value")}

    def fn(params, x):
        h = jnp.tanh(product(x, params["body"]))
        return product(h, params["policy"]), product(h, params["value"])

    assert heads(fn, params, (X,)) == {"policy", "value"}


def test_a_bare_array_and_weights_in_other_arguments():
    (use,) = usage(lambda w, x: x @ w, jnp.ones((4, 3)), X)[""]
    assert (use.kind, use.in_axes, use.out_axes) == ("product", (-2,), (-1,))
    other = {"a": Scaled(jnp.ones((3, 3)), jnp.float32(2))}
    uses = usage(lambda p, x, other: (x @ p["a"]) @ other["a"], {"a": jnp.ones((4, 3))}, X, other)
    assert len(uses["a"]) == 1


def test_calibrate_refuses_what_does_not_add_up():
    both_ways = lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T  # noqa: E731
    with pytest.raises(UsageError, match=r"w is multiplied along axes .* do not add up"):
        calibrate(both_ways, {"w": jnp.ones((4, 4))}, [(X,)])
    with pytest.raises(UsageError, match=r"a batch is a tuple of .* such as \(x,\)"):
        calibrate(lambda p, x: x @ p["w"], {"w": jnp.ones((4, 3))}, [X])
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec("d")
    local = jax.shard_map(lambda w, x: x @ w, mesh=mesh, in_specs=(jax.P(), rows), out_specs=rows)
    with pytest.raises(UsageError, match="w is multiplied inside shard_map"):
        calibrate(lambda p, x: local(p["w"], x), {"w": jnp.ones((4, 3))}, [(X,)])


RESIDUAL = {
    "plain": (lambda p, x: x + x @ p["w"], True),
    "with a bias": (lambda p, x: x + (x @ p["w"] + p["b"]), True),
    "scaled, cast, dropped": (
        lambda p, x: x + jnp.where(x > 0, (x @ p["w"]).astype(jnp.bfloat16) * 2, 0).astype(x.dtype),
        True,
    ),
    "called": (lambda p, x: x + jax.jit(lambda x: jnp.einsum("bi,io->bo", x, p["w"]))(x), True),
    "under remat": (lambda p, x: jax.checkpoint(lambda x: x + x @ p["w"])(x), True),
    "a bias alone": (lambda p, x: x @ p["w"] + p["b"], False),
    "behind a nonlinearity": (lambda p, x: x + jnp.tanh(x @ p["w"]), False),
    "to itself, as rotary positions are": (lambda p, x: (y := x @ p["w"]) * 2 + jnp.roll(y, 1, axis=-1), False),
    "to another product of it": (lambda p, x: (y := x @ p["w"]) + y @ p["w2"], False),
}


@pytest.mark.parametrize("name", RESIDUAL)
def test_which_products_end_in_a_residual_stream(name):
    fn, expected = RESIDUAL[name]
    params, x = {"w": jnp.ones((4, 4)), "w2": jnp.ones((4, 4)), "b": jnp.ones(4)}, jnp.ones((2, 4))
    assert next(use.residual for use in usage(fn, params, x)["w"] if use.kind == "product") == expected

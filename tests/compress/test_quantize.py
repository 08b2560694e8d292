"""Quantisation against torch and brute force: codes, scales, packing, products."""

import itertools
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.codes import BITS, NF4, encode
from jaxbig.compress.merge import merge
from jaxbig.compress.prune import Sparse
from jaxbig.compress.quantize import quantize
from jaxbig.errors import UsageError, UserError
from jaxbig.lift import MaterialiseWarning, lift
from jaxbig.transform import chain
from jaxbig.tree import nbytes
from jaxbig.usage import usage

W = np.random.default_rng(0).normal(size=(12, 10)).astype(np.float32) + np.float32(0.3)
X = jnp.asarray(np.random.default_rng(1).normal(size=(3, 12)), jnp.float32)


def model(params, x):
    return jnp.tanh(x @ params["w"])


def quantised(array=W, **options):
    params = {"w": jnp.asarray(array)}
    return quantize(**options).init(None, params, usage(model, params, X[:, : array.shape[0]])).params["w"]


@pytest.fixture(scope="module")
def torch():
    module = pytest.importorskip("torch")
    warnings.filterwarnings("ignore", module="torch")
    return module


@pytest.mark.parity
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_int8_codes_are_torch_s(torch, per, symmetric):
    ours = quantised(format="int8", per=per, symmetric=symmetric)
    low, high = (W.min(0), W.max(0)) if per == "channel" else (W.min(), W.max())
    if symmetric:
        scale, zero, dtype = np.maximum(-low, high) / np.float32(127), np.zeros_like(low), torch.qint8
    else:
        scale = (np.maximum(high, 0) - np.minimum(low, 0)) / np.float32(255)
        zero, dtype = np.round(-np.minimum(low, 0) / scale), torch.quint8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch.tensor(W)
        if per == "channel":
            theirs = torch.quantize_per_channel(x, torch.tensor(scale), torch.tensor(zero), 1, dtype)
        else:
            theirs = torch.quantize_per_tensor(x, float(scale), int(zero), dtype)
        codes, values = theirs.int_repr().numpy(), theirs.dequantize().numpy()
    np.testing.assert_array_equal(ours.codes, codes)
    np.testing.assert_allclose(ours.materialise(), values, rtol=1e-6, atol=1e-7)
    assert ours.codes.dtype == codes.dtype


@pytest.mark.parity
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_int4_values_are_torch_s_fake_quantisation(torch, per, symmetric):
    ours = quantised(format="int4", per=per, symmetric=symmetric)
    low, high = (W.min(0), W.max(0)) if per == "channel" else (W.min(), W.max())
    if symmetric:
        scale, zero, ends = np.maximum(-low, high) / np.float32(7), np.zeros_like(low), (-7, 7)
    else:
        scale = (np.maximum(high, 0) - np.minimum(low, 0)) / np.float32(15)
        zero, ends = np.round(-np.minimum(low, 0) / scale), (0, 15)
    x = torch.tensor(W)
    if per == "channel":
        theirs = torch.fake_quantize_per_channel_affine(
            x, torch.tensor(scale), torch.tensor(zero.astype(np.int32)), 1, *ends
        )
    else:
        theirs = torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero), *ends)
    np.testing.assert_allclose(ours.materialise(), theirs.numpy(), rtol=1e-5, atol=1e-6)


def test_the_nf4_levels_are_the_normal_quantiles_of_the_paper():
    stats = pytest.importorskip("scipy.stats")
    offset = (1 / 32 + 1 / 30) / 2
    upper = stats.norm.ppf(np.linspace(1 - offset, 0.5, 9)[:-1])
    lower = -stats.norm.ppf(np.linspace(1 - offset, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([upper, [0.0], lower]))
    np.testing.assert_allclose(NF4, levels / levels.max(), atol=1e-6)


def test_nf4_takes_the_nearest_level():
    ours = quantised(format="nf4", group=4)
    blocks = W.reshape(3, 4, 10)
    largest = np.abs(blocks).max(1, keepdims=True)
    nearest = np.abs(blocks[..., None] / largest[..., None] - np.array(NF4)).argmin(-1)
    np.testing.assert_array_equal(ours.integers(), nearest.reshape(12, 10))
    np.testing.assert_allclose(ours.scale, largest[:, 0], rtol=1e-7)
    np.testing.assert_allclose(
        ours.materialise(), (np.array(NF4)[nearest] * largest).reshape(12, 10), rtol=1e-6, atol=1e-7
    )


CASES = [
    {"format": f, "per": per, "symmetric": symmetric, "group": 6}
    for f, per, symmetric in itertools.product(BITS, ("tensor", "channel", "group"), (True, False))
    if symmetric or f != "nf4"
]


@pytest.mark.parametrize(
    "options",
    # of whole channels and matrices the fast tier has one or the other
    [
        pytest.param(o, marks=[pytest.mark.slow] * (o["per"] != "group" and (o["per"] == "tensor") != o["symmetric"]))
        for o in CASES
    ],
    ids=lambda o: f"{o['format']}-{o['per']}-{'sym' if o['symmetric'] else 'asym'}",
)
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(shape, marks=[pytest.mark.slow] * (shape != (11, 9)))
        for shape in itertools.product((12, 11), (10, 9))
    ],
    ids=str,
)
def test_the_error_is_half_a_step_and_the_product_is_that_of_the_values(options, shape):
    weight = quantised(W[: shape[0], : shape[1]], **options)
    wide = np.asarray(weight.materialise())
    step = np.repeat(np.asarray(weight.scale), shape[0] // weight.scale.shape[0], 0)
    worst = 0.152 if options["format"] == "nf4" else 0.5001
    assert (np.abs(wide - W[: shape[0], : shape[1]]) <= worst * step + 1e-7).all()
    x = X[:, : shape[0]]
    y = jax.jit(lift(model, strict=True))({"w": weight}, x)
    np.testing.assert_allclose(y, model({"w": jnp.asarray(wide)}, x), rtol=1e-5, atol=1e-6)
    held = weight.codes.size
    odd = shape[0] % 2 and shape[1] % 2
    assert held == (wide.size if options["format"] == "int8" or odd else wide.size // 2)


def test_zeros_stay_zero_and_a_block_of_zeros_is_no_division_by_zero():
    array = W.copy()
    array[:, 3] = 0
    array[2] = 0
    for options in CASES:
        wide = quantised(array, **options).materialise()
        assert bool(jnp.isfinite(wide).all())
        assert float(jnp.abs(wide[:, 3]).max()) == float(jnp.abs(wide[2]).max()) == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_logical_dtype_is_the_array_s(dtype):
    weight = quantised(jnp.asarray(W, dtype), format="int8")
    assert weight.dtype == weight.materialise().dtype == jnp.dtype(dtype)
    assert weight.scale.dtype == jnp.float32


def test_encode_stacks_as_it_encodes_layers():
    stack = jnp.stack([jnp.asarray(W), 2 * jnp.asarray(W)])
    whole = encode(stack, "int4", True, (2, 1, 10), -2)
    for i in range(2):
        one = encode(stack[i], "int4", True, (1, 10), -2)
        np.testing.assert_array_equal(whole.codes[i], one.codes)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: quantize("int3"), "format='int3'; it is one of int8, int4, nf4"),
        (lambda: quantize("int8", per="row"), "per='row'"),
        (lambda: quantize("int4", group=0), "group=0; it is a whole number"),
        (lambda: quantize("int4", group=2.0), "group=2.0; it is a whole number"),
        (lambda: quantize("nf4", symmetric=False), "nf4 has no asymmetric form"),
        (lambda: quantize("int8", where="n").init(None, {"n": jnp.arange(3)}, {}), "n is no array of floating numbers"),
        (
            lambda: chain(quantize("int8", where="w"), quantize("nf4", where="w")).init(None, {"w": X}, {}),
            "w is quantised already (Quantized int8); quantise once, or merge() it first",
        ),
    ],
)  # fmt: skip
def test_errors_are_one_clear_line(make, words):
    with pytest.raises(UsageError, match=r"^[^\n]*$") as caught:
        make()
    assert words in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_name_and_masked_entries_are_not_looked_at(bad):
    params = {"ok": jnp.ones((4, 4)), "bad": jnp.ones((4, 4)).at[1, 2].set(bad)}
    with pytest.raises(UserError, match="bad holds NaN or infinity"):
        quantize("int8", where=".*").init(None, params, {})
    masked = Sparse(params["bad"], jnp.isfinite(params["bad"]), "some")
    assert bool(jnp.isfinite(quantize("int8", where="w").init(None, {"w": masked}, {}).params["w"].materialise()).all())
    jax.jit(lambda params: quantize("int8", where=".*").init(None, params, {}).params)(params)  # not seen under jit


def test_merging_allows_another_round():
    params = {"w": jnp.asarray(W)}
    once = merge(quantize("int8", where="w").init(None, params, {}).params)
    again = quantize("int8", where="w").init(None, once, {}).params["w"]
    np.testing.assert_allclose(again.materialise(), once["w"], rtol=1e-5, atol=1e-6)


def test_masked_entries_do_not_widen_the_scales():
    leaf = Sparse(jnp.array([[100.0, 100.0], [1.0, -0.7]]), jnp.array([[False, False], [True, True]]), "50%")
    found = quantize("int4", per="channel", where="w").init(None, {"w": leaf}, {}).params["w"].materialise()
    np.testing.assert_allclose(found, [[0, 0], [1.0, -0.7]], atol=0.5 / 7)


def test_rows_of_a_packed_axis_of_two_are_the_right_ones():
    table = {"t": jnp.array([[1.0, 2, 3, 4], [-1, -2, -3, -4]])}
    split = quantize("int4", where="t").init(None, table, {})
    assert split.params["t"].packed == -2
    with pytest.warns(MaterialiseWarning, match="t: Quantized int4"):
        rows = lift(lambda p, ids: jnp.take(p["t"], ids, axis=0))(split.params, jnp.array([1, 0, 1]))
    np.testing.assert_allclose(rows[:, 0], [-1, 1, -1], atol=0.1)


def test_float16_sums_stay_in_range():
    params, x = {"w": jnp.full((1024, 4), 0.01, jnp.float16)}, jnp.full((2, 1024), 4, jnp.float16)
    fn = lambda p, x: x @ p["w"]  # noqa: E731
    split = quantize("int8").init(None, params, usage(fn, params, x))
    np.testing.assert_allclose(lift(fn)(split.params, x), fn(params, x), rtol=1e-2)


@pytest.mark.parametrize(
    ("shape", "scales"),
    [((97, 64), (1, 64)), ((96, 64), (2, 64)), pytest.param((128, 64), (2, 64), marks=pytest.mark.slow)],
)
def test_runs_of_a_length_without_divisors_are_whole_axes(shape, scales):
    params = {"w": jnp.ones(shape)}
    uses = usage(lambda p, x: x @ p["w"], params, jnp.ones((1, shape[0])))
    leaf = quantize("int4").init(None, params, uses).params["w"]
    assert leaf.scale.shape == scales
    assert nbytes(leaf) < 0.6 * params["w"].size + 4 * leaf.scale.size + 64


def test_runs_of_small_kernels_go_over_all_inputs():
    conv = nn.Conv(32, (3, 3), use_bias=False)
    params = conv.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))["params"]
    uses = usage(lambda p, x: conv.apply({"params": p}, x), params, jnp.ones((1, 8, 8, 1)))
    assert quantize("int4").init(None, params, uses).params["kernel"].scale.shape == (1, 1, 1, 32)


def test_a_scalar_is_refused():
    with pytest.raises(UsageError, match="s is a scalar"):
        quantize(where="s").init(None, {"s": jnp.ones(())}, {})

"""PiSSA, OLoRA and LoftQ: their starts against PEFT and NumPy, their training against PEFT in float64, their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import peft_pair
import pytest

from jaxbig.codes import NF4, Quantized
from jaxbig.compress.merge import merge
from jaxbig.compress.quantize import quantize
from jaxbig.errors import UsageError, UserError
from jaxbig.lift import lift
from jaxbig.transform import chain
from jaxbig.tune.loftq import loftq
from jaxbig.tune.lora import lora
from jaxbig.tune.olora import olora
from jaxbig.tune.pissa import pissa, randomised
from jaxbig.usage import usage

KEY = jax.random.key(0)
RANK, ALPHA = 3, 4.5
METHODS = {
    "pissa": (pissa(RANK, ALPHA), "pissa"),
    "pissa of many iterations": (pissa(RANK, ALPHA, niter=60), "pissa_niter_60"),
    "olora": (olora(RANK, ALPHA), "olora"),
}
RANDOM = np.random.default_rng(0)
W = RANDOM.normal(size=(12, 9))


def started(method, params):
    return method.init(KEY, params, usage(peft_pair.ours, params, jnp.ones((2, 12))))


def one_layer(params, x):
    return jnp.tanh(x @ params["w"])


def of_one_layer(method, w=W, dtype=None):
    params = {"w": jnp.asarray(w, dtype)}
    return method.init(KEY, params, usage(one_layer, params, jnp.ones((2, w.shape[-2]), dtype)))


@pytest.mark.parity
@pytest.mark.parametrize("name", METHODS)
def test_the_start_is_peft_s(name):
    method, theirs = METHODS[name]
    the = peft_pair.pair("LoraConfig", double=False, r=RANK, lora_alpha=ALPHA, init_lora_weights=theirs)
    with jax.enable_x64(True):
        split = started(method, jax.tree.map(jnp.asarray, the.tree))
        tight = {"rtol": 1e-4, "atol": 1e-5}  # PEFT computes these in float32, whatever the base
        for path, parts in peft_pair.trained(the.model).items():
            ours = split.train[path]
            np.testing.assert_allclose(ours["a"] @ ours["b"], parts["a"] @ parts["b"], **tight)
            # singular vectors have no sign
            sign = np.sign((np.asarray(ours["a"]) * parts["a"]).sum(0)) if name != "olora" else np.ones(RANK)
            np.testing.assert_allclose(ours["a"] * sign, parts["a"], **tight)
            np.testing.assert_allclose(ours["b"] * sign[:, None], parts["b"], **tight)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tight), split.params, peft_pair.tree_of(the.model))


@pytest.mark.parity
@pytest.mark.parametrize("name", METHODS)
def test_outputs_and_gradients_are_peft_s(name):
    method, theirs = METHODS[name]
    the = peft_pair.pair("LoraConfig", double=False, r=RANK, lora_alpha=ALPHA, init_lora_weights=theirs)
    peft_pair.stir(the)
    expected, train, grads = peft_pair.theirs(the), peft_pair.trained(the.model), peft_pair.trained(the.model, True)
    with jax.enable_x64(True):
        base, x = jax.tree.map(jnp.asarray, (peft_pair.tree_of(the.model), the.x))
        split = started(method, base)._replace(params=base)  # PEFT's own residual

        def loss(train):
            y = lift(peft_pair.ours, strict=True)(method.apply(split._replace(train=train)), x)
            return (y**2).mean(), y

        found, y = jax.grad(loss, has_aux=True)(jax.tree.map(jnp.asarray, train))
        np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-12)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), found, grads)


@pytest.mark.parametrize("shape", [(12, 9), pytest.param((9, 12), marks=pytest.mark.slow), (2, 9, 12)])
def test_pissa_s_start_is_numpy_s_to_float64(shape):
    w = RANDOM.normal(size=shape)
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    principal = (u[..., :RANK] * s[..., None, :RANK]) @ vt[..., :RANK, :]
    with jax.enable_x64(True):
        params = {"w": jnp.asarray(w)}
        fn = lambda p, x: jnp.tanh(jnp.einsum("...bi,...io->...bo", x, p["w"]))  # noqa: E731
        method = pissa(RANK, ALPHA, "w")
        split = method.init(None, params, usage(fn, params, jnp.ones((*shape[:-2], 4, shape[-2]))))
        a, b = split.train["w"]["a"], split.train["w"]["b"]
        np.testing.assert_allclose(ALPHA / RANK * a @ b, principal, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(split.params["w"], w - principal, rtol=1e-9, atol=1e-11)
        # its singular values are shared evenly by A and B
        shared = np.linalg.norm(a, axis=-2)
        np.testing.assert_allclose(shared, np.sqrt(s[..., :RANK] * RANK / ALPHA), rtol=1e-9)
        np.testing.assert_allclose(shared, np.linalg.norm(b, axis=-1), rtol=1e-9)
        np.testing.assert_allclose(merge(method.apply(split))["w"], w, rtol=1e-12, atol=1e-13)


@pytest.mark.parity
@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (9, 9)])
@pytest.mark.parametrize("niter", [0, 2])
def test_the_randomised_decomposition_is_torch_s(shape, niter, monkeypatch):
    torch = pytest.importorskip("torch")
    w = RANDOM.normal(size=shape)
    with jax.enable_x64(True):
        u, s, vt = map(np.asarray, randomised(KEY, jnp.asarray(w), RANK, niter))
        first = np.asarray(jax.random.normal(KEY, (min(shape), RANK), jnp.float64))
    monkeypatch.setattr(torch, "randn", lambda *size, **_: torch.tensor(first))
    their_v, their_s, their_u = torch.svd_lowrank(torch.tensor(w.T), RANK, niter)  # of [O, I], as PEFT has it
    np.testing.assert_allclose(s, their_s.numpy(), rtol=1e-9)
    expected = (their_u * their_s) @ their_v.T
    np.testing.assert_allclose((u * s) @ vt, expected.numpy(), rtol=1e-9, atol=1e-11)


def by_numpy(w, group, iterations):
    """LoftQ of [I, O] with nf4 in groups along I: codes' values and the update."""
    levels, update = np.array(NF4), 0.0
    for _ in range(iterations):
        blocks = (w - update).reshape(-1, group, w.shape[1])
        top = np.abs(blocks).max(1, keepdims=True).astype(np.float32).astype(np.float64)
        nearest = np.abs(blocks[..., None] / top[..., None] - levels).argmin(-1)
        q = (levels[nearest] * top).reshape(w.shape)
        u, s, vt = np.linalg.svd(w - q, full_matrices=False)
        update = (u[:, :RANK] * s[:RANK]) @ vt[:RANK]
    return q, update


@pytest.mark.parametrize("iterations", [1, 4])
def test_loftq_is_the_paper_s_algorithm_in_numpy(iterations):
    q, update = by_numpy(W, 4, iterations)
    with jax.enable_x64(True):
        method = loftq(RANK, ALPHA, "nf4", 4, iterations, "w")
        split = of_one_layer(method, dtype=jnp.float64)
        a, b = split.train["w"]["a"], split.train["w"]["b"]
        np.testing.assert_allclose(split.params["w"].materialise(), q, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(ALPHA / RANK * a @ b, update, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=1), rtol=1e-9)
        np.testing.assert_allclose(merge(method.apply(split))["w"], q + update, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("format", ["nf4", pytest.param("int4", marks=pytest.mark.slow), "int8"])
def test_loftq_is_nearer_to_the_weight_than_codes_alone_and_nearer_with_more_iterations(format):  # noqa: A002
    w = np.random.default_rng(3).normal(size=(64, 48)).astype(np.float32)
    error = lambda method: float(np.linalg.norm(merge(method.apply(of_one_layer(method, w)))["w"] - w))  # noqa: E731
    codes = error(quantize(format, where="w"))
    once, more = (error(loftq(8, format=format, iterations=n, where="w")) for n in (1, 5))
    assert more < once < codes


def test_loftq_s_codes_are_quantize_s():
    ours = of_one_layer(loftq(RANK, where="w"), dtype=jnp.bfloat16).params["w"]
    theirs = of_one_layer(quantize("nf4", where="w"), dtype=jnp.bfloat16).params["w"]
    assert isinstance(ours, Quantized)
    assert ours.dtype == jnp.bfloat16
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_olora_s_rows_of_b_are_orthonormal_whatever_the_scale():
    with jax.enable_x64(True):
        split = of_one_layer(olora(RANK, ALPHA, "w"), dtype=jnp.float64)
        a, b = split.train["w"]["a"], split.train["w"]["b"]
        np.testing.assert_allclose(b @ b.T, np.eye(RANK), atol=1e-12)
        np.testing.assert_allclose(a, W @ b.T, rtol=1e-9, atol=1e-12)  # what goes along them
        np.testing.assert_allclose(split.params["w"], W - ALPHA / RANK * a @ b, rtol=1e-9, atol=1e-12)


def test_qpissa_is_a_chain_whose_codes_are_the_residual_s():
    whole = chain(pissa(RANK, where="w"), quantize("nf4", group=4, where="w"))
    split = of_one_layer(whole)
    residual = of_one_layer(pissa(RANK, where="w")).params
    codes = of_one_layer(quantize("nf4", group=4, where="w"), residual["w"]).params
    jax.tree.map(np.testing.assert_array_equal, split.params, codes)
    error = lambda split, method: np.linalg.norm(merge(method.apply(split))["w"] - W)  # noqa: E731
    plain = chain(quantize("nf4", group=4, where="w"), lora(RANK, where="w"))
    assert error(split, whole) < error(of_one_layer(plain), plain)


@pytest.mark.parametrize("method", [pissa, olora, loftq])
def test_what_cannot_be_taken_apart_is_refused(method):
    with pytest.raises(
        UsageError, match=r"rank=10, but w is a matrix of 12 x 9; use at most 9 there, as in rank={'w': 9,"
    ):
        of_one_layer(method(10, where="w"))
    with pytest.raises(UsageError, match=r"alpha=-1\.0; it is larger than 0"):
        of_one_layer(method(2, -1.0, where="w"))
    with pytest.raises(UserError, match="w holds NaN or infinity"):
        of_one_layer(method(2, where="w"), np.full((4, 3), np.nan))
    with pytest.raises(UsageError, match=r"w is a Quantized int8, and .* starts from a plain array"):
        of_one_layer(chain(quantize("int8", where="w"), method(2, where="w")))


def test_arguments_without_sense_are_refused():
    with pytest.raises(UsageError, match="niter=-1; it is None, or a whole number"):
        pissa(niter=-1)
    with pytest.raises(UsageError, match="format='fp4'; it is one of int8, int4, nf4"):
        loftq(format="fp4")
    with pytest.raises(UsageError, match="iterations=0; it is a whole number"):
        loftq(iterations=0)

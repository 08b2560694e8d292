"""BOFT against PEFT in float64, and against the butterfly written out as matrices."""

import itertools
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.compress.merge import merge
from jaxbig.errors import UsageError
from jaxbig.lift import lift
from jaxbig.tune.boft import boft
from jaxbig.usage import usage

INPUTS, OUTPUTS, ROWS = 32, 9, 5


def ours(params, x):
    return jnp.tanh(x @ params["w"] + params["b"])


def rotation(skew, size):
    """B_m ... B_1 as the paper draws it: of each factor the permutation, and blocks by the Cayley transform."""
    whole = np.eye(INPUTS)
    for i, blocks in enumerate(skew):
        diagonal = np.zeros((INPUTS, INPUTS))
        for j, entries in enumerate(blocks):
            q = np.zeros((size, size))
            q[np.triu_indices(size, 1)] = entries
            q = q - q.T
            at = slice(j * size, (j + 1) * size)
            diagonal[at, at] = (np.eye(size) + q) @ np.linalg.inv(np.eye(size) - q)
        half, run = size // 2, size * 2**i
        places = itertools.product(range(0, INPUTS, run), (0, 1), range(2**i), range(half))
        order = [start + pair * size + parity * half + r for start, parity, pair, r in places]
        p = np.eye(INPUTS)[order] if i else np.eye(INPUTS)
        whole = p @ diagonal @ p.T @ whole
    return whole


def stirred(factors, block=4):
    random = np.random.default_rng(factors)
    params = {"w": jnp.asarray(random.normal(size=(INPUTS, OUTPUTS))), "b": jnp.asarray(random.normal(size=OUTPUTS))}
    x = jnp.asarray(random.normal(size=(ROWS, INPUTS)))
    method = boft(block=block, factors=factors, where="w")
    split = method.init(None, params, usage(ours, params, x))
    train = jax.tree.map(lambda leaf: leaf + 0.3 * random.normal(size=leaf.shape), split.train)
    return method, params, x, split._replace(train=train)


@pytest.mark.parametrize("factors", [pytest.param(n, marks=[pytest.mark.slow] * (n != 2)) for n in (1, 2, 3, 4)])
def test_it_is_the_butterfly_written_out_and_orthogonal(factors):
    with jax.enable_x64(True):
        method, params, _, split = stirred(factors)
        skew, gain = (np.asarray(split.train["w"][part]) for part in ("skew", "gain"))
        assert skew.shape == (factors, 8, 6)
        r = rotation(skew, 4)
        np.testing.assert_allclose(r @ r.T, np.eye(INPUTS), atol=1e-12)
        np.testing.assert_allclose(merge(method.apply(split))["w"], r @ params["w"] * gain, rtol=1e-10, atol=1e-12)
        assert (np.abs(r) > 1e-12).sum(1).max() == 4 * 2 ** (factors - 1)  # inputs that one input is mixed with


def test_factors_and_blocks_give_way_to_the_inputs():
    for inputs, found in {24: (2, 6, 6), 12: (2, 6, 1), 18: (1, 2, 36), 20: (2, 10, 1), 5: (1, 1, 10)}.items():
        block = 9 if inputs == 18 else 5
        params, x = {"w": jnp.ones((inputs, 3))}, jnp.ones((2, inputs))
        split = boft(block=block, where="w").init(None, params, usage(lambda p, x: x @ p["w"], params, x))
        assert split.train["w"]["skew"].shape == found, inputs


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: boft(block=1), "block=1"),
        (lambda: boft(factors=0), "factors=0"),
        (lambda: boft(block=4, where="w").init(None, *seven()), "w has 7 inputs, which no block of up to 4 divides"),
    ],
)
def test_errors_are_one_clear_line(make, words):
    with pytest.raises(UsageError, match=r"^[^\n]*$") as caught:
        make()
    assert words in str(caught.value)


def seven():
    params, x = {"w": jnp.ones((7, 3))}, jnp.ones((2, 7))
    return params, usage(lambda p, x: x @ p["w"], params, x)


def on_the_diagonal(blocks):
    """What PEFT's CUDA kernel computes: [m, b, k, k] -> [m, n, n]."""
    import torch

    return torch.stack([torch.block_diag(*factor) for factor in blocks])


def off_the_diagonal(grad, blocks):
    import torch

    count, size = blocks.shape[1:3]
    return torch.stack([torch.stack([g[j * size :, j * size :][:size, :size] for j in range(count)]) for g in grad])


KERNEL = types.SimpleNamespace(
    forward=lambda blocks: [on_the_diagonal(blocks)], backward=lambda grad, blocks: [off_the_diagonal(grad, blocks)]
)


@pytest.mark.parity
@pytest.mark.parametrize(("factors", "kernel"), [(1, None), (1, KERNEL), (2, KERNEL), (3, KERNEL)])
def test_value_and_gradients_are_peft_s(factors, kernel, monkeypatch):
    """Without its CUDA kernel PEFT knows one factor; here one in torch stands in its place where there are more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
        from peft.tuners.boft import layer

    monkeypatch.setattr(layer, "get_fbd_cuda", lambda: kernel)
    with jax.enable_x64(True):
        method, params, x, split = stirred(factors)
        base = torch.nn.Sequential()
        base.add_module("w", torch.nn.Linear(INPUTS, OUTPUTS))
        base.add_module("tanh", torch.nn.Tanh())
        config = peft.BOFTConfig(target_modules=["w"], boft_block_size=4, boft_n_butterfly_factor=factors)
        model = peft.get_peft_model(base, config).double()
        tensors = {key.split(".")[-2]: tensor for key, tensor in model.named_parameters() if tensor.requires_grad}
        skew, gain = (np.asarray(split.train["w"][part]) for part in ("skew", "gain"))
        a = np.random.default_rng(9).normal(size=(factors, 8, 4, 4))  # what is symmetric in A does not matter
        a = (a + a.swapaxes(-1, -2)) / 2
        rows, columns = np.triu_indices(4, 1)
        a[..., rows, columns] -= skew
        a[..., columns, rows] += skew
        with torch.no_grad():
            tensors["boft_R"].copy_(torch.tensor(a))
            tensors["boft_s"].copy_(torch.tensor(gain[:, None]))
            linear = model.base_model.model.w.base_layer
            linear.weight.copy_(torch.tensor(np.asarray(params["w"]).T))
            linear.bias.copy_(torch.tensor(np.asarray(params["b"])))
        expected = model(torch.tensor(np.asarray(x)))
        (expected**2).mean().backward()

        def loss(train):
            y = lift(ours, strict=True)(method.apply(split._replace(train=train)), x)
            return (y**2).mean(), y

        grads, y = jax.grad(loss, has_aux=True)(split.train)
        np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(grads["w"]["gain"], tensors["boft_s"].grad.numpy().ravel(), rtol=1e-8, atol=1e-11)
        of_a = tensors["boft_R"].grad.numpy()
        theirs = of_a[..., columns, rows] - of_a[..., rows, columns]  # Q = (A^T - A) / 2
        np.testing.assert_allclose(grads["w"]["skew"], theirs, rtol=1e-8, atol=1e-11)


@pytest.mark.parity
def test_peft_without_a_compiler_takes_the_path_that_it_is_compared_on():
    """Whether or not PEFT finds a compiler for its kernel, nothing above asks for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("peft")
        torch = pytest.importorskip("torch")
        from peft.tuners.boft import layer
    if torch.cuda.is_available():
        pytest.skip("a machine with CUDA builds the kernel")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert layer.get_fbd_cuda() is None
    assert any("boft_n_butterfly_factor to 1" in str(warning.message) for warning in said)

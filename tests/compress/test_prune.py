"""Pruning against torch's and brute force; masks that stay."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.compress.merge import merge
from jaxbig.compress.prune import prune
from jaxbig.compress.quantize import quantize
from jaxbig.errors import UsageError
from jaxbig.transform import chain
from jaxbig.tune.full import full
from jaxbig.usage import usage

random = np.random.default_rng(0)
PARAMS = {"a": random.normal(size=(8, 12)), "b": 3 * random.normal(size=(12, 6)), "head": random.normal(size=(6, 5))}
PARAMS = {name: jnp.asarray(value, jnp.float32) for name, value in PARAMS.items()}
X = jnp.ones((2, 8))


def model(params, x):
    return jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"]) @ params["head"]


USES = usage(model, PARAMS, X)


def masks(method, params=PARAMS, uses=USES):
    left = method.init(None, params, uses).params
    return {name: np.asarray(leaf.mask) for name, leaf in left.items() if hasattr(leaf, "mask")}


@pytest.fixture(scope="module")
def torch_masks():
    """``(global?, share) -> masks`` by torch.nn.utils.prune."""
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.nn.utils import prune as theirs

    def run(together, share):
        layers = {name: torch.nn.Linear(*PARAMS[name].shape, bias=False) for name in ("a", "b")}
        for name, layer in layers.items():
            layer.weight.data = torch.tensor(np.asarray(PARAMS[name]).T.copy())
        if together:
            pairs = [(layer, "weight") for layer in layers.values()]
            theirs.global_unstructured(pairs, pruning_method=theirs.L1Unstructured, amount=share)
        else:
            for layer in layers.values():
                theirs.l1_unstructured(layer, "weight", amount=share)
        return {name: layer.weight_mask.numpy().T.astype(bool) for name, layer in layers.items()}

    return run


@pytest.mark.parity
@pytest.mark.parametrize("share", [0.1, 0.5, 0.83])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_masks_are_torch_s(torch_masks, scope, share):
    ours, theirs = masks(prune(share, scope=scope)), torch_masks(scope == "global", share)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize(("pattern", "n", "m"), [("2:4", 2, 4), ("1:4", 1, 4), ("3:4", 3, 4), ("1:2", 1, 2)])
def test_n_of_m_keeps_the_largest_of_each_run_of_inputs(pattern, n, m):
    ours = masks(prune(pattern=pattern))
    for name in ("a", "b"):
        weight = np.abs(np.asarray(PARAMS[name]))
        expected = np.zeros(weight.shape, bool)
        for column in range(weight.shape[1]):
            for start in range(0, weight.shape[0], m):
                best = np.argsort(-weight[start : start + m, column], kind="stable")[:n]
                expected[start + best, column] = True
        np.testing.assert_array_equal(ours[name], expected)


def test_exactly_the_share_goes_even_among_equals():
    mask = masks(prune(0.3, where="w"), {"w": jnp.ones((5, 4))}, {})["w"]
    assert mask.sum() == 14


def test_each_layer_of_a_stack_loses_the_same_share():
    stack = {"w": jnp.stack([PARAMS["a"], 100 * PARAMS["a"]])}
    uses = usage(lambda p, x: jax.lax.scan(lambda x, w: (x, jnp.tanh(x @ w)), x, p["w"])[1], stack, X)
    mask = masks(prune(0.5, scope="layer", where="w"), stack, uses)["w"]
    assert mask.reshape(2, -1).sum(1).tolist() == [48, 48]
    assert masks(prune(0.5, where="w"), stack, uses)["w"][0].sum() < 10


def test_the_head_and_axes_that_do_not_divide_are_left_by_default():
    assert set(masks(prune(0.5))) == {"a", "b"}
    assert set(masks(prune(pattern="3:8"))) == {"a"}


def test_the_mask_survives_training_merging_and_quantising():
    method = chain(prune(0.5), full())
    split = method.init(None, PARAMS, USES)
    mask = split.params["a"].mask
    moved = split._replace(train=jax.tree.map(lambda leaf: leaf + 1, split.train))
    merged = merge(method.apply(moved))
    np.testing.assert_array_equal(merged["a"] == 0, ~mask)
    np.testing.assert_allclose(merged["a"][mask], PARAMS["a"][mask] + 1)
    for form in ("int8", "nf4"):
        codes = merge(chain(prune(0.5), quantize(form)).init(None, PARAMS, USES).params)
        assert bool((codes["a"][~mask] == 0).all())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (prune, "give either sparsity=0.8, say, or pattern='2:4'"),
        (lambda: prune(0.5, "2:4"), "give either"),
        (lambda: prune(1.5), "sparsity=1.5; it lies between 0 and 1"),
        (lambda: prune(0.5, scope="model"), "scope='model'"),
        (lambda: prune(pattern="4:2"), "pattern='4:2'; it reads N:M"),
        (lambda: prune(pattern="two"), "pattern='two'"),
        (lambda: masks(prune(pattern="2:5", where="a")), "a has 8 inputs, which 5 does not divide"),
    ],
)
def test_errors_are_one_clear_line(make, words):
    with pytest.raises(UsageError, match=r"^[^\n]*$") as caught:
        make()
    assert words in str(caught.value)


def test_each_layer_of_a_stack_in_the_middle_loses_its_share():
    params = {
        "w": jnp.arange(1.0, 33).reshape(4, 2, 4).transpose(1, 0, 2)
    }  # head 1 holds the larger entries of each row
    params = {"w": params["w"] * jnp.array([1.0, 100.0])[:, None, None]}
    params = {"w": params["w"].transpose(1, 0, 2)}  # [inputs, heads, outputs]
    fn = lambda p, x: jnp.einsum("bhi,iho->bho", x, p["w"])  # noqa: E731
    uses = usage(fn, params, jnp.ones((1, 2, 4)))
    split = prune(0.5, scope="layer", where="w").init(None, params, uses)
    assert split.params["w"].mask.sum((0, 2)).tolist() == [8, 8]

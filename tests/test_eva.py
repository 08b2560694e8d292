"""EVA against PEFT: components, ranks and scales; stacks, chains, its errors."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import peft_pair
import pytest
from law_models import case

from jaxbig.calibrate import NotMeasured, calibrate
from jaxbig.compress.quantize import quantize
from jaxbig.errors import UsageError
from jaxbig.eva import eva
from jaxbig.lift import lift
from jaxbig.registry import build
from jaxbig.transform import chain
from jaxbig.tune.lora import lora
from jaxbig.usage import usage

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
# Inputs around a mean: varying in some directions more than in others, or evenly, so that lin1 gets fewer ranks.
X = RANDOM.normal(size=(40, 12)) * np.array([4, 3, 2.5, *np.linspace(0.8, 0.1, 9)]) + 1.5
EVEN = RANDOM.normal(size=(400, 12)) + 1.5


def of(options, tree=None, dtype=jnp.float64, x=X):
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree or peft_pair.pair("LoraConfig").tree)
    x = jnp.asarray(x, dtype)
    uses, stats = usage(peft_pair.ours, params, x), calibrate(peft_pair.ours, params, [(x,)], gram=True)
    return eva(stats, params, uses, **options), params, uses, stats


@pytest.mark.parity
@pytest.mark.parametrize(
    ("x", "rank", "options", "ranks"),
    [
        (X, 2, {"rho": 1.0}, [2, 2]),
        (EVEN, 2, {"rho": 1.0}, [2, 2]),
        (EVEN, 2, {"rho": 2.0}, [1, 3]),
        (EVEN, 2, {"rho": 2.0, "whiten": True}, [1, 3]),
        (EVEN, 1, {"rho": 2.0}, [2]),
    ],
)
def test_components_ranks_and_scales_are_peft_s(x, rank, options, ranks, monkeypatch):
    the = theirs_of(x, rank, options, monkeypatch)
    theirs = peft_pair.trained(the.model)
    scales = {f"{name.split('.')[-1]}/kernel": module.scaling["default"]
              for name, module in the.model.named_modules() if hasattr(module, "scaling")}  # fmt: skip
    with jax.enable_x64(True):
        method, params, uses, _ = of({"rank": rank, "alpha": 3.0, **options}, the.tree, x=x)
        split = method.init(None, params, uses)
        assert jax.tree.map(jnp.shape, split.train) == jax.tree.map(np.shape, theirs)
        assert [parts["a"].shape[-1] for parts in split.train.values()] == ranks
        for path, parts in theirs.items():
            low = method.apply(split)[path.split("/")[0]]["kernel"]
            # PEFT goes over the batch twice, and takes the singular values of both for its whitening
            twice = 2**0.25 if options.get("whiten") else 1
            np.testing.assert_allclose(low.a, twice * parts["a"], rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(low.b, 0)
            np.testing.assert_allclose(low.scale, scales[path], rtol=1e-12)


def theirs_of(x, rank, options, monkeypatch):
    """A PEFT model with its EVA start, in float32 as PEFT computes it, its random decomposition made a whole one."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")

    def whole(array, q, niter):
        u, s, vt = torch.linalg.svd(array, full_matrices=False)
        return u[:, :q], s[:q], vt[:q].T

    monkeypatch.setattr(torch, "svd_lowrank", whole)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.EvaConfig(**options)
        the = peft_pair.pair("LoraConfig", r=rank, lora_alpha=3.0, init_lora_weights="eva", eva_config=config)
        the.model.float()
        peft.initialize_lora_eva_weights(
            the.model, [torch.tensor(x, dtype=torch.float32)], forward_fn=lambda model, x: model(x),
            prepare_model_inputs_fn=None, show_progress_bar=False,
            prepare_layer_inputs_fn=lambda inputs, *_: inputs[0] if isinstance(inputs, tuple) else inputs,
        )  # fmt: skip
    return the


@pytest.mark.parity
def test_components_are_numpy_s_to_float64_and_the_model_is_unchanged():
    with jax.enable_x64(True):
        method, params, uses, _ = of({"rank": 3, "rho": 1.0})
        split = method.init(None, params, uses)
        _, s, vt = np.linalg.svd(X - X.mean(0), full_matrices=False)
        vt = vt * np.sign(vt[np.arange(len(vt)), np.abs(vt).argmax(1)])[:, None]
        np.testing.assert_allclose(split.train["lin1/kernel"]["a"], vt[:3].T, rtol=1e-9, atol=1e-11)
        white = of({"rank": 3, "rho": 1.0, "whiten": True})[0].init(None, params, uses)
        np.testing.assert_allclose(
            white.train["lin1/kernel"]["a"], (vt[:3] / np.sqrt(s[:3, None])).T, rtol=1e-9, atol=1e-11
        )
        x = jnp.asarray(X)
        np.testing.assert_array_equal(lift(peft_pair.ours)(method.apply(split), x), peft_pair.ours(params, x))


@pytest.mark.parity
def test_what_comes_back_is_a_lora_that_a_manifest_rebuilds_over_codes_too():
    method, params, uses, _ = of({"rank": 2, "alpha": 3.0}, dtype=jnp.float32)
    whole = chain(quantize("int8"), method)
    again = build(json.loads(json.dumps(whole.config)))
    split = whole.init(KEY, params, uses)
    shapes = jax.eval_shape(lambda: again.init(KEY, params, uses))
    assert jax.tree.structure(shapes) == jax.tree.structure(split)
    assert [leaf.shape for leaf in jax.tree.leaves(shapes)] == [leaf.shape for leaf in jax.tree.leaves(split)]
    x = jnp.asarray(X, jnp.float32)
    ours, theirs = (lift(peft_pair.ours)(one.apply(split), x) for one in (whole, again))
    np.testing.assert_array_equal(ours, theirs)


def test_a_stack_has_one_rank_which_counts_once_a_layer():
    params = {"stack": jnp.asarray(RANDOM.normal(size=(3, 6, 6)), jnp.float32), "first": jnp.eye(6) * 2}
    fn = lambda p, x: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x @ p["first"], p["stack"])[0]  # noqa: E731
    x = jnp.asarray(RANDOM.normal(size=(50, 6)) * np.array([9, 3, 1, 1, 1, 1]), jnp.float32)
    uses, stats = usage(fn, params, x), calibrate(fn, params, [(x,)], gram=True)
    split = eva(stats, params, uses, rank=2, where=".*").init(None, params, uses)
    ranks = {path: parts["a"].shape[-1] for path, parts in split.train.items()}
    assert split.train["stack"]["a"].shape[:2] == (3, 6)
    assert ranks["first"] + 3 * ranks["stack"] <= 2 * 4
    assert 1 <= ranks["first"] <= 4
    for i in range(3):  # each layer has components of its own inputs
        gram = stats["stack"].gram[i] - np.outer(stats["stack"].total[i], stats["stack"].total[i]) / 50
        a = np.asarray(split.train["stack"]["a"][i], np.float64)
        values = np.linalg.eigvalsh(gram)[::-1][: a.shape[1]]
        np.testing.assert_allclose(a.T @ gram @ a, np.diag(values), rtol=1e-4, atol=1e-3 * values[0])


@pytest.mark.parametrize("name", ["unrolled", pytest.param("scanned", marks=pytest.mark.slow), "cnn"])
def test_every_kind_of_layer_has_orthonormal_components_and_the_model_is_unchanged(name):
    model = case(name)
    uses = usage(model.apply, model.params, model.inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotMeasured)  # of the norms' scales, which eva has no use for
        stats = calibrate(model.apply, model.params, [(model.inputs,)], gram=True)
    method = eva(stats, model.params, uses, rank=2)
    split = method.init(None, model.params, uses)
    assert split.train.keys() <= lora(2).init(KEY, model.params, uses).train.keys()
    for path, parts in split.train.items():
        low = split.state[path]
        a = np.asarray(parts["a"], np.float64)
        a = a.reshape(*a.shape[: a.ndim - len(low.in_axes) - 1], -1, a.shape[-1])
        gram = np.swapaxes(a, -1, -2) @ a
        np.testing.assert_allclose(gram, np.broadcast_to(np.eye(a.shape[-1]), gram.shape), atol=1e-6, err_msg=path)
    logits = jax.jit(lift(model.apply, strict=True))(method.apply(split), model.inputs)
    np.testing.assert_array_equal(logits, jax.jit(model.apply)(model.params, model.inputs))


@pytest.mark.parity
def test_what_was_not_measured_is_named():
    _, params, uses, stats = of({}, dtype=jnp.float32)
    with pytest.raises(UsageError, match="no Gram matrix of what lin2/kernel is fed"):
        eva({"lin1/kernel": stats["lin1/kernel"]}, params, uses)
    with pytest.raises(UsageError, match="no Gram matrix of what lin1/kernel is fed"):
        eva({path: moments._replace(gram=None) for path, moments in stats.items()}, params, uses)
    with pytest.raises(UsageError, match=r"rho=0\.5; it is at least 1"):
        eva(stats, params, uses, rho=0.5)

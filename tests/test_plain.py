"""`as_lora`: what it returns is the adapter it was given, over the base from before, and as PEFT converts it."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import peft_pair
import pytest

from jaxbig.compress.merge import merge
from jaxbig.compress.quantize import quantize
from jaxbig.errors import UsageError
from jaxbig.lift import lift
from jaxbig.plain import as_lora
from jaxbig.registry import build
from jaxbig.transform import Split, chain
from jaxbig.tree import paths
from jaxbig.tune.loftq import loftq
from jaxbig.tune.olora import olora
from jaxbig.tune.pissa import pissa
from jaxbig.usage import usage

KEY = jax.random.key(0)
RANK, ALPHA = 3, 4.5
RANDOM = np.random.default_rng(0)
W = RANDOM.normal(size=(12, 9))


def one_layer(params, x):
    return jnp.tanh(x @ params["w"])


@pytest.mark.parametrize("name", ["pissa", "olora"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_leaves_as_a_lora_over_the_base_that_was_there_before(name, dtype):
    base = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), {"w": W, "v": RANDOM.normal(size=(9, 4))})
    fn = lambda p, x: jnp.tanh(jnp.tanh(x @ p["w"]) @ p["v"])  # noqa: E731
    x = jnp.asarray(RANDOM.normal(size=(5, 12)), dtype)
    method = {"pissa": pissa, "olora": olora}[name]({"w": 3, ".*": 2}, {"w": 4.0, ".*": 1.0}, ["w", "v"])
    start = method.init(KEY, base, usage(fn, base, x))
    grown = jax.tree.map(lambda leaf: leaf + jnp.asarray(0.3 * RANDOM.normal(size=leaf.shape), leaf.dtype), start.train)
    trained = start._replace(train=grown)
    plain, split = as_lora(method, base, start, trained)
    assert {path: parts["a"].shape[-1] for path, parts in split.train.items()} == {"w": 6, "v": 4}
    assert split.params is base
    again = build(plain.config)
    shapes = jax.eval_shape(lambda: again.init(KEY, base, usage(fn, base, x)))
    assert jax.tree.structure(shapes) == jax.tree.structure(split)
    near = {"rtol": 1e-4, "atol": 1e-5} if dtype == jnp.float32 else {"rtol": 2e-2, "atol": 5e-2}
    expected = paths(merge(method.apply(trained)))
    for path, leaf in paths(merge(again.apply(split))).items():
        np.testing.assert_allclose(np.asarray(leaf, np.float32), np.asarray(expected[path], np.float32), **near)
    np.testing.assert_allclose(split.train["w"]["b"][:3], grown["w"]["b"])
    np.testing.assert_allclose(split.train["w"]["b"][3:], -start.train["w"]["b"])


@pytest.mark.parity
def test_the_conversion_is_peft_s(tmp_path):
    options = {"r": RANK, "lora_alpha": ALPHA}
    the = peft_pair.pair("LoraConfig", double=False, init_lora_weights="pissa", **options)
    the.model.peft_config["default"].init_lora_weights = True  # as PEFT asks for the adapter of the start
    the.model.save_pretrained(tmp_path / "start")
    the.model.peft_config["default"].init_lora_weights = "pissa"
    first = peft_pair.trained(the.model)
    peft_pair.stir(the)
    with the.torch.no_grad():
        expected = the.model(the.torch.tensor(the.x)).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the adapter it loads for this is over a changed base
        the.model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    safetensors = pytest.importorskip("safetensors.numpy")
    saved = safetensors.load_file(tmp_path / "plain" / "adapter_model.safetensors")
    with jax.enable_x64(True):
        base, x, left = jax.tree.map(jnp.asarray, (the.tree, the.x, peft_pair.tree_of(the.model)))
        method = pissa(RANK, ALPHA)
        start = method.init(KEY, base, usage(peft_pair.ours, base, x))
        start = start._replace(params=left, train=jax.tree.map(jnp.asarray, first))
        now = start._replace(train=jax.tree.map(jnp.asarray, peft_pair.trained(the.model)))
        plain, split = as_lora(method, base, start, now)
        for layer in ("lin1", "lin2"):
            for part in "ab":
                theirs = saved[f"base_model.model.{layer}.lora_{part.upper()}.weight"].T
                np.testing.assert_allclose(split.train[f"{layer}/kernel"][part], theirs, rtol=1e-6)
        y = lift(peft_pair.ours, strict=True)(plain.apply(split), x)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)  # the residual is PEFT's, in float32


def test_what_does_not_belong_together_is_not_converted():
    base = {"w": jnp.asarray(W, jnp.float32)}
    uses = usage(one_layer, base, jnp.ones((2, 12)))
    method = pissa(RANK, where="w")
    start = method.init(KEY, base, uses)
    with pytest.raises(UsageError, match="at w the base is not the start's base and its A B together"):
        as_lora(method, {"w": base["w"] + 0.01}, start, start)
    coded = chain(method, quantize("nf4", where="w")).init(KEY, base, uses)
    link = Split(coded.params, coded.train["pissa"], coded.state["pissa"])
    with pytest.raises(UsageError, match="before any link that quantises"):
        as_lora(method, base, link, link)
    with pytest.raises(UsageError, match="'loftq' leaves as no plain LoRA"):
        as_lora(loftq(where="w"), base, start, start)
    with pytest.raises(UsageError, match="give the parts of the link 'pissa'"):
        as_lora(method, base, start, start._replace(train={"pissa": start.train}))

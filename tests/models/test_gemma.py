"""Gemma without torch: its equations, its cache, its two kinds of layers in one scan, and what its configs mean.

`test_decoders.py` compares it with transformers.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.compress.merge import merge
from jaxbig.errors import UserError
from jaxbig.lift import lift
from jaxbig.models.cache import empty_cache
from jaxbig.models.families import family_of
from jaxbig.models.gemma import Gemma, GemmaNorm
from jaxbig.models.rope import Rope
from jaxbig.models.transformer import stack_layers
from jaxbig.tree import paths
from jaxbig.tune.lora import lora
from jaxbig.usage import usage

V, S, T, FIRST = 13, 12, 9, 5
SIZES = {"vocabulary": V, "width": 8, "layers": 3, "heads": 4, "kv_heads": 2, "head_width": 4, "hidden": 10}
ALL = {
    "rope": Rope(1e3, "linear", 2.0), "local_rope": Rope(50.0), "scale": 0.9, "attention_softcap": 1.5,
    "logit_softcap": 2.0, "qk_norm": True, "windows": (3, None, 3),
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, V, (2, T))


def drawn(module):
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), TOKENS)["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape) * 0.5), shapes)


@pytest.fixture(scope="module")
def models():
    """name -> (module, jitted call, parameters): unrolled and scanned, one and the same function."""
    with jax.enable_x64(True):
        params = drawn(Gemma(**SIZES, **ALL))
        found = {}
        for name, scan in (("unrolled", False), ("scanned", True)):
            module = Gemma(**SIZES, **ALL, scan_layers=scan)
            call = jax.jit(lambda p, *args, module=module, **more: module.apply({"params": p}, *args, **more))
            found[name] = module, call, stack_layers(params) if scan else params
        return found


@pytest.fixture(autouse=True)
def exact():
    with jax.enable_x64(True):
        yield


def close(ours, expected, atol=1e-12):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=atol)


def test_the_norm_is_its_equation():
    random = np.random.default_rng(0)
    x, w = random.normal(size=(3, 7)), random.normal(size=7)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1) * (1 + w)
    close(GemmaNorm(0.1).apply({"params": {"scale": w}}, x), expected)
    assert np.array_equal(GemmaNorm().init(jax.random.key(0), x)["params"]["scale"], np.zeros(7))
    half = GemmaNorm(0.1, jnp.bfloat16).apply({"params": {"scale": w}}, x)  # rounded once
    assert np.array_equal(half, jnp.asarray(expected, jnp.float32).astype(jnp.bfloat16))


def test_the_embedding_s_factor_is_rounded():
    """sqrt(8) is 2.828125 in bfloat16."""
    module, met = Gemma(**SIZES, dtype=jnp.bfloat16), []
    params = drawn(module)

    def spy(call, args, kwargs, context):
        met.extend(args if context.module.name == "attention_norm" else ())
        return call(*args, **kwargs)

    with nn.intercept_methods(spy):
        module.apply({"params": params}, TOKENS)
    table = params["embed"]["embedding"].astype(jnp.bfloat16)
    assert np.array_equal(met[0], table[TOKENS] * jnp.bfloat16(2.828125))


def test_scanned_is_unrolled_and_every_option_counts(models):
    _, call, params = models["unrolled"]
    whole = call(params, TOKENS)
    close(models["scanned"][1](models["scanned"][2], TOKENS), whole)
    others = {
        "rope": Rope(1e3), "local_rope": None, "scale": 0.5, "attention_softcap": None, "logit_softcap": None,
        "windows": (3, 3, 3), "post_norms": False, "qk_norm": False,
    }  # fmt: skip
    for name, value in others.items():
        changed = Gemma(**SIZES, **{**ALL, name: value})
        assert np.abs(changed.apply({"params": params}, TOKENS) - whole).max() > 1e-6, name


@pytest.mark.parametrize("kind", ["unrolled", "scanned"])
def test_prefill_and_steps_are_the_whole(models, kind):
    module, call, params = models[kind]
    whole = models["unrolled"][1](models["unrolled"][2], TOKENS)
    logits, cache = call(params, TOKENS[:, :FIRST], cache=empty_cache(module, 2, S, jnp.float64))
    found = [logits]
    for t in range(FIRST, T):
        logits, cache = call(params, TOKENS[:, t : t + 1], cache=cache)
        found.append(logits)
    close(jnp.concatenate(found, axis=1), whole)


def test_padded_rows_in_an_int8_cache_are_nearly_rows_alone(models):
    """Prompts of 5 and 3 tokens, the second padded on the left, then as many steps as leave the window behind."""
    module, call, params = models["scanned"]
    whole = models["unrolled"][1](models["unrolled"][2], TOKENS)
    there = np.array([[1] * 5, [0] * 2 + [1] * 3])
    tokens, positions = TOKENS[:, :FIRST].copy(), np.array([[0, 1, 2, 3, 4], [0, 0, 0, 1, 2]])
    tokens[1, 2:] = TOKENS[1, :3]
    for int8, atol in ((False, 1e-12), (True, 0.03)):
        logits, cache = call(params, tokens, positions, there, cache=empty_cache(module, 2, S, jnp.float64, int8))
        close(logits[1, 2:], whole[1, :3])
        worst = 0.0
        for t in range(4):
            at = np.array([[FIRST + t], [3 + t]])
            logits, cache = call(params, TOKENS[np.arange(2)[:, None], at], at, np.ones((2, 1), int), cache=cache)
            worst = max(worst, float(jnp.abs(logits[:, 0] - whole[np.arange(2), at[:, 0]]).max()))
        assert worst < atol * np.abs(whole).max()
        assert int8 == (worst > 1e-9)


def test_caps_bound(models):
    """Logits stay within theirs, and scores within a cap near zero are all alike: every share is the same."""
    _, call, params = models["unrolled"]
    loud = jax.tree.map(lambda leaf: leaf * 30, params)
    assert 1.9 < np.abs(call(loud, TOKENS)).max() <= 2
    tiny = Gemma(**SIZES, **{**ALL, "attention_softcap": 1e-9}).apply({"params": params}, TOKENS)
    none = Gemma(**SIZES, **{**ALL, "scale": 0.0}).apply({"params": params}, TOKENS)
    close(tiny, none, 1e-6)
    wide = Gemma(**SIZES, **{**ALL, "attention_softcap": 1e5}).apply({"params": params}, TOKENS)
    close(wide, Gemma(**SIZES, **{**ALL, "attention_softcap": None}).apply({"params": params}, TOKENS), 1e-6)


def test_a_scanned_program_does_not_grow_with_depth():
    """Two kinds of layers, chosen inside the loop."""

    def equations(layers):
        module = Gemma(**{**SIZES, "layers": layers}, **{**ALL, "windows": (3, None) * (layers // 2)}, scan_layers=True)
        params = jax.eval_shape(module.init, jax.random.key(0), TOKENS)["params"]
        traced = jax.make_jaxpr(lambda params: module.apply({"params": params}, TOKENS))(params)
        return str(traced).count("\n")

    assert equations(2) == equations(16)


def test_lora_stays_factored_and_is_its_merge(models):
    module, _, params = models["scanned"]
    fn = lambda params, tokens: module.apply({"params": params}, tokens)  # noqa: E731
    uses = usage(fn, params, TOKENS)
    assert {use.kind for use in uses["embed/embedding"]} == {"lookup", "product"}
    transform = lora(rank=2)
    split = transform.init(jax.random.key(0), params, uses)
    assert set(split.train) == {path for path in paths(params) if path.endswith("kernel")}
    random = np.random.default_rng(2)
    train = jax.tree.map(lambda leaf: leaf + 0.1 * random.normal(size=leaf.shape), split.train)
    tree = transform.apply(split._replace(train=train))
    found = lift(fn, strict=True)(tree, TOKENS)
    close(found, fn(merge(tree), TOKENS), 1e-10)
    assert np.abs(found - fn(params, TOKENS)).max() > 1e-3


# What the published config.json files say, where it matters.
FILES = {
    "gemma": {
        "model_type": "gemma", "architectures": ["GemmaForCausalLM"], "vocab_size": 256000, "hidden_size": 2048,
        "intermediate_size": 16384, "num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 1,
        "head_dim": 256, "hidden_act": "gelu", "hidden_activation": None, "rope_theta": 10000.0, "rope_scaling": None,
    },
    "gemma2": {
        "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "vocab_size": 256000, "hidden_size": 2304,
        "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 4096, "rope_theta": 10000.0,
        "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    },
    "gemma3": {
        "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "vocab_size": 262144,
        "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512, "sliding_window_pattern": 6,
        "rope_theta": 1000000, "rope_local_base_freq": 10000, "rope_scaling": None, "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": None, "final_logit_softcapping": None,
    },
}  # fmt: skip
COUNTS = {"gemma": 2_506_172_416, "gemma2": 2_614_341_888, "gemma3": 999_885_952}  # 2B, 2 2B, 3 1B


@pytest.mark.parametrize("name", FILES)
def test_published_models_have_as_many_parameters_as_they_should(name):
    module = family_of(FILES[name]).module(FILES[name], "causal_lm", scan_layers=True)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8), jnp.int32))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == COUNTS[name]


def test_what_the_published_configs_mean():
    one, two, three = (family_of(fields).module(fields, "causal_lm") for fields in FILES.values())
    assert (one.activation, one.windows, one.post_norms, one.scale) == ("gelu_pytorch_tanh", (), False, 1 / 16)
    assert (one.attention_softcap, one.logit_softcap, one.tied, one.pad) == (None, None, True, 0)
    assert two.windows == (4096, None) * 13
    assert (two.attention_softcap, two.logit_softcap, two.qk_norm, two.local_rope) == (50, 30, False, None)
    assert three.windows == ((512,) * 5 + (None,)) * 4 + (512,) * 2
    assert (three.rope.base, three.local_rope.base, three.qk_norm, three.logit_softcap) == (1e6, 1e4, True, None)
    given = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "head_dim")
    left_out = {name: value for name, value in FILES["gemma2"].items() if name not in given}
    assert family_of(left_out).module(left_out, "causal_lm") == two
    longer = FILES["gemma3"] | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    module = family_of(longer).module(longer, "causal_lm")
    assert (module.rope.kind, module.rope.factor, module.local_rope) == ("linear", 8.0, three.local_rope)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("gemma", {"num_key_value_heads": ...}, "has no 'num_key_value_heads'"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 26}, "chunked_attention"),
        ("gemma2", {"sliding_window": None}, "sliding_window is null"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ("gemma3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "no entry 'full_attention'"),
        ("gemma3", {"model_type": "gemma3"}, "model_type is 'gemma3'"),
    ],
)
def test_configs_that_are_refused(name, fields, message):
    config = {key: value for key, value in (FILES[name] | fields).items() if value is not ...}
    with pytest.raises(UserError, match=message):
        family_of(config).module(config, "causal_lm")


def test_windows_of_another_depth():
    with pytest.raises(UserError, match="windows says 2 layers, the model has 3"):
        drawn(Gemma(**SIZES, windows=(3, None)))

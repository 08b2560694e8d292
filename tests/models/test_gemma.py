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


class Called:
    """A module, its parameters, and a call that is traced once for each shape."""

    def __init__(self, params, **options):
        self.module, self.params = Gemma(**SIZES, **{**ALL, **options}), params
        self.jitted = jax.jit(lambda params, *args: self.module.apply({"params": params}, *args[:3], cache=args[3]))

    def __call__(self, tokens, positions=None, segments=None, cache=None, params=None):
        positions = np.arange(tokens.shape[1])[None].repeat(2, 0) if positions is None else positions
        segments = np.ones(tokens.shape, int) if segments is None else segments
        return self.jitted(self.params if params is None else params, tokens, positions, segments, cache)


@pytest.fixture(scope="module")
def models():
    """Unrolled and scanned, one and the same function."""
    with jax.enable_x64(True):
        params = drawn(Gemma(**SIZES, **ALL))
        return {"unrolled": Called(params), "scanned": Called(stack_layers(params), scan_layers=True)}


@pytest.fixture(scope="module")
def whole(models):
    with jax.enable_x64(True):
        return models["unrolled"](TOKENS)


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

    @jax.jit
    def first(params):
        with nn.intercept_methods(spy):
            module.apply({"params": params}, TOKENS)
        return met[0]

    table = params["embed"]["embedding"].astype(jnp.bfloat16)
    assert np.array_equal(first(params), table[TOKENS] * jnp.bfloat16(2.828125))


def test_scanned_is_unrolled(models, whole):
    close(models["scanned"](TOKENS), whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rope", Rope(1e3)), ("local_rope", None), ("scale", 0.5), ("attention_softcap", None),
        ("logit_softcap", None), ("windows", (3, 3, 3)), ("post_norms", False), ("qk_norm", False),
    ],
)  # fmt: skip
def test_every_option_counts(models, whole, name, value):
    changed = Called(models["unrolled"].params, **{name: value})
    assert np.abs(changed(TOKENS) - whole).max() > 1e-6


@pytest.mark.parametrize("kind", [pytest.param("unrolled", marks=pytest.mark.slow), "scanned"])
def test_prefill_and_steps_are_the_whole(models, whole, kind):
    model = models[kind]
    logits, cache = model(TOKENS[:, :FIRST], cache=empty_cache(model.module, 2, S, jnp.float64))
    found = [logits]
    for t in range(FIRST, T):
        logits, cache = model(TOKENS[:, t : t + 1], np.full((2, 1), t), cache=cache)
        found.append(logits)
    close(jnp.concatenate(found, axis=1), whole)


@pytest.mark.parametrize("int8", [False, True])
def test_padded_rows_are_rows_alone(models, whole, int8):
    """Prompts of 5 and 3 tokens, the second padded on the left, then as many steps as leave the window behind."""
    model = models["scanned"]
    there = np.array([[1] * 5, [0] * 2 + [1] * 3])
    tokens, positions = TOKENS[:, :FIRST].copy(), np.array([[0, 1, 2, 3, 4], [0, 0, 0, 1, 2]])
    tokens[1, 2:] = TOKENS[1, :3]
    logits, cache = model(tokens, positions, there, empty_cache(model.module, 2, S, jnp.float64, int8))
    close(logits[1, 2:], whole[1, :3])  # what is new is read as it is
    rows, errors = np.arange(2), []
    for t in range(4):
        at = np.array([FIRST + t, 3 + t])
        logits, cache = model(TOKENS[rows, at][:, None], at[:, None], cache=cache)
        errors.append(np.abs(logits[:, 0] - whole[rows, at]).max())
    if int8:
        assert 0 < max(errors) < 0.1 * np.abs(whole).max()
    else:
        assert max(errors) < 1e-12


def test_logits_stay_within_their_cap(models):
    model = models["unrolled"]
    loud = jax.tree.map(lambda leaf: leaf * 30, model.params)
    assert 1.9 < np.abs(model(TOKENS, params=loud)).max() <= 2


@pytest.mark.slow
def test_scores_stay_within_their_cap(models):
    """Within one near zero they are all alike, and every share is the same; one far away does nothing."""
    said = lambda **options: Called(models["unrolled"].params, **options)(TOKENS)  # noqa: E731
    close(said(attention_softcap=1e-9), said(scale=0.0), 1e-6)
    close(said(attention_softcap=1e5), said(attention_softcap=None), 1e-6)


def test_a_scanned_program_does_not_grow_with_depth():
    """Two kinds of layers, chosen inside the loop."""

    def equations(layers):
        module = Gemma(**{**SIZES, "layers": layers}, **{**ALL, "windows": (3, None) * (layers // 2)}, scan_layers=True)
        params = jax.eval_shape(module.init, jax.random.key(0), TOKENS)["params"]
        traced = jax.make_jaxpr(lambda params: module.apply({"params": params}, TOKENS))(params)
        return " ".join(str(traced).split()).count(" = ")

    assert equations(2) == equations(16) > 50


def test_lora_stays_factored_and_is_its_merge(models, whole):
    module, params = models["scanned"].module, models["scanned"].params
    fn = lambda params, tokens: module.apply({"params": params}, tokens)  # noqa: E731
    uses = usage(fn, params, TOKENS)
    assert {use.kind for use in uses["embed/embedding"]} == {"lookup", "product"}
    transform = lora(rank=2)
    split = transform.init(jax.random.key(0), params, uses)
    assert set(split.train) == {path for path in paths(params) if path.endswith("kernel")}
    random = np.random.default_rng(2)
    train = jax.tree.map(lambda leaf: leaf + 0.1 * random.normal(size=leaf.shape), split.train)
    tree = transform.apply(split._replace(train=train))
    found = jax.jit(lift(fn, strict=True))(tree, TOKENS)
    close(found, models["scanned"](TOKENS, params=merge(tree)), 1e-10)
    assert np.abs(found - whole).max() > 1e-3


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

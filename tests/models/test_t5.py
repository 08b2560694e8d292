"""T5 against transformers in float64, ten random configs; what holds of it without torch; LoRA on its unedited modules.

`torch64` makes transformers' norms and buckets float64, as `test_decoders` tells.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.carry import carry, leaves_of
from models.t5_pair import PAD, V, config, pair, theirs

from jaxbig.compress.merge import merge
from jaxbig.compress.quantize import quantize
from jaxbig.errors import UserError
from jaxbig.lift import lift
from jaxbig.models import T5
from jaxbig.models.families import FAMILIES, family_of
from jaxbig.models.relative_positions import relative_buckets
from jaxbig.models.seq2seq import DecoderOf
from jaxbig.transform import chain
from jaxbig.tree import paths
from jaxbig.tune.lora import lora
from jaxbig.usage import usage

B, S, T = 3, 11, 9
NUMBERS = [pytest.param(n, marks=[pytest.mark.slow] * (n > 3)) for n in range(10)]


def texts(number):
    """Tokens of both sides, and which of them are there: padded on the right, or, for odd numbers, on the left."""
    rng = np.random.default_rng(number)
    found = []
    for length in (S, T):
        slots = np.arange(length)[:: -1 if number % 2 == 0 else 1]
        there = slots[None] >= np.array([0, 2, 4])[:, None]
        found += [np.where(there, rng.integers(2, V, (B, length)), PAD), there]
    return found


def said(torch, model, tokens, there, decoder_tokens=None, decoder_there=None):
    more = {}
    if decoder_tokens is not None:
        more["decoder_input_ids"] = torch.tensor(decoder_tokens)
        if decoder_there is not None:
            more["decoder_attention_mask"] = torch.tensor(decoder_there.astype(int))
    with torch.no_grad():
        found = model(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(there.astype(int)), **more)
    return (found.logits if hasattr(found, "logits") else found.last_hidden_state).numpy()


def ours(module, params, tokens, there, decoder_tokens, decoder_there):
    called = jax.jit(lambda params, *each: module.apply({"params": params}, *each))
    return called(params, tokens, decoder_tokens, there.astype(int), decoder_there.astype(int))


@pytest.mark.parity
@pytest.mark.parametrize("number", NUMBERS)
def test_logits(torch64, number):
    model, _, module, params = pair(torch64, config(number), scan_layers=number % 2 == 1)
    given = texts(number)
    found, expected = ours(module, params, *given), said(torch64, model, *given)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found[given[3]], expected[given[3]], rtol=0, atol=1e-9)
    all_there = np.ones_like(given[3])  # without a mask of the decoder's, as transformers is called mostly
    found, expected = ours(module, params, *given[:3], all_there), said(torch64, model, *given[:3])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parity
def test_logits_of_an_untouched_float32_model(torch):
    model, _, module, params = pair(torch, config(1), dtype="float32")
    given = texts(1)
    found, expected = ours(module, params, *given), said(torch, model, *given)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found[given[3]], expected[given[3]], rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["T5", "MT5"])
def test_other_classes(torch64, kind):
    tokens, there, *rest = texts(2)
    model, _, module, params = pair(torch64, config(2), "features", kind=kind)
    found, expected = ours(module, params, tokens, there, *rest), said(torch64, model, tokens, there, *rest)
    np.testing.assert_allclose(found[rest[1]], expected[rest[1]], rtol=0, atol=1e-9)
    model, _, module, params = pair(torch64, config(2), "encoder", kind=kind)
    assert "decoder" not in params
    found = module.apply({"params": params}, tokens, segments=there.astype(int))
    np.testing.assert_allclose(found[there], said(torch64, model, tokens, there)[there], rtol=0, atol=1e-9)
    if kind == "MT5":  # its states are never scaled
        fields = config(2) | {"tie_word_embeddings": False}
        model, _, module, params = pair(torch64, fields, kind=kind)
        found, expected = ours(module, params, tokens, there, *rest), said(torch64, model, tokens, there, *rest)
        np.testing.assert_allclose(found[rest[1]], expected[rest[1]], rtol=0, atol=1e-9)


@pytest.mark.parity
@pytest.mark.parametrize("scan", [False, True])
def test_gradients(torch64, scan):
    """Of a cross-entropy with respect to every parameter."""
    model, family, module, params = pair(torch64, config(5), scan_layers=scan, remat=scan)
    tokens, there, decoder_tokens, decoder_there = texts(5)
    logits = model(
        input_ids=torch64.tensor(tokens), attention_mask=torch64.tensor(there.astype(int)),
        decoder_input_ids=torch64.tensor(decoder_tokens),
        decoder_attention_mask=torch64.tensor(decoder_there.astype(int)),
    ).logits  # fmt: skip
    losses = torch64.nn.functional.cross_entropy(
        logits.transpose(1, 2), torch64.tensor(decoder_tokens), reduction="none"
    )
    (losses * torch64.tensor(decoder_there)).sum().backward()

    def loss(params):
        logits = ours(module, params, tokens, there, decoder_tokens, decoder_there)
        told = jnp.take_along_axis(logits, decoder_tokens[..., None], axis=-1)[..., 0]
        return ((jax.nn.logsumexp(logits, axis=-1) - told) * decoder_there).sum()

    expected, _ = leaves_of(module, family, {name: leaf.grad for name, leaf in model.named_parameters()})
    found = paths(jax.jit(jax.grad(loss))(params))
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        assert np.abs(expected[path]).max() > 0, path
        np.testing.assert_allclose(leaf, expected[path], rtol=0, atol=1e-9, err_msg=path)


@pytest.mark.parity
def test_the_table_tells_every_tensor_once(torch):
    """`carry` fails where a leaf or a tensor is left over."""
    for number in range(4):
        for task in ("seq2seq_lm", "features", "encoder"):
            model, told = theirs(torch, config(number), task)
            family = family_of(told)
            for scan in (False, True):
                module = family.module(told, task, scan_layers=scan)
                carry(module, family, model.state_dict())
                tensors = family.tensors(module)
                assert len({each.name for each in tensors}) == len({each.path for each in tensors}) == len(tensors)


@pytest.mark.parity
@pytest.mark.parametrize("causal", [False, True])
def test_buckets(torch, causal):
    """Of published models' 32 up to 128, each distance's; theirs is computed in float32."""
    from transformers.models.t5.modeling_t5 import T5Attention

    at = torch.arange(-700, 701)
    expected = T5Attention._relative_position_bucket(at, not causal, 32, 128).numpy()
    found = relative_buckets(np.zeros((1, 1), int), at.numpy()[None], 32, 128, causal)[0, 0]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parity
@pytest.mark.parametrize("rate", [0.2])
def test_dropout_falls_where_theirs_does(torch64, scaled_dropout, rate):
    model, _, module, params = pair(torch64, config(4) | {"dropout_rate": rate})
    tokens, there, decoder_tokens, decoder_there = texts(4)
    expected = said(torch64, model.train(), tokens, there, decoder_tokens, decoder_there)
    segments = there.astype(int), decoder_there.astype(int)
    found = module.apply(
        {"params": params}, tokens, decoder_tokens, *segments, train=True, rngs={"dropout": jax.random.key(0)}
    )
    np.testing.assert_allclose(found[decoder_there], expected[decoder_there], rtol=0, atol=1e-9)


SMALL = {
    "vocabulary": 13,
    "width": 6,
    "layers": 1,
    "heads": 2,
    "head_width": 5,
    "hidden": 7,
    "buckets": 6,
    "distance": 9,
}
TOKENS = jnp.array([[5, 6, 7, 8, 1], [9, 4, 1, 0, 0]])
DECODER_TOKENS = jnp.array([[0, 3, 5, 11], [0, 7, 2, 2]])
RANDOM = np.random.default_rng(0)


def made(**more):
    """A small model and parameters without zeros or ones."""
    module = T5(**SMALL | {"decoder_layers": 2} | more)
    shapes = jax.eval_shape(module.init, jax.random.key(0), TOKENS, DECODER_TOKENS)["params"]
    return module, jax.tree.map(lambda leaf: jnp.asarray(RANDOM.normal(size=leaf.shape), jnp.float32) / 2, shapes)


def told(module, params, *given, **more):
    """Its logits, by one program."""
    return jax.jit(lambda params, given, more: module.apply({"params": params}, *given, **more))(params, given, more)


def by_hand(params, tokens, decoder_tokens):
    """Logits of one text without padding, by the paper's equations in NumPy, of unrolled layers."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    heads = lambda x: x.reshape(len(x), SMALL["heads"], -1)  # noqa: E731
    norm = lambda x, its: x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * its["scale"]  # noqa: E731

    def attention(x, y, its, bias=0.0):
        q, k, v = heads(x @ its["query"]["kernel"]), heads(y @ its["key"]["kernel"]), heads(y @ its["value"]["kernel"])
        scores = np.exp(np.einsum("thk,shk->hts", q, k) + bias)
        out = np.einsum("hts,shk->thk", scores / scores.sum(-1, keepdims=True), v)
        return out.reshape(len(x), -1) @ its["out"]["kernel"]

    def stack(tokens, its, states=None):
        x, at = p["embed"]["embedding"][tokens], np.arange(len(tokens))[None]
        causal = states is not None
        buckets = np.asarray(relative_buckets(at, at, SMALL["buckets"], SMALL["distance"], causal))[0]
        bias = its["position_bias"]["embedding"][buckets].transpose(2, 0, 1)
        bias = np.where(np.tri(len(tokens), dtype=bool), bias, -np.inf) if causal else bias
        for layer in (its[f"layer_{i}"] for i in range(len(its) - 2)):
            y = norm(x, layer["attention_norm"])
            x = x + attention(y, y, layer["attention"], bias)
            if causal:
                x = x + attention(norm(x, layer["cross_norm"]), states, layer["cross"])
            y, mlp = norm(x, layer["mlp_norm"]), layer["mlp"]
            up = y @ mlp["up"]["kernel"]
            gate = y @ mlp["gate"]["kernel"] if "gate" in mlp else up
            x = x + (np.maximum(gate, 0) * (up if "gate" in mlp else 1)) @ mlp["down"]["kernel"]
        return norm(x, its["norm"])

    x = stack(decoder_tokens, p["decoder"], stack(tokens, p["encoder"]))
    return x @ p["head"]["kernel"] if "head" in p else x * SMALL["width"] ** -0.5 @ p["embed"]["embedding"].T


@pytest.mark.parametrize("more", [{}, {"tied": False, "scaled": False, "gated": True}])
def test_the_equations(more):
    """And padding says nothing to anyone, on whichever side it lies."""
    module, params = made(**more)
    both = told(module, params, TOKENS, DECODER_TOKENS, segments=(TOKENS != 0).astype(int))
    for row, count in enumerate((5, 3)):
        expected = by_hand(params, np.asarray(TOKENS[row, :count]), np.asarray(DECODER_TOKENS[row]))
        np.testing.assert_allclose(both[row], expected, rtol=2e-4, atol=2e-4)
    left = jnp.stack([TOKENS[0], jnp.roll(TOKENS[1], 2)])
    again = told(module, params, left, DECODER_TOKENS, segments=(left != 0).astype(int))
    np.testing.assert_allclose(again, both, rtol=1e-4, atol=1e-5)


def stacked(params):
    """The parameters of scanned layers."""
    found = dict(params)
    for part in ("encoder", "decoder"):
        layers = [params[part][f"layer_{i}"] for i in range(len(params[part]) - 2)]
        rest = {name: its for name, its in params[part].items() if not name.startswith("layer_")}
        found[part] = rest | {"layers": jax.tree.map(lambda *each: jnp.stack(each), *layers)}
    return found


def test_scanned_is_unrolled_and_cached_is_whole():
    """Scanned with remat; token by token after two at once, the encoder's keys and values made once."""
    module, params = made(gated=True)
    segments = (TOKENS != 0).astype(int)
    whole = told(module, params, TOKENS, DECODER_TOKENS, segments=segments)
    scanned = T5(**SMALL, decoder_layers=2, gated=True, scan_layers=True, remat=True)
    for its, tree in ((module, params), (scanned, stacked(params))):
        np.testing.assert_allclose(
            told(its, tree, TOKENS, DECODER_TOKENS, segments=segments), whole, rtol=1e-5, atol=1e-5
        )
        decoder, steps = DecoderOf(its), []
        held = jax.jit(partial(decoder.begin, length=6))({"params": tree}, TOKENS, segments)
        step = jax.jit(lambda tree, tokens, held: decoder.apply({"params": tree}, tokens, cache=held))  # noqa: B023
        for part in (slice(0, 2), slice(2, 3), slice(3, 4)):
            logits, held = step(tree, DECODER_TOKENS[:, part], held)
            steps.append(logits)
        np.testing.assert_allclose(jnp.concatenate(steps, axis=1), whole, rtol=1e-5, atol=1e-5)


def test_packed_texts_do_not_see_each_other():
    module, params = made()
    called = lambda *given, **more: told(module, params, *map(jnp.array, given), **more)  # noqa: E731
    alone = called(
        [[5, 6, 1, 0], [7, 8, 9, 1]], [[0, 3, 0], [0, 4, 2]], segments=jnp.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    )
    segments = {"segments": jnp.array([[1, 1, 1, 2, 2, 2, 2]]), "decoder_segments": jnp.array([[1, 1, 2, 2, 2]])}
    both = called([[5, 6, 1, 7, 8, 9, 1]], [[0, 3, 0, 4, 2]], **segments)
    np.testing.assert_allclose(both[0], jnp.concatenate([alone[0, :2], alone[1]]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", pytest.param("lora over int8", marks=pytest.mark.slow)])
@pytest.mark.parametrize("scan", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_lifting(scan, kind):
    """`usage` sees every kernel, nothing is expanded, factored is merged: of the module as it is."""
    module, params = made(gated=True, tied=False, scaled=False, scan_layers=scan)
    fn = lambda params, *given: module.apply({"params": params}, *given)  # noqa: E731
    uses = usage(fn, params, TOKENS, DECODER_TOKENS)
    for path, found in uses.items():
        kinds = {use.kind for use in found}
        assert path.endswith("scale") or kinds == {"lookup" if path.endswith("embedding") else "product"}, path
    assert {path for path, found in uses.items() if any(use.head for use in found)} == {"head/kernel"}
    transform = lora(rank=2) if kind == "lora" else chain(quantize("int8"), lora(rank=2))
    split = transform.init(jax.random.key(0), params, uses)
    kernels = {path for path in paths(params) if path.endswith("kernel") and not path.startswith("head")}
    assert kernels <= set(split.train.get("lora", split.train))
    moved = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), split.train)

    @jax.jit
    def both(train):
        tree = transform.apply(split._replace(train=train))
        return lift(fn, strict=True)(tree, TOKENS, DECODER_TOKENS), fn(merge(tree), TOKENS, DECODER_TOKENS)

    found, merged = both(moved)
    jax.eval_shape(jax.grad(lambda train: both(train)[0].sum()), moved)
    np.testing.assert_allclose(found, merged, rtol=1e-4, atol=1e-4 * float(jnp.abs(merged).max()))


BASE = {"vocab_size": 9, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2}


@pytest.mark.parametrize(
    ("fields", "task", "message"),
    [
        ({"feed_forward_proj": "gated-gelu-x"}, "seq2seq_lm", "feed_forward_proj is 'gated-gelu-x'"),
        ({"is_decoder": True}, "seq2seq_lm", "is_decoder is True"),
        ({}, "causal_lm", "no head for the task 'causal_lm'"),
        ({"num_heads": None}, "features", "has no 'num_heads'"),
    ],
)
def test_configs_that_are_refused(fields, task, message):
    config = {name: value for name, value in (BASE | fields).items() if value is not None}
    with pytest.raises(UserError, match=message):
        FAMILIES["t5"].module({"model_type": "t5"} | config, task)


def test_what_modules_refuse():
    with pytest.raises(UserError, match="needs the decoder's tokens"):
        T5(**SMALL).init(jax.random.key(0), TOKENS)
    with pytest.raises(UserError, match="has no decoder"):
        T5(**SMALL, task="encoder").init(jax.random.key(0), TOKENS, DECODER_TOKENS)
    with pytest.raises(UserError, match="task='masked_lm'"):
        T5(**SMALL, task="masked_lm").init(jax.random.key(0), TOKENS, DECODER_TOKENS)
    with pytest.raises(UserError, match="distance of more than 2"):
        T5(**SMALL | {"distance": 2, "buckets": 8}).init(jax.random.key(0), TOKENS, DECODER_TOKENS)


def test_what_configs_say_of_the_head():
    """Of T5 1.0, of 1.1 as before transformers 5 and as since, and of files that say what a config does not."""
    family: Any = FAMILIES["t5"]
    of = lambda **more: (lambda m: (m.tied, m.scaled))(family.module(BASE | more, "seq2seq_lm"))  # noqa: E731
    assert of() == of(tie_word_embeddings=True) == (True, True)
    assert of(tie_word_embeddings=False) == (False, False)
    since = BASE | {"tie_word_embeddings": True, "scale_decoder_outputs": False}
    assert of(**since) == (True, False)
    assert of(**family.settled(since, ["shared.weight"])) == (True, False)
    assert of(**family.settled(since, ["shared.weight", "lm_head.weight"])) == (False, False)
    assert family.settled(BASE, ["shared.weight", "lm_head.weight"]) == BASE
    module = family.module(BASE | {"feed_forward_proj": "gated-gelu", "pad_token_id": 3}, "seq2seq_lm")
    assert (module.activation, module.gated, module.start) == ("gelu_new", True, 3)
    assert family.module(BASE | {"pad_token_id": 3, "decoder_start_token_id": 0}, "seq2seq_lm").start == 0
    assert FAMILIES["mt5"].module(BASE, "seq2seq_lm").gated


PUBLISHED = {
    "T5 small": (60_506_624, {
        "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8,
    }),
    "Flan-T5 base": (247_577_856, {
        "vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_as_many_parameters_as_they_should(name):
    count, fields = PUBLISHED[name]
    family = FAMILIES["t5"]
    module = family.module(fields, "seq2seq_lm", scan_layers=True)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *family.example(module))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count

"""Prompts and prefixes against models that are written with them, PEFT's networks, and the arguments they lengthen."""

import warnings
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbig import chain, lora, prefix, prompt, quantize, usage
from jaxbig.data import Loader
from jaxbig.errors import UsageError
from jaxbig.job import Run, Task
from jaxbig.lift import lift
from jaxbig.objective.base import Aux
from jaxbig.train import fit

V, D, H, K, P, T, B = 11, 8, 2, 3, 4, 5, 3


def attend(p, x, k, v, causal):
    """x queries k and v; with `causal` the last position of x is that of the last key."""
    q = jnp.einsum("btd,dhk->bthk", x, p["query"]["kernel"])
    scores = jnp.einsum("bthk,bshk->bhts", q, k) / np.sqrt(K)
    if causal:
        scores = jnp.where(jnp.tri(x.shape[1], k.shape[1], k.shape[1] - x.shape[1], dtype=bool), scores, -jnp.inf)
    mixed = jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores), v)
    return x + jnp.einsum("bthk,hkd->btd", mixed, p["out"]["kernel"])


def heads(p, name, x):
    return jnp.einsum("btd,dhk->bthk", x, p[name]["kernel"]) + p[name]["bias"]


def model(p, ids, causal=True, x=None, prefixes=(None, None)):
    """Two layers of attention over a tied table with positions; x and prefixes for the tests to put in themselves."""
    x = p["table"][ids] if x is None else x
    start = 0 if prefixes[0] is None else P
    x = x + p["position"][start : start + x.shape[1]]
    for layer, before in zip(("one", "two"), prefixes, strict=True):
        k, v = heads(p[layer], "key", x), heads(p[layer], "value", x)
        if before is not None:
            k, v = (
                jnp.concatenate([jnp.broadcast_to(a, (len(b), *a.shape)), b], axis=1)
                for a, b in zip(before, (k, v), strict=True)
            )
        x = attend(p[layer], x, k, v, causal)
    return x @ p["table"].T


def drawn():
    random = np.random.default_rng(0)
    kernel = {"kernel": (D, H, K), "bias": (H, K)}
    layer = {"query": {"kernel": (D, H, K)}, "key": kernel, "value": kernel, "out": {"kernel": (H, K, D)}}
    shapes = {"table": (V, D), "position": (P + T, D), "one": layer, "two": layer}
    params = jax.tree.map(
        lambda size: jnp.asarray(random.normal(size=size) / 2), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    return params, jnp.asarray(random.integers(0, V, (B, T)))


def compared(technique, expected, params, ids, causal):
    """Values, and gradients of what is trained, of the wrapped model and of one that is written with the prompt."""
    fn = lambda p, ids: model(p, ids, causal)  # noqa: E731
    split = technique.init(jax.random.key(1), params, usage(fn, params, ids))

    def ours(train):
        now = split._replace(train=train)
        y = lift(technique.wrap(now, fn), strict=True)(technique.apply(now), ids)
        assert y.shape == (B, T, V)
        return (y**2).mean(), y

    def theirs(train):
        y = expected(train)
        return (y**2).mean(), y

    train = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(2), leaf.shape), split.train)
    (grads, y), (expected_grads, expected_y) = (jax.grad(f, has_aux=True)(train) for f in (ours, theirs))
    np.testing.assert_allclose(y, expected_y, rtol=1e-9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-12), grads, expected_grads)


@pytest.mark.parametrize("causal", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_prompt_is_vectors_before_the_embedded_text(causal):
    with jax.enable_x64(True):
        params, ids = drawn()

        def expected(train):
            vectors = jnp.broadcast_to(train["table"]["prompt"], (B, P, D))
            return model(params, None, causal, jnp.concatenate([vectors, params["table"][ids]], axis=1))[:, P:]

        compared(prompt(P), expected, params, ids, causal)


@pytest.mark.parametrize("causal", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.parametrize("hidden", [None, pytest.param(6, marks=pytest.mark.slow)])
def test_a_prefix_is_keys_and_values_before_those_of_the_text(causal, hidden):
    """Queries of the text alone, at the positions behind the prefix: what a cache that holds the prefix would give."""
    with jax.enable_x64(True):
        params, ids = drawn()

        def of(train, path):
            if hidden is None:
                return train[path]["prefix"]
            shared = train["shared"]
            h = jnp.tanh(shared["z"] @ shared["w"] + shared["b"])
            return jnp.einsum("pn,nhk->phk", h, train[path]["w"]) + train[path]["b"]

        def expected(train):
            before = [
                [of(train, f"{layer}/{name}/kernel") + params[layer][name]["bias"] for name in ("key", "value")]
                for layer in ("one", "two")
            ]
            return model(params, ids, causal, None, before)

        compared(prefix(P, hidden=hidden), expected, params, ids, causal)


# Of PEFT's prompts over this model.
SIZES: dict[str, Any] = {
    "num_virtual_tokens": P, "token_dim": D, "num_layers": 2, "num_attention_heads": H, "task_type": "CAUSAL_LM",
    "num_transformer_submodules": 1,
}  # fmt: skip


@pytest.mark.parity
@pytest.mark.parametrize("layers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_lstm_is_peft_s(layers):
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = pytest.importorskip("peft")
        from peft.tuners.p_tuning import PromptEncoder

        torch.manual_seed(0)
        encoder = PromptEncoder(peft.PromptEncoderConfig(
            encoder_reparameterization_type="LSTM", encoder_hidden_size=7, encoder_num_layers=layers,
            encoder_dropout=0.0, **SIZES,
        )).double()  # fmt: skip
    of = {name: value.detach().numpy() for name, value in encoder.state_dict().items()}

    def cell(i, end):
        """Gates i, f, g, o one below the other, and two biases."""
        into, own = (np.split(of[f"lstm_head.weight_{kind}_l{i}{end}"], 4) for kind in ("ih", "hh"))
        bias = np.split(of[f"lstm_head.bias_ih_l{i}{end}"] + of[f"lstm_head.bias_hh_l{i}{end}"], 4)
        gates = list(zip("ifgo", into, own, bias, strict=True))
        return {f"i{g}": {"kernel": w.T} for g, w, _, _ in gates} | {
            f"h{g}": {"kernel": w.T, "bias": b} for g, _, w, b in gates
        }

    ends = {"forth": "", "back": "_reverse"}
    parts = {f"{way}_{i}": cell(i, end) for i in range(layers) for way, end in ends.items()}
    for name, layer in (("up", 0), ("down", 2)):
        parts[name] = {"kernel": of[f"mlp_head.{layer}.weight"].T, "bias": of[f"mlp_head.{layer}.bias"]}
    with jax.enable_x64(True):
        params, ids = drawn()
        technique, fn = prompt(P, hidden=7, lstm=layers), lambda p, ids: p["table"][ids]
        split = technique.init(jax.random.key(0), params, usage(fn, params, ids))
        given = jax.tree.map(jnp.asarray, {"table": {"z": of["embedding.weight"], "encoder": parts}})
        assert jax.tree.map(jnp.shape, split.train) == jax.tree.map(jnp.shape, given)
        whole = lift(technique.wrap(split._replace(train=given), _all))
        theirs = encoder(torch.arange(P)).detach().numpy()
        np.testing.assert_allclose(whole(params, ids)["all"][0, :P], theirs, rtol=1e-12)
    with pytest.raises(UsageError, match="lstm=2 with hidden=None"):
        prompt(P, lstm=2)


@pytest.mark.parity
def test_the_networks_are_peft_s():
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = pytest.importorskip("peft")
        from peft.tuners.p_tuning import PromptEncoder
        from peft.tuners.prefix_tuning import PrefixEncoder
    numbers = torch.arange(P)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = PromptEncoder(peft.PromptEncoderConfig(encoder_hidden_size=7, **SIZES)).double()
        other = PrefixEncoder(peft.PrefixTuningConfig(encoder_hidden_size=D, prefix_projection=True, **SIZES)).double()
    of = {name: value.detach().numpy() for name, value in encoder.state_dict().items()}
    with jax.enable_x64(True):
        params, ids = drawn()
        parts = {"z": of["embedding.weight"]}
        for i, layer in ((1, 0), (2, 2), (3, 4)):
            parts |= {f"w{i}": of[f"mlp_head.{layer}.weight"].T, f"b{i}": of[f"mlp_head.{layer}.bias"]}
        technique, fn = prompt(P, hidden=7), lambda p, ids: p["table"][ids]
        split = technique.init(jax.random.key(0), params, usage(fn, params, ids))
        assert {name: part.shape for name, part in split.train["table"].items()} == {
            n: p.shape for n, p in parts.items()
        }
        whole = lift(technique.wrap(split._replace(train={"table": jax.tree.map(jnp.asarray, parts)}), _all))
        np.testing.assert_allclose(whole(params, ids)["all"][0, :P], encoder(numbers).detach().numpy(), rtol=1e-12)

        theirs = other(numbers).detach().numpy().reshape(P, 2, 2, D)  # [P, layer, key or value, D]
        of = {name: value.detach().numpy() for name, value in other.state_dict().items()}
        shared = {"z": of["embedding.weight"], "w": of["transform.0.weight"].T, "b": of["transform.0.bias"]}
        last, bias = of["transform.2.weight"].T.reshape(D, 2, 2, D), of["transform.2.bias"].reshape(2, 2, D)
        ours = prefix(P, where="value", hidden=D)
        values = {"table": jnp.eye(V, D), "value": jnp.eye(D)}
        split = ours.init(jax.random.key(0), values, usage(_values, values, ids))
        train = {"shared": shared, "value": {"w": last[:, 1, 0], "b": bias[1, 0]}}
        whole = lift(ours.wrap(split._replace(train=jax.tree.map(jnp.asarray, train)), _values))(values, ids)
        np.testing.assert_allclose(whole["all"][0, :P], theirs[:, 1, 0], rtol=1e-12)


def _all(p, ids):
    """What is embedded, in a shape that is not shortened."""
    return {"all": p["table"][ids][None, 0]}


def _values(p, ids):
    return {"all": (p["table"][ids] @ p["value"])[None, 0]}


def test_a_prompt_starts_from_text():
    params, ids = drawn()
    uses = usage(model, params, ids)
    split = prompt(P, text=[3, 7]).init(None, params, uses)
    np.testing.assert_array_equal(split.train["table"]["prompt"], params["table"][jnp.array([3, 7, 3, 7])])
    sampled = prompt(P).init(jax.random.key(0), params, uses).train["table"]["prompt"]
    assert all(bool((row == params["table"]).all(axis=1).any()) for row in sampled)


@pytest.mark.slow
def test_over_codes_and_under_lora():
    params, ids = drawn()
    technique = chain(quantize("nf4", group=2, where=".*kernel"), lora(2), prefix(2))
    split = technique.init(jax.random.key(0), params, usage(model, params, ids))
    assert set(split.train["prefix"]) == {
        f"{layer}/{name}/kernel" for layer in ("one", "two") for name in ("key", "value")
    }
    y = jax.jit(lift(technique.wrap(split, model)))(technique.apply(split), ids)
    base = jax.jit(lift(model))(quantize("nf4", group=2, where=".*kernel").init(None, params, {}).params, ids)
    assert y.shape == base.shape
    assert float(abs(y - base).max()) > 1e-4


def objective(params, variables, batch, key):
    """The next token, where the batch's mask says so."""
    logits = model(params, batch["tokens"])[:, :-1]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"][:, 1:])
    weight = batch["mask"][:, 1:].astype(jnp.float32)
    return (loss * weight).sum() / weight.sum(), Aux({"loss": ((loss * weight).sum(), weight.sum())}, variables)


@pytest.mark.parametrize("technique", [prompt, prefix])
def test_it_trains_on_batches_whose_mask_it_lengthens(technique):
    params, _ = drawn()
    params = jax.tree.map(jnp.float32, params)
    random = np.random.default_rng(0)
    tokens = np.tile(random.integers(0, V, (1, T)), (8, 1))
    data = Loader({"tokens": tokens, "mask": np.ones((8, T), np.int32)}, 4)
    tuned = technique(P, ids="tokens", fill={"mask": 0})
    split = tuned.init(jax.random.key(0), params, usage(model, params, tokens))
    before = jax.tree.map(np.asarray, params)
    fitted = fit(Task(objective, tuned, optax.adam(0.1), data), split, jax.random.key(0), Run(epochs=30, quiet=True))
    losses = [line["loss"] for line in fitted.history]
    assert losses[-1] < losses[0] / 2
    jax.tree.map(np.testing.assert_array_equal, fitted.split.params, before)


def test_arguments_that_would_not_fit_are_named():
    params, ids = drawn()
    fn = lambda p, ids, mask=None: model(p, ids)  # noqa: E731
    split = prompt(P).init(jax.random.key(0), params, usage(fn, params, ids))
    run = lambda technique, *args, **kwargs: technique.wrap(split, fn)(params, *args, **kwargs)  # noqa: E731
    with pytest.raises(UsageError, match=r"'mask' has the shape \(3, 5\) of the ids; .*fill=\{'mask': 1\}"):
        run(prompt(P), ids, mask=jnp.ones((B, T)))
    assert run(prompt(P, fill={"mask": 1}), ids, mask=jnp.ones((B, T))).shape == (B, T, V)
    with pytest.raises(
        UsageError, match="one array of integers among the arguments, not 2; say ids=, there are: '0', '1'"
    ):
        run(prompt(P), ids, ids)
    assert run(prompt(P, ids="0", fill={"1": 1}), ids, ids).shape == (B, T, V)
    with pytest.raises(UsageError, match="ids called 'tokens' among the arguments, not 0"):
        run(prompt(P, ids="tokens"), ids)
    with pytest.raises(UsageError, match="tokens=0"):
        prompt(0)
    with pytest.raises(UsageError, match="tokens='many'"):
        prefix("many")
    with pytest.raises(UsageError, match="starts from no text"):
        prompt(2, text=[1], hidden=3)
    with pytest.raises(UsageError, match="at least one id"):
        prompt(2, text=[])
    kernel = {"key": {"kernel": jnp.ones((D, 2))}, "table": params["table"]}
    pooled = lambda p, ids: p["table"][ids].mean(1) @ p["key"]["kernel"]  # noqa: E731
    split = prefix(P).init(jax.random.key(0), kernel, usage(pooled, kernel, ids))
    with pytest.raises(UsageError, match="their last axis before the features has to be that of the 9 positions"):
        prefix(P).wrap(split, pooled)(kernel, ids)


def test_the_model_may_be_a_linen_module_that_nobody_edited():
    class Mean(nn.Module):
        @nn.compact
        def __call__(self, ids):
            return nn.Dense(2)(nn.Embed(V, D)(ids).mean(1))

    module, ids = Mean(), drawn()[1]
    params = jax.tree.map(jnp.asarray, module.init(jax.random.key(0), ids)["params"])
    fn = lambda p, ids: module.apply({"params": p}, ids)  # noqa: E731
    split = prompt(P).init(jax.random.key(0), params, usage(fn, params, ids))
    (vectors,) = [parts["prompt"] for parts in split.train.values()]
    rows = jnp.concatenate([jnp.broadcast_to(vectors, (B, P, D)), params["Embed_0"]["embedding"][ids]], axis=1)
    expected = rows.mean(1) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    np.testing.assert_allclose(prompt(P).wrap(split, fn)(params, ids), expected, rtol=1e-5)

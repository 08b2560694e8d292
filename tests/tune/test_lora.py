"""LoRA against PEFT in float64, its dropout, its choices, its errors."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.compress.merge import merge
from jaxbig.errors import UsageError
from jaxbig.lift import MaterialiseWarning, lift
from jaxbig.transform import chain
from jaxbig.tree import paths
from jaxbig.tune.bitfit import bitfit
from jaxbig.tune.full import full
from jaxbig.tune.lora import lora
from jaxbig.usage import usage

KEY = jax.random.key(0)
RATE, STEPS, RANK, ALPHA = 0.5, 5, 2, 6.0


def ours(params, ids, image):
    """Look-up, convolution and linear layers, as `theirs` below computes them."""
    kernel, x = params["conv"]["kernel"], image
    y = jax.lax.conv_general_dilated(x, kernel, (1, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = jnp.tanh(y + params["conv"]["bias"]).mean((1, 2))
    h = jnp.concatenate([params["emb"][ids].mean(1), y], -1)
    h = jnp.tanh(h @ params["lin1"]["kernel"] + params["lin1"]["bias"])
    return h @ params["lin2"]["kernel"] + params["lin2"]["bias"]


@pytest.fixture(scope="module")
def torch_model():
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what importing it says is not ours to mend
        peft = pytest.importorskip("peft")

    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.emb = torch.nn.Embedding(11, 6)
            self.conv = torch.nn.Conv2d(2, 4, (3, 2), stride=(1, 2))
            self.lin1 = torch.nn.Linear(10, 7)
            self.lin2 = torch.nn.Linear(7, 3)

        def forward(self, ids, image):
            y = torch.tanh(self.conv(image)).mean((2, 3))
            h = torch.cat([self.emb(ids).mean(1), y], -1)
            return self.lin2(torch.tanh(self.lin1(h)))

    torch.manual_seed(0)
    model = Theirs().double()
    base = {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["emb", "conv", "lin1"])
    model = peft.get_peft_model(model, config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # PEFT starts at zero, where half of the gradients would vanish
                parameter.copy_(0.3 * torch.randn(parameter.shape, dtype=torch.float64))
    return torch, model, base


def our_tree(base):
    return {
        "emb": jnp.asarray(base["emb.weight"]),
        "conv": {
            "kernel": jnp.asarray(base["conv.weight"].transpose(2, 3, 1, 0)),
            "bias": jnp.asarray(base["conv.bias"]),
        },
        "lin1": {"kernel": jnp.asarray(base["lin1.weight"].T), "bias": jnp.asarray(base["lin1.bias"])},
        "lin2": {"kernel": jnp.asarray(base["lin2.weight"].T), "bias": jnp.asarray(base["lin2.bias"])},
    }


def our_factors(named):
    """PEFT's factors, or their gradients, in our layout."""
    of = {name.replace("base_model.model.", "").replace(".default", ""): value for name, value in named.items()}
    return {
        "emb": {"a": of["emb.lora_embedding_A"].T, "b": of["emb.lora_embedding_B"].T},
        "conv/kernel": {
            "a": of["conv.lora_A.weight"].transpose(2, 3, 1, 0),
            "b": of["conv.lora_B.weight"][:, :, 0, 0].T,
        },
        "lin1/kernel": {"a": of["lin1.lora_A.weight"].T, "b": of["lin1.lora_B.weight"].T},
    }


def their_steps(torch, model, ids, image, target):
    """Per step: (factors before it, logits, gradients)."""
    for _ in range(STEPS):
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        before = {name: p.detach().numpy().copy() for name, p in trained.items()}
        logits = model(torch.tensor(ids), torch.tensor(image.transpose(0, 3, 1, 2)))
        loss = ((logits - torch.tensor(target)) ** 2).mean()
        grads = dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))
        yield before, logits.detach().numpy(), {name: grad.numpy() for name, grad in grads.items()}
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter -= RATE * grads[name]


@pytest.mark.parity
def test_linear_convolution_and_table_are_peft_s(torch_model):
    torch, model, base = torch_model
    random = np.random.default_rng(0)
    ids, image = random.integers(0, 11, (4, 5)), random.normal(size=(4, 6, 5, 2))
    target = random.normal(size=(4, 3))
    with jax.enable_x64(True):
        params = our_tree(base)
        uses = usage(ours, params, ids, image)
        method = lora(rank=RANK, alpha=ALPHA, where=["emb", "conv/kernel", "lin1/kernel"])
        split = method.init(KEY, params, uses)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(split.train)} == {"float64"}

        @jax.jit
        def step(train):
            def loss(train):
                logits = lift(ours, strict=True)(method.apply(split._replace(train=train)), ids, image)
                return ((logits - target) ** 2).mean(), logits

            grads, logits = jax.grad(loss, has_aux=True)(train)
            return logits, grads, jax.tree.map(lambda p, g: p - RATE * g, train, grads)

        train = None
        for factors, logits, grads in their_steps(torch, model, ids, image, target):
            train = jax.tree.map(jnp.asarray, our_factors(factors)) if train is None else train
            close(train, our_factors(factors))
            our_logits, our_grads, train = step(train)
            np.testing.assert_allclose(our_logits, logits, rtol=1e-9, atol=1e-9)
            close(our_grads, our_factors(grads))


def close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), one, other)


# -- without a reference


X = jnp.linspace(-1, 1, 12).reshape(3, 4)
PARAMS = {"w": jnp.linspace(-1, 1, 24).reshape(4, 6), "head": jnp.linspace(-1, 1, 12).reshape(6, 2)}


def linear(params, x):
    return (x @ params["w"]) @ params["head"]


USES = usage(linear, PARAMS, X)


def stirred(method, params=PARAMS, uses=USES):
    split = method.init(KEY, params, uses)
    return split._replace(train=jax.tree.map(lambda leaf: leaf + 0.3, split.train))


def test_the_default_leaves_the_head_and_tables_alone():
    assert set(lora().init(KEY, PARAMS, USES).train) == {"w"}


def test_the_scale_is_alpha_over_rank_and_one_without_alpha():
    for alpha, scale in ((None, 1.0), (4.0, 2.0)):
        method = lora(rank=2, alpha=alpha)
        split = stirred(method)
        a, b = (split.train["w"][name] for name in "ab")
        np.testing.assert_allclose(merge(method.apply(split))["w"], PARAMS["w"] + scale * a @ b, rtol=1e-5)


def test_dropout_keeps_the_expectation_and_hits_the_input_of_a_alone():
    method = lora(rank=2, dropout=0.5)
    split = stirred(method)
    run = jax.jit(lambda key: lift(linear, strict=True)(method.apply(split, key), X))
    many = jax.vmap(run)(jax.random.split(jax.random.key(4), 4000))
    expected = lift(linear)(method.apply(split), X)
    error = jnp.abs(many.mean(0) - expected) / (many.std(0) / np.sqrt(4000))
    assert float(error.max()) < 4.5
    assert bool((many.std(0) > 0).all())
    whole = linear(PARAMS, X)
    a, b = (split.train["w"][name] for name in "ab")
    possible = {np.round(float((row * 2 * X[0]) @ a @ b @ PARAMS["head"][:, 0] + whole[0, 0]), 3)
                for row in np.array(np.meshgrid(*[[0, 1]] * 4)).reshape(4, -1).T}  # fmt: skip
    assert {np.round(float(value), 3) for value in many[:200, 0, 0]} <= {
        value + slack for value in possible for slack in (-0.001, 0, 0.001)} | possible  # fmt: skip


def test_scanned_layers_drop_independently():
    params = {"w": jnp.stack([jnp.eye(4)] * 3)}

    def model(params, x):
        return jax.lax.scan(lambda x, w: (x, x @ w), x, params["w"])[1]

    uses = usage(model, params, X)
    method = lora(rank=2, dropout=0.5, where="w")
    split = stirred(method, params, uses)
    same = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), split.train)
    y = lift(model, strict=True)(method.apply(split._replace(train=same), jax.random.key(1)), X)
    plain = lift(model, strict=True)(method.apply(split._replace(train=same)), X)
    np.testing.assert_allclose(plain[0], plain[1], rtol=1e-6)
    assert bool((y[0] != y[1]).any())
    assert bool((y[1] != y[2]).any())


def tied(params, ids):
    return jnp.tanh(params["table"][ids]) @ params["table"].T


def test_a_tied_table_is_adapted_in_both_uses_or_in_its_lookup_alone():
    params, ids = {"table": jnp.linspace(-1, 1, 15).reshape(5, 3)}, jnp.array([0, 4, 2])
    uses = usage(tied, params, ids)
    results = {}
    for which in ("all", "lookup"):
        method = lora(rank=2, where="table", uses=which)
        split = stirred(method, params, uses)
        results[which] = lift(tied, strict=True)(method.apply(split), ids)
        full_table = params["table"] + split.train["table"]["a"] @ split.train["table"]["b"]
    both = jnp.tanh(full_table[ids])
    np.testing.assert_allclose(results["all"], both @ full_table.T, rtol=1e-5)
    np.testing.assert_allclose(results["lookup"], both @ params["table"].T, rtol=1e-5)
    with pytest.raises(UsageError, match="two different arrays"):
        merge(method.apply(split))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: lora(rank=0), "rank=0; it is a whole number of at least 1"),
        (lambda: lora(uses="product"), "uses='product'"),
        (lambda: lora(where="v").init(KEY, PARAMS, USES), "nearest paths: head, w"),
        (lambda: lora(where="b").init(KEY, {"b": jnp.ones(2)}, {}), "neither multiplied nor looked up"),
        (lambda: chain(full(), lora()).init(KEY, PARAMS, USES), "belong to other links"),
    ],
)
def test_errors_are_one_clear_line(make, words):
    with pytest.raises(UsageError, match=r"^[^\n]*$") as caught:
        make()
    assert words in str(caught.value)


def test_an_8_bit_floating_base_is_adapted():
    params = {"w": jnp.asarray(np.linspace(-1, 1, 24).reshape(6, 4), jnp.float8_e4m3fn)}
    fn = lambda params, x: jnp.tanh(x @ params["w"].astype(jnp.float32))  # noqa: E731
    method, x = lora(rank=2, where="w"), jnp.linspace(-1, 1, 12).reshape(2, 6)
    split = method.init(KEY, params, usage(fn, params, x))
    assert split.train["w"]["a"].dtype == jnp.float32
    np.testing.assert_array_equal(merge(method.apply(split))["w"].astype(jnp.float32), params["w"].astype(jnp.float32))
    train = jax.tree.map(lambda leaf: leaf + 0.5, split.train)
    low = train["w"]
    np.testing.assert_allclose(
        lift(fn, strict=True)(method.apply(split._replace(train=train)), x),
        np.tanh(np.asarray(x) @ (np.asarray(params["w"], np.float32) + np.asarray(low["a"]) @ np.asarray(low["b"]))),
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip


def test_one_mask_for_all_uses_of_a_step_and_none_where_the_weight_is_expanded():
    params, x = {"w": jnp.eye(8)}, jnp.ones((1, 8))
    twice = lambda p, x: (x @ p["w"], x @ p["w"])  # noqa: E731
    method = lora(rank=2, dropout=0.5, where="w")
    split = method.init(KEY, params, usage(twice, params, x))
    split = split._replace(train=jax.tree.map(lambda leaf: leaf + 0.5, split.train))
    for seed in range(3):
        one, two = lift(twice, strict=True)(method.apply(split, jax.random.key(seed)), x)
        np.testing.assert_array_equal(one, two)
    square = lift(lambda p: (p["w"] ** 2).sum())
    with pytest.warns(MaterialiseWarning, match="LowRank r=2 is expanded to a plain array, without its dropout, for"):
        dropped = square(method.apply(split, KEY))
    with pytest.warns(MaterialiseWarning, match=r"LowRank r=2 is expanded to a plain array for"):
        np.testing.assert_array_equal(dropped, square(method.apply(split)))


def test_a_wide_adapter_over_a_bf16_base_stays_float32():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    method = chain(lora(rank=2), bitfit(where="head"))
    split = method.init(KEY, params, USES)
    assert {path: leaf.dtype.name for path, leaf in paths(split.train).items()} == {
        "bitfit/head": "bfloat16", "lora/w/a": "float32", "lora/w/b": "float32"}  # fmt: skip
    y = lift(linear, strict=True)(method.apply(split), X.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16


@pytest.mark.parametrize("dropout", [1.0, 1.5, -0.1])
def test_a_dropout_that_is_no_share_is_refused(dropout):
    with pytest.raises(UsageError, match=r"dropout=.*; it lies in \[0, 1\)"):
        lora(dropout=dropout)


def test_look_ups_alone_take_tables_and_nothing_else():
    params = {"table": jnp.ones((5, 4)), "w": jnp.ones((4, 3))}
    fn = lambda p, ids: jnp.take(p["table"], ids, axis=0) @ p["w"]  # noqa: E731
    uses = usage(fn, params, jnp.array([0, 1]))
    assert list(lora(uses="lookup").init(jax.random.key(0), params, uses).train) == ["table"]
    with pytest.raises(UsageError, match="w is never looked up"):
        lora(uses="lookup", where="w").init(jax.random.key(0), params, uses)

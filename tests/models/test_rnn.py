"""RNN: torch's LSTM and GRU with packed sequences, and padding that influences nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.errors import UserError
from jaxbig.models import RNN, RecurrentStack

QUICK_TO_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
LENGTHS = np.array([5, 1, 4])
B, T, D, H = 3, 6, 4, 5
RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.normal(size=(B, T, D))
IDS = RANDOM.integers(0, 7, (B, T))


def filled(shapes):
    random = np.random.default_rng(5)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape) * 0.5, shapes)


def parameters(model, x):
    return filled(jax.eval_shape(model.init, jax.random.key(0), x, LENGTHS)["params"])


def outputs(model, params, x, lengths):
    """Logits, and gradients of a sum over valid steps that tells all apart."""

    def loss(params, x):
        logits = model.apply({"params": params}, x, lengths)
        weights = jnp.cos(jnp.arange(logits[0].size, dtype=logits.dtype)).reshape(logits.shape[1:])
        terms = logits * weights
        if logits.ndim == 3:
            terms = jnp.where((jnp.arange(x.shape[1]) < lengths[:, None])[..., None], terms, 0)
        return terms.sum(), logits

    return jax.grad(loss, argnums=(0, 1) if x.ndim == 3 else 0, has_aux=True)(params, x)


@pytest.mark.parametrize(
    ("cell", "pool"),
    [
        pytest.param("lstm", "last", marks=pytest.mark.slow),
        ("gru", "mean"),
        pytest.param("lstm", "sequence", marks=pytest.mark.slow),
    ],
)
def test_padding_influences_neither_result_nor_gradient(cell, pool):
    """Whatever is in the padding, a sequence gives what it gives alone."""
    model = RNN(2, H, layers=2, cell=cell, bidirectional=True, pool=pool)
    params = parameters(model, FEATURES)
    padding = np.arange(T) >= LENGTHS[:, None]
    with jax.enable_x64(True):
        step = jax.jit(lambda *args: outputs(model, params, *args), compiler_options=QUICK_TO_COMPILE)
        (grads, x_grad), logits = step(np.where(padding[..., None], np.nan, FEATURES), LENGTHS)
        results = step(FEATURES, LENGTHS)
        alone = jax.tree.map(np.asarray, step(FEATURES[2:, :4], LENGTHS[2:]))
        logits, x_grad = np.asarray(logits), np.asarray(x_grad)
    jax.tree.map(np.testing.assert_array_equal, results[0], (grads, x_grad))
    (_, own), expected = alone
    np.testing.assert_allclose(logits[2, :4] if pool == "sequence" else logits[2], expected[0], rtol=1e-11)
    np.testing.assert_allclose(x_grad[2, :4], own[0], rtol=1e-9, atol=1e-13)
    assert not x_grad[padding].any()
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


def test_no_valid_step_gives_the_heads_bias():
    for pool in ("last", "mean"):
        model = RNN(2, H, pool=pool)
        params = parameters(model, FEATURES)
        logits = model.apply({"params": params}, FEATURES, np.zeros(B, int))
        np.testing.assert_allclose(logits, np.tile(params["head"]["bias"], (B, 1)), rtol=1e-6)


def test_tokens_are_looked_up_and_padding_may_be_no_token():
    model = RNN(2, H, vocabulary=7, embedding=D)
    params = parameters(model, IDS)
    padded = np.where(np.arange(T) >= LENGTHS[:, None], -1, IDS)
    logits = model.apply({"params": params}, padded, LENGTHS)
    features = params["embed"]["embedding"][IDS]
    rest = {name: leaf for name, leaf in params.items() if name != "embed"}
    np.testing.assert_allclose(logits, RNN(2, H).apply({"params": rest}, features, LENGTHS), rtol=1e-5)


def test_initialisation():
    params = jax.jit(RNN(2, 64).init)(jax.random.key(0), jnp.ones((1, 2, 32)))["params"]["stack"]["layer_0"]
    for gate in range(4):
        u = np.asarray(params["recurrent_kernel"][:, 64 * gate : 64 * (gate + 1)])
        np.testing.assert_allclose(u @ u.T, np.eye(64), atol=1e-5)
    bound = (6 / (32 + 64)) ** 0.5
    assert 0.98 * bound < float(jnp.abs(params["input"]["kernel"]).max()) <= bound
    np.testing.assert_array_equal(params["input"]["bias"].reshape(4, 64).mean(1), [0, 1, 0, 0])


@pytest.mark.parametrize("cell", ["lstm", pytest.param("gru", marks=pytest.mark.slow)])
def test_remat_and_bfloat16(cell):
    model = RNN(2, H, cell=cell)
    params = parameters(model, FEATURES)
    (plain, _), _ = outputs(model, params, FEATURES, LENGTHS)
    (again, _), _ = outputs(model.clone(remat=True), params, FEATURES, LENGTHS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), plain, again)
    half = model.clone(dtype=jnp.bfloat16)
    assert jax.eval_shape(half.apply, {"params": params}, FEATURES).dtype == jnp.bfloat16
    shapes = jax.eval_shape(half.init, jax.random.key(0), FEATURES)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_dropout_lies_between_layers_and_before_the_head():
    x = np.abs(FEATURES)
    key = {"dropout": jax.random.key(3)}
    one = RecurrentStack(H, layers=1, dropout=0.5)
    params = parameters(one, x)
    np.testing.assert_array_equal(
        one.apply({"params": params}, x, LENGTHS, True, rngs=key)[0], one.apply({"params": params}, x, LENGTHS)[0]
    )
    two = RecurrentStack(H, layers=2, dropout=0.5)
    params = parameters(two, x)
    dropped = two.apply({"params": params}, x, LENGTHS, True, rngs=key)[0]
    assert np.abs(np.subtract(dropped, two.apply({"params": params}, x, LENGTHS)[0])).max() > 1e-3
    model = RNN(2, H, dropout=0.5)
    params = parameters(model, x)
    logits = model.apply({"params": params}, x, LENGTHS, True, rngs=key)
    assert np.abs(np.subtract(logits, model.apply({"params": params}, x, LENGTHS))).max() > 1e-3


@pytest.mark.parity
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (2, True)])
def test_states_and_gradients_are_torchs_of_packed_sequences(cell, layers, bidirectional):
    torch = pytest.importorskip("torch")
    stack = RecurrentStack(H, layers, cell, bidirectional)
    params = parameters(stack, FEATURES)
    module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell]
    theirs = module(D, H, layers, batch_first=True, bidirectional=bidirectional).double()
    second = np.random.default_rng(2).normal(size=(GATES := {"lstm": 4, "gru": 3}[cell]) * H)
    state, candidates = {}, slice(2 * H, 3 * H)
    for name, leaf in params.items():
        suffix = f"l{name.split('_')[1]}" + ("_reverse" if name.endswith("back") else "")
        # torch adds two biases: a share of ours in each, but for the candidate of a GRU, where the second is b_n
        first, other = leaf["input"]["bias"] - second, second.copy()
        if cell == "gru":
            first[candidates], other[candidates] = leaf["input"]["bias"][candidates], leaf["candidate_bias"]
        state |= {
            f"weight_ih_{suffix}": leaf["input"]["kernel"].T,
            f"weight_hh_{suffix}": leaf["recurrent_kernel"].T,
            f"bias_ih_{suffix}": first,
            f"bias_hh_{suffix}": other,
        }
    assert state["bias_hh_l0"].shape == (GATES * H,)
    theirs.load_state_dict({name: torch.tensor(leaf) for name, leaf in state.items()})
    x = torch.tensor(FEATURES, requires_grad=True)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False)
    packed, last = theirs(packed)
    states, _ = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True, total_length=T)
    last = last[0] if cell == "lstm" else last
    last = torch.cat(list(last[-2:] if bidirectional else last[-1:]), 1)
    weights = np.cos(np.arange(states.numel())).reshape(states.shape)
    ((states * torch.tensor(weights)).sum() + (last**2).sum()).backward()

    def loss(params, x):
        states, last = stack.apply({"params": params}, x, LENGTHS)
        return (states * weights).sum() + jnp.square(last).sum(), (states, last)

    with jax.enable_x64(True):
        step = jax.jit(jax.grad(loss, (0, 1), has_aux=True), compiler_options=QUICK_TO_COMPILE)
        (grads, x_grad), (ours, ours_last) = step(params, FEATURES)
    np.testing.assert_allclose(ours, states.detach().numpy(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ours_last, last.detach().numpy(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(x_grad, x.grad.numpy(), rtol=1e-9, atol=1e-12)
    for name, leaf in grads.items():
        suffix = f"l{name.split('_')[1]}" + ("_reverse" if name.endswith("back") else "")
        expected = {
            key: getattr(theirs, f"{key}_{suffix}").grad.numpy() for key in ("weight_ih", "weight_hh", "bias_hh")
        }
        np.testing.assert_allclose(leaf["input"]["kernel"], expected["weight_ih"].T, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(leaf["recurrent_kernel"], expected["weight_hh"].T, rtol=1e-9, atol=1e-12)
        bias = getattr(theirs, f"bias_ih_{suffix}").grad.numpy()
        np.testing.assert_allclose(leaf["input"]["bias"], bias, rtol=1e-9, atol=1e-12)
        if cell == "gru":
            np.testing.assert_allclose(leaf["candidate_bias"], expected["bias_hh"][candidates], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (lambda: RNN(2, cell="elman").init(jax.random.key(0), FEATURES), "'lstm'"),
        (lambda: RNN(2, pool="max").init(jax.random.key(0), FEATURES), "'mean'"),
        (lambda: RNN(2).init(jax.random.key(0), IDS), "vocabulary"),
        (lambda: RNN(2, vocabulary=7).init(jax.random.key(0), FEATURES), "integers"),
        (lambda: RNN(2).init(jax.random.key(0), FEATURES, LENGTHS[:2]), "batch of 3"),
    ],
)
def test_errors_are_one_line_that_names_what_to_change(act, word):
    with pytest.raises(UserError) as caught:
        act()
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)

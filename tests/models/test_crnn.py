"""CRNN: the same network in torch, and padding that influences nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.errors import UserError
from jaxbig.models import CRNN

QUICK_TO_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
X = np.random.default_rng(0).normal(size=(3, 13, 8))
LENGTHS = np.array([13, 6, 9])
MODEL = CRNN(2, (4, 6), hidden=5, layers=2)


@pytest.fixture(scope="module")
def params():
    random = np.random.default_rng(5)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), X)["params"]
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape) * 0.5, shapes)


def test_padding_influences_neither_result_nor_gradient(params):
    def outputs(params, x, lengths):
        def loss(params):
            logits = MODEL.apply({"params": params}, x, lengths)
            return jnp.sum(jnp.square(logits)[-1]), logits

        return jax.grad(loss, has_aux=True)(params)

    padding = (np.arange(13) >= LENGTHS[:, None])[..., None]
    with jax.enable_x64(True):
        step = jax.jit(outputs, compiler_options=QUICK_TO_COMPILE)
        padded = jax.tree.map(np.asarray, step(params, np.where(padding, np.nan, X), LENGTHS))
        alone = jax.tree.map(np.asarray, step(params, X[2:, :9], None))
    np.testing.assert_allclose(padded[1][2], alone[1][0], rtol=1e-11)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), padded[0], alone[0])


@pytest.mark.slow
def test_a_sound_without_frames_has_the_heads_bias(params):
    logits = MODEL.apply({"params": params}, X, np.array([0, 3, 13]))
    np.testing.assert_allclose(logits[:2], np.tile(params["head"]["bias"], (2, 1)), rtol=1e-6)


def test_dropout_and_bfloat16(params):
    model = MODEL.clone(dropout=0.5)
    dropped = model.apply({"params": params}, X, LENGTHS, True, rngs={"dropout": jax.random.key(0)})
    assert np.abs(np.subtract(dropped, model.apply({"params": params}, X, LENGTHS))).max() > 1e-3
    half = MODEL.clone(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(half.init, jax.random.key(0), X)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    assert jax.eval_shape(half.apply, shapes, X).dtype == jnp.bfloat16


@pytest.mark.parity
@pytest.mark.parametrize("halvings", [2, 1])
def test_outputs_are_those_of_the_same_network_in_torch(params, halvings):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    tensors = jax.tree.map(torch.tensor, params)
    expected = []
    for x, length in zip(torch.tensor(X), LENGTHS, strict=True):
        y = x[None, None, :length]  # B C T F
        for i, channels in enumerate((4, 6)):
            conv, norm = tensors[f"conv_{i}"], tensors[f"norm_{i}"]
            y = functional.conv2d(y, conv["kernel"].permute(3, 2, 0, 1), conv["bias"], padding=1).movedim(1, -1)
            y = functional.max_pool2d(y.movedim(-1, 1), 2 if i < halvings else (1, 2)).movedim(1, -1)
            y = torch.relu(functional.layer_norm(y, (channels,), norm["scale"], norm["bias"], 1e-6)).movedim(-1, 1)
        gru = torch.nn.GRU(12, 5, 2, batch_first=True, bidirectional=True).double()
        state = {}
        for name, layer in tensors["stack"].items():
            suffix = f"l{name.split('_')[1]}" + ("_reverse" if name.endswith("back") else "")
            second = torch.zeros(15, dtype=torch.float64)
            second[10:] = layer["candidate_bias"]
            state |= {
                f"weight_ih_{suffix}": layer["input"]["kernel"].T,
                f"weight_hh_{suffix}": layer["recurrent_kernel"].T,
                f"bias_ih_{suffix}": layer["input"]["bias"],
                f"bias_hh_{suffix}": second,
            }
        gru.load_state_dict(state)
        states, _ = gru(y.permute(0, 2, 3, 1).flatten(2))
        expected.append(
            torch.cat([states.mean(1), states.amax(1)], 1) @ tensors["head"]["kernel"] + tensors["head"]["bias"]
        )
    with jax.enable_x64(True):
        ours = jax.jit(MODEL.clone(halvings=halvings).apply, compiler_options=QUICK_TO_COMPILE)(
            {"params": params}, X, LENGTHS
        )
    np.testing.assert_allclose(ours, torch.cat(expected).detach().numpy(), rtol=1e-9)


@pytest.mark.parametrize("shape", [(2, 8), (2, 3, 8), (2, 8, 3)])
def test_errors_are_one_line_that_names_what_to_change(shape):
    with pytest.raises(UserError, match="at least 4") as caught:
        MODEL.init(jax.random.key(0), jnp.ones(shape))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("halvings", [-1, 3])
def test_there_are_no_more_halvings_than_poolings(halvings):
    with pytest.raises(UserError, match=f"halvings={halvings}; use 0 to 2"):
        MODEL.clone(halvings=halvings).init(jax.random.key(0), X)

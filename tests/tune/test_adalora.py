"""AdaLoRA against PEFT in float64, step by step: outputs, gradients, averages, choices; its penalty; its errors."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft_pair
import pytest

from jaxbig.compress.quantize import quantize
from jaxbig.errors import UsageError
from jaxbig.gradient import Penalty
from jaxbig.inject import inject_hyperparams
from jaxbig.lift import lift
from jaxbig.objective import classify
from jaxbig.step import init_state, make_step
from jaxbig.transform import Split, chain
from jaxbig.tune.adalora import adalora, orthogonality, schedule
from jaxbig.usage import usage

KEY = jax.random.key(0)
RATE, STEPS = 0.3, 14
OURS = {"steps": STEPS, "rank": 4, "target": 2, "alpha": 3.0, "beta1": 0.8, "beta2": 0.7}
THEIRS = {"total_step": STEPS, "init_r": 4, "target_r": 2, "lora_alpha": 3.0, "beta1": 0.8, "beta2": 0.7}
SCHEDULES = [(2, 3, 2), (0, 0, 1), (1, 5, 3), (0, 4, 20)]


def close(ours, theirs, message=""):
    for path, parts in theirs.items():
        for part, array in parts.items():
            np.testing.assert_allclose(
                ours[path][part], array, rtol=1e-9, atol=1e-12, err_msg=f"{message} {path} {part}"
            )


def averages(model, which) -> dict:
    """PEFT's averages in the layout of what is trained."""
    found: dict = {}
    for name, array in getattr(model.base_model.rankallocator, which).items():
        layer = next(part for part in name.split(".") if part in peft_pair.LAYERS)
        part = next(part for part in name.split(".") if part.startswith("lora_"))
        array = array.numpy().ravel() if part == "lora_E" else array.numpy().T
        found.setdefault(f"{layer}/kernel", {})[part.removeprefix("lora_").lower()] = array
    return found


@pytest.mark.parity
@pytest.mark.parametrize(("t_init", "t_final", "delta_t"), SCHEDULES)
def test_training_is_peft_s_step_by_step(t_init, t_final, delta_t):
    times = {"t_init": t_init, "t_final": t_final, "delta_t": delta_t}
    the = peft_pair.pair("AdaLoraConfig", tinit=t_init, tfinal=t_final, deltaT=delta_t, **THEIRS)
    peft_pair.stir(the)
    optimizer = the.torch.optim.SGD(peft_pair.parameters(the.model).values(), RATE)
    taken = []
    with jax.enable_x64(True):
        params, x = jax.tree.map(jnp.asarray, (the.tree, the.x))
        method = adalora(**OURS, **times)
        split = method.init(KEY, params, usage(peft_pair.ours, params, x))
        split = split._replace(train=jax.tree.map(jnp.asarray, peft_pair.trained(the.model)))

        @jax.jit
        def step(train, state, number):
            def loss(train):
                y = lift(peft_pair.ours, strict=True)(method.apply(Split(params, train, state)), x)
                return (y**2).mean(), y

            grads, y = jax.grad(loss, has_aux=True)(train)
            train = jax.tree.map(lambda leaf, grad: leaf - RATE * grad, train, grads)
            after = method.update(Split(params, train, state), grads, number)
            return after.train, after.state, grads, y

        train, state = split.train, split.state
        for number in range(STEPS + 2):
            optimizer.zero_grad()
            expected = peft_pair.theirs(the)
            grads = peft_pair.trained(the.model, True)
            optimizer.step()
            the.model.base_model.update_and_allocate(number)
            train, state, our_grads, y = step(train, state, number)
            np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-12)
            close(our_grads, grads, f"gradient at {number}")
            close(train, peft_pair.trained(the.model), f"step {number}")
            close(state["sensitivity"], averages(the.model, "exp_avg_ipt"), f"sensitivity at {number}")
            close(state["uncertainty"], averages(the.model, "exp_avg_unc"), f"uncertainty at {number}")
            taken.append(sum(int((parts["e"] == 0).sum()) for parts in train.values()))
        kept = sum(int(mask.sum()) for mask in state["kept"].values())
        assert kept == 4  # two matrices of two triplets
        assert taken[-1] == 8 - 4
        assert taken[0] == 0
        assert all(not (leaf != 0).any() for leaf in jax.tree.leaves(state["sensitivity"]))  # PEFT starts again, too


@pytest.mark.parity
@pytest.mark.parametrize(("t_init", "t_final", "delta_t"), SCHEDULES)
def test_the_budget_is_peft_s(t_init, t_final, delta_t):
    the = peft_pair.pair("AdaLoraConfig", tinit=t_init, tfinal=t_final, deltaT=delta_t, **THEIRS)
    budgets = schedule(8, 4, t_init, STEPS - t_final, delta_t)
    for i, budget in enumerate(budgets):
        assert budget == the.model.base_model.rankallocator.budget_schedule(i * delta_t)[0]


@pytest.mark.parity
def test_the_penalty_is_peft_s():
    the = peft_pair.pair("AdaLoraConfig", orth_reg_weight=0.3, **THEIRS)
    peft_pair.stir(the)
    inner = the.model.base_model.model.forward
    the.model.base_model.model.forward = lambda x: SimpleNamespace(loss=(inner(x) ** 2).mean())
    output = the.model.base_model(the.torch.tensor(the.x))  # which adds the penalty
    output.loss.backward()
    expected, train = peft_pair.trained(the.model, True), peft_pair.trained(the.model)
    with jax.enable_x64(True):
        params, x = jax.tree.map(jnp.asarray, (the.tree, the.x))
        method = adalora(**OURS)
        split = method.init(KEY, params, usage(peft_pair.ours, params, x))
        split = split._replace(train=jax.tree.map(jnp.asarray, train))

        def loss(train):
            return (lift(peft_pair.ours, strict=True)(method.apply(split._replace(train=train)), x) ** 2).mean()

        plain = lambda split, *_: (jax.grad(loss)(split.train), {}, {})  # noqa: E731
        grads, _, _ = Penalty(orthogonality, 0.3)(plain)(split, {}, None, KEY)
        close(grads, expected)
        whole = loss(split.train) + 0.3 * orthogonality(split.train)
        np.testing.assert_allclose(whole, output.loss.item(), rtol=1e-9)


def test_orthogonal_triplets_have_no_penalty_and_a_gradient_that_is_none():
    train = {"w": {"a": jnp.eye(4, 2), "e": jnp.ones(2), "b": jnp.eye(2, 5)}}
    assert float(orthogonality(train)) == 0
    assert all(not (leaf != 0).any() for leaf in jax.tree.leaves(jax.grad(orthogonality)(train)))


@pytest.mark.slow
def test_a_stack_is_its_layers():
    """Importance, budget and penalty of stacked layers are those of the same layers apart."""
    random = np.random.default_rng(0)
    w, x = jnp.asarray(random.normal(size=(3, 6, 5)), jnp.float32), jnp.ones((3, 2, 6))
    method = adalora(**OURS, where=".*")
    stacked = lambda p, x: jnp.einsum("lbi,lio->lbo", x, p["w"])  # noqa: E731
    apart = lambda p, x: [x[i] @ p[f"w{i}"] for i in range(3)]  # noqa: E731
    one = method.init(KEY, {"w": w}, usage(stacked, {"w": w}, x))
    layers = {f"w{i}": w[i] for i in range(3)}
    many = method.init(KEY, layers, usage(apart, layers, x))
    filled = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype), tree)  # noqa: E731
    one = one._replace(train=filled(one.train))
    grads = filled(one.train)
    take = lambda tree: {f"w{i}": jax.tree.map(lambda leaf, i=i: leaf[i], tree["w"]) for i in range(3)}  # noqa: E731
    many = many._replace(train=take(one.train))
    np.testing.assert_allclose(orthogonality(one.train), orthogonality(many.train), rtol=1e-6)
    one, many = method.update(one, grads, 9), method.update(many, take(grads), 9)
    assert 0 < int(one.state["kept"]["w"].sum()) < 12
    jax.tree.map(np.testing.assert_array_equal, take(one.state["kept"]), many.state["kept"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), take(one.train), many.train)


def test_the_trainer_s_step_takes_triplets_away_over_codes_and_in_one_trace():
    model, batch = (
        nn.Sequential([nn.Dense(6), nn.tanh, nn.Dense(3)]),
        {"image": jnp.ones((4, 5)), "label": jnp.arange(4) % 3},
    )
    params = model.init(KEY, batch["image"])["params"]
    method = chain(quantize("int8"), inject_hyperparams(adalora)(6, 6, 1, t_final=2))
    split = method.init(KEY, params, usage(lambda p, x: model.apply({"params": p}, x), params, batch["image"]))
    penalty = Penalty(lambda train: orthogonality(train["adalora"]), 0.1)
    base, state = init_state(split, optax.adam(0.1), KEY)
    step = make_step(classify(model), method, optax.adam(0.1), ways=[penalty])
    zeros = []
    for _ in range(7):
        state, _ = step(base, state, batch)
        zeros.append(int((state.split.train["adalora"]["layers_0/kernel"]["e"] == 0).sum()))
    assert zeros == [0, 3, 5, 5, 5, 5, 5]  # 6, then int(5 * 0.75**3 + 1), int(5 * 0.5**3 + 1), ... stay
    assert step._cache_size() == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rank": 0}, "rank=0; it is a whole number"),
        ({"target": 0}, "target: rank=0; it is a whole number"),
        ({"rank": 4, "target": 5}, "target=5 is above rank=4"),
        ({"t_init": 6, "t_final": 4}, "leave no step of 10 to choose in"),
        ({"delta_t": 0}, "delta_t at least 1"),
    ],
)
def test_arguments_without_sense_are_refused(options, says):
    with pytest.raises(UsageError, match=says):
        adalora(**{"steps": 10, **options})

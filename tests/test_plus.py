"""LoRA+ against PEFT's optimiser in float64, over dense layers, a table and biases; its choice of leaves."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.errors import UsageError
from jaxbig.lift import lift
from jaxbig.optim import Optimizer
from jaxbig.partition import partition
from jaxbig.plus import lora_plus
from jaxbig.transform import chain
from jaxbig.tune.bitfit import bitfit
from jaxbig.tune.dora import dora
from jaxbig.tune.full import full
from jaxbig.tune.lora import lora
from jaxbig.usage import usage

KEY = jax.random.key(0)
# Powers of two, which float32 holds: rates are computed in it.
RATE, RATIO, TABLE, DECAY, STEPS = 2.0**-6, 8.0, 0.25, 0.125, 6


def ours(params, ids):
    h = jnp.tanh(params["emb"][ids].mean(1) @ params["lin1"]["kernel"] + params["lin1"]["bias"])
    return h @ params["lin2"]["kernel"] + params["lin2"]["bias"]


@pytest.fixture(scope="module")
def theirs():
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what importing it says is not ours to mend
        peft = pytest.importorskip("peft")
        from peft.optimizers import create_loraplus_optimizer

    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.lin1, self.lin2 = torch.nn.Embedding(11, 6), torch.nn.Linear(6, 7), torch.nn.Linear(7, 3)

        def forward(self, ids):
            return self.lin2(torch.tanh(self.lin1(self.emb(ids).mean(1))))

    torch.manual_seed(0)
    base = Theirs().double()
    weights = {name: value.detach().numpy().copy() for name, value in base.state_dict().items()}
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["emb", "lin1"], bias="lora_only")
    model = peft.get_peft_model(base, config).double()
    rates = {"loraplus_lr_ratio": RATIO, "loraplus_lr_embedding": RATE * TABLE, "loraplus_weight_decay": DECAY}
    return torch, model, weights, create_loraplus_optimizer(model, torch.optim.AdamW, lr=RATE, **rates)


def trained(model):
    """What PEFT trains, in our layout."""
    named = {name: value.detach().numpy().copy() for name, value in model.named_parameters() if value.requires_grad}
    (bias,) = (value for name, value in named.items() if name.endswith("lin1.base_layer.bias"))
    find = lambda part: next(value.T for name, value in named.items() if part in name)  # noqa: E731
    low = {"emb": {"a": find("lora_embedding_A"), "b": find("lora_embedding_B")},
           "lin1/kernel": {"a": find("lin1.lora_A"), "b": find("lin1.lora_B")}}  # fmt: skip
    return {"lora": low, "bitfit": {"lin1/bias": bias}}


@pytest.mark.parity
def test_six_steps_of_adamw_are_peft_s(theirs):
    torch, model, weights, optimizer = theirs
    ids, target = np.random.default_rng(0).integers(0, 11, (4, 5)), np.random.default_rng(1).normal(size=(4, 3))
    with jax.enable_x64(True):
        dense = lambda name: {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}  # noqa: E731
        params = {"emb": weights["emb.weight"], "lin1": dense("lin1"), "lin2": dense("lin2")}
        params = jax.tree.map(jnp.asarray, params)
        uses = usage(ours, params, ids)
        method = chain(lora(2, where=["emb", "lin1/kernel"]), bitfit(where="lin1/bias"))
        split = method.init(KEY, params, uses)
        rules = lora_plus(split.train, uses, RATIO, TABLE)
        decays = [("bitfit/.*", 0.0)]
        mine = Optimizer("adamw", RATE, weight_decay=DECAY, lr_rules=rules, decay_rules=decays).build()
        train = jax.tree.map(jnp.asarray, trained(model))
        assert jax.tree.map(jnp.shape, train) == jax.tree.map(jnp.shape, split.train)
        state = mine.init(train)
        loss = lambda train: ((lift(ours)(method.apply(split._replace(train=train)), ids) - target) ** 2).mean()  # noqa: E731
        for _ in range(STEPS):
            optimizer.zero_grad()
            ((model(torch.tensor(ids)) - torch.tensor(target)) ** 2).mean().backward()
            optimizer.step()
            updates, state = mine.update(jax.grad(loss)(train), state, train)
            train = jax.tree.map(jnp.add, train, updates)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), train, trained(model))


def test_b_and_lengths_and_vectors_are_fast_through_partitions_and_stacks():
    params = {"stack": {"kernel": jnp.ones((2, 4, 4)), "bias": jnp.ones((2, 4))}, "head": {"kernel": jnp.ones((4, 3))},
              "table": jnp.ones((5, 4))}  # fmt: skip

    def fn(params, ids):
        layer = lambda x, p: (jnp.tanh(x @ p["kernel"] + p["bias"]), None)  # noqa: E731
        return jax.lax.scan(layer, params["table"][ids], params["stack"])[0] @ params["head"]["kernel"]

    uses = usage(fn, params, jnp.array([0, 1]))
    method = partition(
        {"head/.*": full(), "stack/kernel": dora(2), "stack/bias": bitfit(), "table": lora(2, where=".*")}
    )
    rules = lora_plus(method.init(KEY, params, uses).train, uses, ratio=4.0, table=0.5)
    assert rules == [
        (("bitfit/stack/bias", "dora/stack/kernel/b", "dora/stack/kernel/magnitude"), 4.0),
        (("lora/table/a", "lora/table/b"), 0.5),
    ]


def test_where_nothing_has_factors_it_says_so():
    with pytest.raises(UsageError, match="nothing that is trained has factors a and b"):
        lora_plus({"w": jnp.ones(3)}, {})

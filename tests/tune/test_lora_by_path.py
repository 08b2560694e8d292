"""LoRA's ranks and scales by path, and rsLoRA's scale, against PEFT in float64."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import peft_pair
import pytest

from jaxbig.errors import UsageError
from jaxbig.lift import lift
from jaxbig.registry import build
from jaxbig.tune.lora import lora
from jaxbig.usage import usage

KEY = jax.random.key(0)
ALPHA = 6.0


@pytest.mark.parity
@pytest.mark.parametrize("stabilised", [False, True])
def test_ranks_and_scales_by_path_are_peft_s(stabilised):
    patterns = {"rank_pattern": {"lin1": 3}, "alpha_pattern": {"lin2": 5.0}}
    the = peft_pair.pair("LoraConfig", r=2, lora_alpha=ALPHA, use_rslora=stabilised, **patterns)
    peft_pair.stir(the)
    expected, train, grads = peft_pair.theirs(the), peft_pair.trained(the.model), peft_pair.trained(the.model, True)
    with jax.enable_x64(True):
        params, x = jax.tree.map(jnp.asarray, (the.tree, the.x))
        method = lora({"lin1/.*": 3, ".*": 2}, {"lin2/.*": 5.0, ".*": ALPHA}, stabilised=stabilised)
        method = build(json.loads(json.dumps(method.config)))  # as a manifest keeps it
        split = method.init(KEY, params, usage(peft_pair.ours, params, x))
        assert jax.tree.map(jnp.shape, split.train) == jax.tree.map(np.shape, train)

        def loss(train):
            y = lift(peft_pair.ours, strict=True)(method.apply(split._replace(train=train)), x)
            return (y**2).mean(), y

        found, y = jax.grad(loss, has_aux=True)(jax.tree.map(jnp.asarray, train))
        np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-12)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), found, grads)


def test_ranks_by_path_have_to_name_every_weight_and_no_other():
    params = {"w": jnp.ones((4, 6)), "head": jnp.ones((6, 2))}
    uses = usage(lambda p, x: jnp.tanh(x @ p["w"]) @ p["head"], params, jnp.ones((3, 4)))
    init = lambda **options: lora(where=["w", "head"], **options).init(KEY, params, uses)  # noqa: E731
    with pytest.raises(UsageError, match=r"no pattern of rank=.*matches head; let the last be '\.\*'"):
        init(rank={"w": 2})
    with pytest.raises(UsageError, match=r"'table' matches no parameter; nearest paths: "):
        init(rank={".*": 2, "table": 3})
    with pytest.raises(UsageError, match=r"no pattern of alpha=.*matches w"):
        init(alpha={"head": 2.0})
    with pytest.raises(UsageError, match="rank=0; it is a whole number"):
        lora(rank={".*": 0})

"""What techniques cost, counted from shapes: against XLA's count, real splits, and a model that fits nowhere."""

import io

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from law_models import case
from law_trial import entry_of, uses_of
from rich.console import Console

from jaxbig import lora
from jaxbig.catalogue import Model, model
from jaxbig.cli import main
from jaxbig.errors import UsageError
from jaxbig.flops import flops
from jaxbig.lift import lift
from jaxbig.peft_list import methods, peft_list, rows
from jaxbig.tree import nbytes


def xla(fn, *args):
    """What XLA counts of a program that is products alone."""
    return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]


def test_flops_of_products_and_convolutions_are_xla_s():
    x, w = jnp.ones((4, 6, 8)), jnp.ones((8, 10))
    product = lambda x, w: jnp.einsum("btd,df->btf", x, w)  # noqa: E731
    assert flops(product, x, w) == 2 * 4 * 6 * 8 * 10 == xla(product, x, w)
    image, kernel = jnp.ones((2, 8, 8, 6)), jnp.ones((3, 3, 2, 12))
    grouped = lambda x, w: jax.lax.conv_general_dilated(  # noqa: E731
        x, w, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3
    )
    assert flops(grouped, image, kernel) == 2 * (2 * 3 * 3 * 12) * (3 * 3 * 2) == xla(grouped, image, kernel)
    transposed = lambda x, w: jax.lax.conv_transpose(x, w, (2, 2), "VALID")  # noqa: E731
    assert flops(transposed, image, jnp.ones((2, 2, 6, 5))) == 2 * (2 * 16 * 16 * 5) * (2 * 2 * 6) // 4


def test_flops_of_control_flow():
    x, w = jnp.ones((4, 8)), jnp.ones((3, 8, 8))
    one = 2 * 4 * 8 * 8
    scanned = lambda x, w: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()  # noqa: E731
    assert flops(scanned, x, w) == 3 * one
    body = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None), prevent_cse=False)
    remat = lambda x, w: jax.lax.scan(body, x, w)[0].sum()  # noqa: E731
    assert (
        flops(jax.grad(remat, argnums=1), x, w) == 3 * 4 * one - 3 * one + 3 * one
    )  # forward, again, and two gradients
    branch = lambda x, w: jax.lax.cond(x.sum() > 0, lambda x: x @ w[0] @ w[1], lambda x: x @ w[0], x)  # noqa: E731
    assert flops(branch, x, w) == 2 * one
    unused = lambda x, w: (x @ w[0], x.sum())[1]  # noqa: E731
    assert flops(unused, x, w) == 0


def test_rows_are_those_of_the_real_thing():
    tiny = case("unrolled")
    shapes = jax.eval_shape(lambda: tiny.params)
    on = Model("tiny", tiny.apply, shapes, (jax.ShapeDtypeStruct(tiny.inputs.shape, tiny.inputs.dtype),))
    for name in ("lora", "ia3", "prompt", "bottleneck", "full"):
        transform = entry_of((name, 0))[1]
        (row,) = rows(on, {name: transform})
        split = transform.init(jax.random.key(0), tiny.params, uses_of("unrolled"))
        assert row.trained == sum(leaf.size for leaf in jax.tree.leaves(split.train))
        assert (row.own, row.base) == (nbytes((split.train, split.state)), nbytes(split.params))
        called = lambda s, x, t=transform: lift(t.wrap(s, tiny.apply))(t.apply(s), x)  # noqa: E731
        assert row.forward == flops(called, split, tiny.inputs)
        assert row.forward < row.step <= 3 * row.forward
    (full,) = rows(on, {"full": entry_of(("full", 0))[1]})
    (adapted,) = rows(on, {"lora": lora(rank=1)})
    assert adapted.step < 0.8 * full.step


def test_a_model_of_a_trillion_parameters_is_never_allocated():
    class Huge(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(1000, name="head")(nn.Dense(10**6, name="wide")(x))

    params = jax.eval_shape(Huge().init, jax.random.key(0), jax.ShapeDtypeStruct((1, 10**6), jnp.float32))["params"]
    on = Model(
        "huge", lambda p, x: Huge().apply({"params": p}, x), params, (jax.ShapeDtypeStruct((1, 10**6), "float32"),)
    )
    (row,) = rows(on, {"lora": lora(rank=8)})
    assert row.trained == 8 * 2 * 10**6
    assert row.base == 4 * (10**12 + 10**6 + 10**9 + 1000)
    assert row.forward == 2 * (10**12 + 10**9 + 16 * 10**6)


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(
        "import flax.linen as nn, jax, jax.numpy as jnp\n"
        "def text(batch):\n"
        "    net = nn.Sequential([nn.Embed(50, 8), nn.Dense(8), nn.relu, nn.Dense(3)])\n"
        "    return net, (jax.ShapeDtypeStruct((batch, 7), jnp.int32),)\n"
        "def wrong(batch):\n"
        "    return 1\n"
    )
    console = Console(width=160, record=True, file=io.StringIO())
    found = peft_list(["--model", f"{file}:text", "--method", "lora", "prompt", "bottleneck", "full"], console)
    assert {row.method: bool(row.why) for row in found} == {
        "lora": False,
        "prompt": False,
        "bottleneck": True,
        "full": False,
    }
    text = console.export_text()
    assert "text: 499 parameters" in text
    assert "bottleneck: not on this model: no parameter is of the kind" in text
    assert "1.00" in next(line for line in text.splitlines() if line.startswith("full"))
    assert main(["peft", "list", "--model", "vit-ti16", "--method", "bitfit", "--image", "32"]) == 0
    assert "vit-ti16" in capsys.readouterr().out
    for words, said in (
        (["list", "--model", "vit-x16"], "no model is called 'vit-x16'"),
        (["list", "--model", f"{file}:wrong"], "has to return a linen module and a tuple"),
        (["list", "--model", f"{file}:none"], "has no function 'none'"),
        (["list", "--model", "nowhere.py:f"], "no such Python file"),
        (["list", "--model", "vit-ti16", "--method", "lore"], "no method is called 'lore'"),
        (["list", "--model", "vit-ti16", "--batch", "0"], "use at least 1"),
        (["list"], "--model"),
        (["show"], "peft has no command show"),
    ):
        assert main(["peft", *words]) == 2
        assert said in capsys.readouterr().err
    assert main(["peft", "--help"]) == 0
    assert "example: jaxbig peft list" in capsys.readouterr().out


def test_every_method_has_defaults_and_a_name():
    known = methods()
    assert {"lora", "dora", "bottleneck", "prompt", "prefix", "full", "bitfit", "qlora (nf4)"} <= set(known)
    assert not {"int8", "nf4", "prune", "freeze"} & set(known)
    assert all(np.isscalar(name) and transform.config for name, transform in known.items())


def test_resnets_and_sizes_are_known():
    assert sum(leaf.size for leaf in jax.tree.leaves(model("resnet18").params)) == 11_689_512
    with pytest.raises(UsageError, match="no model is called 'resnet17'"):
        model("resnet17")

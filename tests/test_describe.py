"""The table of a tree: in a terminal and in a notebook."""

import jax
import jax.numpy as jnp

from jaxbig.compress.prune import prune
from jaxbig.compress.quantize import quantize
from jaxbig.describe import describe
from jaxbig.transform import chain
from jaxbig.tune.full import full
from jaxbig.tune.lora import lora
from jaxbig.usage import usage

PARAMS = {"body": {"kernel": jnp.ones((8, 6)), "bias": jnp.ones(6)}, "head": jnp.ones((6, 2), jnp.bfloat16)}


def model(params, x):
    return jnp.tanh(x @ params["body"]["kernel"] + params["body"]["bias"]).astype(jnp.bfloat16) @ params["head"]


def split():
    uses = usage(model, PARAMS, jnp.ones((2, 8)))
    return chain(quantize("int4", group=4, where="body/kernel"), lora(rank=2)).init(jax.random.key(0), PARAMS, uses)


def test_text():
    assert (
        str(describe(split()))
        == """\
path                      shape          dtype     kind                trainable  bytes
---------------------------------------------------------------------------------------
body/bias                 6              float32   array                       -     24
body/kernel               8x6            float32   Quantized int4 g4           -     72
head                      6x2            bfloat16  array                       -     24
train/lora/body/kernel/a  8x2            float32   array                      16     64
train/lora/body/kernel/b  2x6            float32   array                      12     48
---------------------------------------------------------------------------------------
total                     94 parameters                               28 (29.8%)    232"""
    )


def test_what_apply_gives_is_described_by_kind():
    transform = chain(quantize("int4", group=4, where="body/kernel"), lora(rank=2))
    rows = {row.path: row for row in describe(transform.apply(split())).rows}
    assert rows["body/kernel"].kind == "LowRank(Quantized int4 g4) r=2"
    assert rows["body/kernel"].bytes == 72 + 4 * (16 + 12 + 1)
    assert all(row.trainable == 0 for row in rows.values())


def test_shapes_will_do():
    table = describe(jax.eval_shape(lambda: PARAMS))
    assert (table.parameters, table.trainable, table.bytes) == (66, 0, 240)


def test_html_escapes_what_a_path_may_hold():
    html = describe({"<b>&'": jnp.ones(2)})._repr_html_()
    assert "&lt;b&gt;&amp;&#x27;" in html
    assert "<b>" not in html
    assert html.count("<tr>") == 3


def test_an_empty_tree_has_a_table():
    assert str(describe({})).splitlines()[-1].split() == ["total", "0", "parameters", "0", "(0%)", "0"]


def test_each_parameter_counts_once_wherever_it_lies():
    pruned = chain(prune(0.5, where="head"), full()).init(jax.random.key(0), PARAMS, {})
    assert (describe(pruned).parameters, describe(pruned).trainable) == (66, 66)
    assert describe({"state": {"w": jnp.ones(3)}, "train": jnp.ones(2)}).parameters == 5
    adapted = lora(rank=2, where="state/w")
    uses = usage(lambda p, x: jnp.tanh(x @ p["state"]["w"]), {"state": {"w": jnp.ones((3, 4))}}, jnp.ones((2, 3)))
    split = adapted.init(jax.random.key(0), {"state": {"w": jnp.ones((3, 4))}}, uses)
    assert describe(split).parameters == 12 + 6 + 8


def test_a_number_is_a_leaf():
    (row,) = describe({"temperature": 0.5}).rows
    assert (row.shape, row.dtype, row.bytes) == ((), "float32", 4)

"""Mistakes: each message says what, where and how to mend it; a model's own errors show the user's lines alone."""

import re
import traceback
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import jaxbig
from jaxbig.calibrate import calibrate
from jaxbig.combine.average import average
from jaxbig.compress.merge import merge
from jaxbig.compress.prune import prune
from jaxbig.compress.quantize import quantize
from jaxbig.errors import UsageError, UserError
from jaxbig.lift import MaterialiseError, lift
from jaxbig.partition import partition
from jaxbig.transform import chain
from jaxbig.tune.bitfit import bitfit
from jaxbig.tune.full import full
from jaxbig.tune.lora import lora
from jaxbig.usage import usage

KEY = jax.random.key(0)
# As a traceback names our files. The tests' own folder may lie below one that is called jaxbig too.
PACKAGE = str(Path(jaxbig.__file__).parent)


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(8, name="first")(x))
        x = nn.relu(nn.Dense(8, name="second")(x))
        return nn.Dense(3, name="head")(x)


def tree():
    params = {name: {"kernel": jnp.ones((8, 8)), "bias": jnp.zeros(8)} for name in ("first", "second")}
    return {**params, "head": {"kernel": jnp.ones((8, 3)), "bias": jnp.zeros(3)}}


USES = usage(lambda params, x: Mlp().apply({"params": params}, x), tree(), jnp.ones((2, 8)))


def start(transform, params=None):
    return transform.init(KEY, tree() if params is None else params, USES)


def other_shape():
    return {**tree(), "head": {"kernel": jnp.ones((8, 4)), "bias": jnp.zeros(4)}}


def other_paths():
    return {**tree(), "tail": {"bias": jnp.zeros(3)}}


MISTAKES = {
    "a wrong path": (lambda: start(lora(where="first/kernle")), ["first/kernle", "nearest paths", "first/kernel"]),
    "a part of a path": (lambda: start(full(where="head")), ["'head'", "head/kernel", "whole paths"]),
    "no regular expression": (lambda: start(full(where="head/(")), ["'head/('", "no regular expression"]),
    "one of several patterns": (lambda: start(full(where=["head/.*", "haed/.*"])), ["'haed/.*'", "head/bias"]),
    "quantised twice": (
        lambda: start(chain(quantize("int8"), quantize("nf4"))),
        ["first/kernel", "quantised already", "quantise once, or merge"],
    ),
    "lora where full has moved the leaf": (
        lambda: start(chain(full(where="first/kernel"), lora(where="first/kernel"))),
        ["first/kernel", "matches no parameter", "nearest paths"],
    ),
    "full over codes": (
        lambda: start(chain(quantize("nf4"), full(where="first/kernel"))),
        ["first/kernel", "Quantized nf4", "gradients cannot train", "lora()", "merge"],
    ),
    "lora of a bias": (lambda: start(lora(where="first/bias")), ["first/bias", "neither multiplied", "where="]),
    "a compiled pattern": (lambda: start(lora(where=re.compile("w"))), ["re.compile('w')", "a pattern (a str)"]),
    "a number for a pattern": (lambda: start(lora(where=5)), ["where=5", "a pattern (a str)"]),
    "lora without a key": (lambda: lora().init(None, tree(), USES), ["first/kernel", "jax.random.key(0)"]),
    "no uses": (lambda: lora().init(KEY, tree(), None), ["uses is a NoneType", "jaxbig.usage("]),
    "empty uses": (lambda: lora().init(KEY, tree(), {}), ["uses is empty", "jaxbig.usage("]),
    "uses of another tree": (
        lambda: start(lora(), {"model": tree()}), ["uses is that of another tree", "'first/kernel'"],
    ),
    "a head alone": (
        lambda: lora().init(KEY, {"w": jnp.ones((4, 3))}, usage(lambda p, x: x @ p["w"], {"w": jnp.ones((4, 3))},
                                                                jnp.ones((2, 4)))),
        ["w is the model's head, and nothing else is multiplied", "where="],
    ),
    "a rank that is no whole number": (lambda: lora(rank=2.5), ["rank=2.5", "whole number"]),
    "lora of rank 0": (lambda: lora(rank=0), ["rank=0", "at least 1"]),
    "lora of unknown uses": (lambda: lora(uses="product"), ["'product'", "'all' or 'lookup'"]),
    "an unknown format": (lambda: quantize("int3"), ["'int3'", "int8, int4, nf4"]),
    "an unknown block": (lambda: quantize(per="row"), ["'row'", "'tensor', 'channel' or 'group'"]),
    "asymmetric nf4": (lambda: quantize("nf4", symmetric=False), ["nf4", "no asymmetric form", "use int4"]),
    "quantising a bias of integers": (
        lambda: quantize(where="n").init(KEY, {"n": jnp.arange(3)}, {}), ["n is no array of floating", "where="],
    ),
    "N:M that does not divide": (
        lambda: start(prune(pattern="1:3", where="first/kernel")), ["first/kernel", "8 inputs", "3 does not divide"],
    ),
    "no N:M": (lambda: prune(pattern="4:2"), ["'4:2'", "N < M", "2:4"]),
    "prune without an amount": (prune, ["sparsity=0.8", "pattern='2:4'"]),
    "prune by percent": (lambda: prune(80.0), ["sparsity=80", "between 0 and 1"]),
    "prune of an unknown scope": (lambda: prune(0.5, scope="all"), ["'all'", "'global' or 'layer'"]),
    "partition without a match": (
        lambda: start(partition({"haed/.*": full(), ".*": lora()})), ["'haed/.*'", "matches no parameter", "head/"],
    ),
    "bitfit without biases": (
        lambda: bitfit().init(KEY, {"w": jnp.ones((2, 2))}, {}), ["no parameter is of the kind", "where="],
    ),
    "averaging other shapes": (lambda: average([tree(), other_shape()]), ["head/bias", "(3,)", "(4,)", "tree 1"]),
    "averaging other paths": (lambda: average([tree(), other_paths()]), ["tail/bias", "tree 1"]),
    "averaging nothing": (lambda: average([]), ["no trees"]),
    "averaging with too few weights": (lambda: average([tree(), tree()], [1.0]), ["2 trees but 1 weights"]),
}  # fmt: skip


def test_other_links_are_named_where_there_are_any_alone():
    with pytest.raises(UsageError) as alone:
        lora().init(KEY, tree(), {})
    with pytest.raises(UsageError) as behind:
        start(chain(full(), lora()))
    assert "other links" not in str(alone.value)
    assert "belong to other links" in str(behind.value)
    assert prune(0.5).init(KEY, {}, {}).params == {}


def test_what_is_no_array_is_said_of_the_users_function():
    def tells(params):
        return params["first"]["kernel"] @ jnp.ones(8), "a string"

    with pytest.raises(TypeError, match=r"function tells at .*test_errors") as caught:
        lift(tells)(quantize(where="first/kernel").init(KEY, tree(), {}).params)
    assert "flat" not in str(caught.value)


def test_every_name_can_be_imported_at_once():
    names: dict[str, object] = {}
    for name in jaxbig.__all__:
        names[name] = getattr(jaxbig, name)
    assert {*jaxbig.__all__, "__version__"} == set(dir(jaxbig))
    assert names["lift"] is lift


@pytest.mark.parametrize("mistake", MISTAKES)
def test_message_says_what_where_and_how(mistake):
    action, parts = MISTAKES[mistake]
    with pytest.raises(UsageError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_links_of_one_name_are_numbered():
    split = start(chain(lora(rank=1, where="first/kernel"), lora(rank=2, where="second/kernel")))
    assert list(split.train) == ["lora", "lora_1"]


def test_names_that_collide_with_a_numbered_one_stay_apart():
    named = lora(rank=2, where="second/kernel")._replace(name="lora_1")
    last = lora(rank=3, where="head/kernel")
    split = start(chain(lora(rank=1, where="first/kernel"), named, last))
    assert len(split.train) == 3


def test_strict_is_a_users_error_that_names_path_and_line():
    adapted = lora(where="first/kernel")
    params = adapted.apply(start(adapted))

    def penalty(params):
        return (params["first"]["kernel"] ** 2).sum()

    with pytest.raises(MaterialiseError) as caught:
        lift(penalty, strict=True)(params)
    assert isinstance(caught.value, UserError)
    assert re.search(r"first/kernel: LowRank r=8 .* at .*test_errors\.py:\d+.*penalty", str(caught.value))


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, name="wide")(x)
        return nn.Dense(4, name="narrow")(x)  # the shape that its parameters have not


class Middle(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Inner(name="inner")(nn.relu(x))


class Outer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Middle(name="middle")(x)


def broken_tree():
    wide = {"kernel": jnp.ones((6, 8)), "bias": jnp.zeros(8)}
    narrow = {"kernel": jnp.ones((7, 4)), "bias": jnp.zeros(4)}
    params = {"middle": {"inner": {"wide": wide, "narrow": narrow}}}
    adapted = quantize("int8", where=".*/kernel")
    return adapted.apply(adapted.init(KEY, params, {}))


def broken_product(params, x):
    hidden = x @ params["middle"]["inner"]["wide"]["kernel"]
    return (hidden @ params["middle"]["inner"]["narrow"]["kernel"]).sum()


def called(fn, way, params, x):
    floating = x
    if way == "grad":
        return jax.grad(lambda x: fn(params, x).sum())(floating)
    return (jax.jit(fn) if way == "jit" else fn)(params, x)


@pytest.mark.parametrize("way", ["plain", "jit", "grad"])
@pytest.mark.parametrize("kind", ["flax", "jnp"])
def test_a_models_own_error_shows_the_users_lines_and_none_of_ours(kind, way):
    model = Outer()
    fn = lift((lambda params, x: model.apply({"params": params}, x)) if kind == "flax" else broken_product)
    try:
        called(fn, way, broken_tree(), jnp.ones((2, 6)))
    except Exception as error:  # noqa: BLE001  (whatever the library raises is what the user sees)
        seen = "".join(traceback.format_exception(error))
    check_frames(seen, kind)


@pytest.mark.parametrize("kind", ["flax", "jnp"])
@pytest.mark.parametrize("reader", [usage, lambda fn, params, x: calibrate(fn, params, [(x,)])])
def test_what_reads_a_model_shows_the_users_lines_and_none_of_ours(reader, kind):
    model = Outer()
    fn = (lambda params, x: model.apply({"params": params}, x)) if kind == "flax" else broken_product
    try:
        reader(fn, merge(broken_tree()), jnp.ones((2, 6)))
    except Exception as error:  # noqa: BLE001  (whatever the library raises is what the user sees)
        seen = "".join(traceback.format_exception(error))
    check_frames(seen, kind)


def check_frames(seen, kind):
    assert f'File "{PACKAGE}' not in seen, seen
    assert "test_errors.py" in seen
    if kind == "flax":
        assert "/middle/inner/narrow" in seen
        assert "return nn.Dense(4" in seen
    else:
        assert 'narrow"]["kernel"]).sum()' in seen

"""Every method that PEFT has too over `peft_stack`'s tree: a transform each, and its split, which is made once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import peft_stack as stack
import pytest

from jaxbig.transform import chain
from jaxbig.tune.adalora import adalora
from jaxbig.tune.boft import boft
from jaxbig.tune.dora import dora
from jaxbig.tune.fourierft import fourierft
from jaxbig.tune.full import full
from jaxbig.tune.hra import hra
from jaxbig.tune.ia3 import ia3
from jaxbig.tune.ln_tuning import ln_tuning
from jaxbig.tune.loha import loha
from jaxbig.tune.lokr import lokr
from jaxbig.tune.lora import lora
from jaxbig.tune.oft import oft
from jaxbig.tune.prompt import prompt
from jaxbig.tune.shira import shira
from jaxbig.tune.trainable_tokens import trainable_tokens
from jaxbig.tune.vera import vera

PRODUCTS, SOME = "layer[^/]*/(up|down)", "layer[^/]*/up|conv"
METHODS = {
    "lora": lora(2, 3.0, SOME, 0.1),
    "dora": dora(2, 3.0, SOME),
    "adalora": adalora(9, 3, 2, 4.0, SOME),
    "vera": vera(3, where=PRODUCTS, seed=5),
    "loha": loha(2, 3.0, SOME),
    "lokr": lokr(1, 3.0, where=PRODUCTS),
    "lokr whole": lokr(4, 3.0, 2, PRODUCTS),
    "fourierft": fourierft(7, 2.0, PRODUCTS, seed=3),
    "shira": shira(1, PRODUCTS),
    "oft": oft(4, PRODUCTS, 0),  # sides of 3 and of 4
    "boft": boft(2, 1, PRODUCTS),
    "boft of two factors": boft(2, 2, "layers/down"),
    "hra": hra(4, SOME),
    "ia3": ia3(SOME),
    "ln_tuning": ln_tuning("layer.*/norm/.*"),
    "trainable_tokens": trainable_tokens([7, 2], "emb"),
    "prompt": prompt(3, "emb", [1, 2]),
    "chain": chain(lora({"layer.*/up": 2, ".*": 1}, where=PRODUCTS), full("head/.*")),
}


def undraw(patch):
    """What a method draws at first is overwritten by tests, and each shape would be compiled: it is all ones."""
    for name in ("normal", "uniform"):
        patch.setattr(jax.random, name, lambda key, shape, dtype=np.float32, *_: jnp.asarray(np.ones(shape, dtype)))


@functools.cache
def scanned():
    """The tree and its uses."""
    params = stack.drawn()
    return params, stack.uses_of(params)


@functools.cache
def split_of(name):
    with pytest.MonkeyPatch.context() as patch:
        undraw(patch)
        return METHODS[name].init(jax.random.key(0), *scanned())

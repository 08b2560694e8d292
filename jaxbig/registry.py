"""The techniques by name: what the laws run over and a manifest rebuilds from.

A new technique is one file, one test, and one line here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxbig.compress.prune import prune
from jaxbig.compress.quantize import quantize
from jaxbig.errors import UsageError
from jaxbig.inject import inject_hyperparams
from jaxbig.partition import partition
from jaxbig.transform import FACTORIES, Transform, chain
from jaxbig.tune.adalora import adalora
from jaxbig.tune.bitfit import bitfit
from jaxbig.tune.boft import boft
from jaxbig.tune.bottleneck import bottleneck
from jaxbig.tune.dora import dora
from jaxbig.tune.fourierft import fourierft
from jaxbig.tune.full import freeze, full
from jaxbig.tune.hra import hra
from jaxbig.tune.ia3 import ia3
from jaxbig.tune.ln_tuning import ln_tuning
from jaxbig.tune.loftq import loftq
from jaxbig.tune.loha import loha
from jaxbig.tune.lokr import lokr
from jaxbig.tune.lora import lora
from jaxbig.tune.oft import oft
from jaxbig.tune.olora import olora
from jaxbig.tune.pissa import pissa
from jaxbig.tune.prefix import prefix
from jaxbig.tune.prompt import prompt
from jaxbig.tune.shira import shira
from jaxbig.tune.trainable_tokens import trainable_tokens
from jaxbig.tune.vera import vera


@dataclass(frozen=True)
class Entry:
    """What the laws need to know of a technique.

    Attributes:
        factory: makes the transform.
        arguments: those the laws try it with, beside its defaults.
        identity: whether the model is unchanged at init, bit for bit; else `error` bounds the change.
        error: largest change of a weight at init, relative to the largest weight of its kernel; None for a technique
            that removes weights: kept ones do not change, and no removed one is larger than a kept one of its ranking.
        trains: whether it has trained leaves.
        prompts: whether it puts virtual tokens in front of the text: then the tree is unchanged, and what the model
            says is not.
    """

    factory: Any
    arguments: tuple[Mapping[str, Any], ...] = field(default=({},))
    identity: bool = True
    error: float | None = 0.0
    trains: bool = True
    prompts: bool = False


REGISTRY: dict[str, Entry] = {
    "full": Entry(full),
    "freeze": Entry(freeze, trains=False),
    "bitfit": Entry(bitfit),
    "ln_tuning": Entry(ln_tuning),
    "trainable_tokens": Entry(trainable_tokens, ({"tokens": [5, 0]},)),
    "lora": Entry(lora, ({"rank": 2}, {"rank": {".*": 2}, "alpha": 4.0, "dropout": 0.1, "stabilised": True})),
    "dora": Entry(dora, ({"rank": 2, "alpha": 4.0},)),
    "vera": Entry(vera, ({"rank": 3},)),
    "loha": Entry(loha, ({"rank": 2},)),
    "lokr": Entry(lokr, ({"rank": 1}, {"rank": 8, "factor": 2})),
    "fourierft": Entry(fourierft, ({"frequencies": 7, "scale": 0.1},), False, 0.1),
    "shira": Entry(shira, ({"rank": 1},)),
    "ia3": Entry(ia3, ({}, {"side": "in"})),
    "oft": Entry(oft, ({"block": 4}, {"block": 4, "terms": 0})),
    "boft": Entry(boft, ({"block": 4}, {"block": 4, "factors": 3})),
    "hra": Entry(hra, ({"rank": 2},), False, 1e-6),
    "bottleneck": Entry(
        bottleneck, ({"size": 2}, {"size": 3, "placement": "parallel", "activation": "gelu", "scale": 4.0})
    ),
    "prompt": Entry(
        prompt, ({"tokens": 2}, {"tokens": 3, "hidden": 5}, {"tokens": 3, "hidden": 4, "lstm": 2}), False, prompts=True
    ),
    "prefix": Entry(prefix, ({"tokens": 2}, {"tokens": 3, "hidden": 5}), False, prompts=True),
    "adalora": Entry(adalora, ({"steps": 20, "rank": 3, "target": 1, "alpha": 4.0},)),
    "pissa": Entry(pissa, ({"rank": 2, "alpha": 4.0}, {"rank": 2, "niter": 2}), False, 5e-7),
    "olora": Entry(olora, ({"rank": 2, "alpha": 4.0},), False, 5e-7),
    "loftq": Entry(
        loftq, ({"rank": 2, "group": 4}, {"rank": 2, "alpha": 4.0, "format": "int8", "iterations": 3}), False, 0.1
    ),
    "int8": Entry(quantize, ({"format": "int8"}, {"format": "int8", "symmetric": False}), False, 1 / 127, False),
    "int4": Entry(quantize, ({"format": "int4", "group": 4},), False, 1 / 7, False),
    "nf4": Entry(quantize, ({"format": "nf4", "group": 4},), False, 0.153, False),
    "prune": Entry(prune, ({"sparsity": 0.5}, {"sparsity": 0.5, "scope": "layer"}), False, None, False),
    "2:4": Entry(prune, ({"pattern": "2:4"},), False, None, False),
}


def build(config: Mapping[str, Any]) -> Transform:
    """A transform from its `config`, as a checkpoint's manifest records it.

    Args:
        config: ``Transform.config``, JSON round trips included.

    Returns:
        the transform, equal in all it does.

    Raises:
        UsageError: a technique that no imported module has defined with `@technique`, or an unknown argument.

    Example:
        >>> build(chain(quantize("nf4"), lora(rank=2)).config).config["links"][1]["rank"]
        2
    """
    rest = dict(config)
    name = rest.pop("technique", None)
    if name == "chain":
        return chain(*[build(link) for link in rest["links"]])
    if name == "partition":
        return partition({_hashable(where): build(link) for where, link in rest["parts"]})
    injected = name == "inject_hyperparams"
    if injected:
        rest = dict(rest["of"])
        name = rest.pop("technique", None)
    if name not in FACTORIES:
        raise UsageError(
            f"no technique is called {name!r}; import the module that defines it before building, or use one of "
            f"{', '.join(sorted(FACTORIES))}, chain and partition"
        )
    factory = inject_hyperparams(FACTORIES[name]) if injected else FACTORIES[name]
    try:
        return factory(**rest)
    except TypeError as error:
        raise UsageError(f"{name}: {error}; the manifest was written by another version of jaxbig") from None


def _hashable(where: Any) -> Any:
    """A pattern, or several, as the key of a partition."""
    return where if isinstance(where, str) else tuple(where)

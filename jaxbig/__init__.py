"""jaxbig: techniques for large models as pure transformations of the parameter tree, on any Flax model unedited."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = {
    "adalora": "tune.adalora",
    "add_lora": "combine.adapters",
    "as_lora": "plain",
    "average": "combine.average",
    "bitfit": "tune.bitfit",
    "boft": "tune.boft",
    "bottleneck": "tune.bottleneck",
    "calibrate": "calibrate",
    "cat_lora": "combine.adapters",
    "chain": "transform",
    "dare": "combine.dare",
    "describe": "describe",
    "dora": "tune.dora",
    "eva": "eva",
    "fidelity": "fidelity",
    "fourierft": "tune.fourierft",
    "freeze": "tune.full",
    "full": "tune.full",
    "hra": "tune.hra",
    "ia3": "tune.ia3",
    "inject_hyperparams": "inject",
    "lift": "lift",
    "ln_tuning": "tune.ln_tuning",
    "load": "hub.load",
    "loftq": "tune.loftq",
    "loha": "tune.loha",
    "lokr": "tune.lokr",
    "lora": "tune.lora",
    "lora_plus": "plus",
    "merge": "compress.merge",
    "oft": "tune.oft",
    "olora": "tune.olora",
    "partition": "partition",
    "pissa": "tune.pissa",
    "prefix": "tune.prefix",
    "prompt": "tune.prompt",
    "prune": "compress.prune",
    "quantize": "compress.quantize",
    "save": "hub.save",
    "shira": "tune.shira",
    "slerp": "combine.slerp",
    "Split": "transform",
    "svd_lora": "combine.adapters",
    "task_arithmetic": "combine.arithmetic",
    "ties": "combine.ties",
    "trainable_tokens": "tune.trainable_tokens",
    "Transform": "transform",
    "usage": "usage",
    "vera": "tune.vera",
    "Weight": "weight",
}

__all__ = [
    "Split",
    "Transform",
    "Weight",
    "adalora",
    "add_lora",
    "as_lora",
    "average",
    "bitfit",
    "boft",
    "bottleneck",
    "calibrate",
    "cat_lora",
    "chain",
    "dare",
    "describe",
    "dora",
    "eva",
    "fidelity",
    "fourierft",
    "freeze",
    "full",
    "hra",
    "ia3",
    "inject_hyperparams",
    "lift",
    "ln_tuning",
    "load",
    "loftq",
    "loha",
    "lokr",
    "lora",
    "lora_plus",
    "merge",
    "oft",
    "olora",
    "partition",
    "pissa",
    "prefix",
    "prompt",
    "prune",
    "quantize",
    "save",
    "shira",
    "slerp",
    "svd_lora",
    "task_arithmetic",
    "ties",
    "trainable_tokens",
    "usage",
    "vera",
]

if TYPE_CHECKING:
    from jaxbig.calibrate import calibrate as calibrate
    from jaxbig.combine.adapters import add_lora as add_lora
    from jaxbig.combine.adapters import cat_lora as cat_lora
    from jaxbig.combine.adapters import svd_lora as svd_lora
    from jaxbig.combine.arithmetic import task_arithmetic as task_arithmetic
    from jaxbig.combine.average import average as average
    from jaxbig.combine.dare import dare as dare
    from jaxbig.combine.slerp import slerp as slerp
    from jaxbig.combine.ties import ties as ties
    from jaxbig.compress.merge import merge as merge
    from jaxbig.compress.prune import prune as prune
    from jaxbig.compress.quantize import quantize as quantize
    from jaxbig.describe import describe as describe
    from jaxbig.eva import eva as eva
    from jaxbig.fidelity import fidelity as fidelity
    from jaxbig.hub.load import load as load
    from jaxbig.hub.save import save as save
    from jaxbig.inject import inject_hyperparams as inject_hyperparams
    from jaxbig.lift import lift as lift
    from jaxbig.partition import partition as partition
    from jaxbig.plain import as_lora as as_lora
    from jaxbig.plus import lora_plus as lora_plus
    from jaxbig.transform import Split as Split
    from jaxbig.transform import Transform as Transform
    from jaxbig.transform import chain as chain
    from jaxbig.tune.adalora import adalora as adalora
    from jaxbig.tune.bitfit import bitfit as bitfit
    from jaxbig.tune.boft import boft as boft
    from jaxbig.tune.bottleneck import bottleneck as bottleneck
    from jaxbig.tune.dora import dora as dora
    from jaxbig.tune.fourierft import fourierft as fourierft
    from jaxbig.tune.full import freeze as freeze
    from jaxbig.tune.full import full as full
    from jaxbig.tune.hra import hra as hra
    from jaxbig.tune.ia3 import ia3 as ia3
    from jaxbig.tune.ln_tuning import ln_tuning as ln_tuning
    from jaxbig.tune.loftq import loftq as loftq
    from jaxbig.tune.loha import loha as loha
    from jaxbig.tune.lokr import lokr as lokr
    from jaxbig.tune.lora import lora as lora
    from jaxbig.tune.oft import oft as oft
    from jaxbig.tune.olora import olora as olora
    from jaxbig.tune.pissa import pissa as pissa
    from jaxbig.tune.prefix import prefix as prefix
    from jaxbig.tune.prompt import prompt as prompt
    from jaxbig.tune.shira import shira as shira
    from jaxbig.tune.trainable_tokens import trainable_tokens as trainable_tokens
    from jaxbig.tune.vera import vera as vera
    from jaxbig.usage import usage as usage
    from jaxbig.weight import Weight as Weight


def __getattr__(name: str):
    """The public names, imported when first asked for: ``jaxbig --help`` must not wait for jax."""
    if name not in _HOME:
        raise AttributeError(f"module 'jaxbig' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxbig.{_HOME[name]}"), name)


class _Package(ModuleType):
    """Python binds a submodule to its package when it is first imported; ``jaxbig.lift`` must stay the function."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted([*_HOME, "__version__"])

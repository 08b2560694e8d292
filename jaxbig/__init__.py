"""jaxbig: techniques for large models as pure transformations of the parameter tree, on any Flax model unedited."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = {
    "adalora": "tune.adalora",
    "as_lora": "plain",
    "average": "compress.merge",
    "bitfit": "tune.bitfit",
    "calibrate": "calibrate",
    "chain": "transform",
    "describe": "describe",
    "dora": "tune.dora",
    "eva": "eva",
    "fourierft": "tune.fourierft",
    "freeze": "tune.full",
    "full": "tune.full",
    "hra": "tune.hra",
    "ia3": "tune.ia3",
    "inject_hyperparams": "inject",
    "lift": "lift",
    "loftq": "tune.loftq",
    "loha": "tune.loha",
    "lokr": "tune.lokr",
    "lora": "tune.lora",
    "lora_plus": "plus",
    "merge": "compress.merge",
    "oft": "tune.oft",
    "olora": "tune.olora",
    "partition": "transform",
    "pissa": "tune.pissa",
    "prune": "compress.prune",
    "quantize": "compress.quantize",
    "shira": "tune.shira",
    "Split": "transform",
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
    "as_lora",
    "average",
    "bitfit",
    "calibrate",
    "chain",
    "describe",
    "dora",
    "eva",
    "fourierft",
    "freeze",
    "full",
    "hra",
    "ia3",
    "inject_hyperparams",
    "lift",
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
    "prune",
    "quantize",
    "shira",
    "usage",
    "vera",
]

if TYPE_CHECKING:
    from jaxbig.calibrate import calibrate as calibrate
    from jaxbig.compress.merge import average as average
    from jaxbig.compress.merge import merge as merge
    from jaxbig.compress.prune import prune as prune
    from jaxbig.compress.quantize import quantize as quantize
    from jaxbig.describe import describe as describe
    from jaxbig.eva import eva as eva
    from jaxbig.inject import inject_hyperparams as inject_hyperparams
    from jaxbig.lift import lift as lift
    from jaxbig.plain import as_lora as as_lora
    from jaxbig.plus import lora_plus as lora_plus
    from jaxbig.transform import Split as Split
    from jaxbig.transform import Transform as Transform
    from jaxbig.transform import chain as chain
    from jaxbig.transform import partition as partition
    from jaxbig.tune.adalora import adalora as adalora
    from jaxbig.tune.bitfit import bitfit as bitfit
    from jaxbig.tune.dora import dora as dora
    from jaxbig.tune.fourierft import fourierft as fourierft
    from jaxbig.tune.full import freeze as freeze
    from jaxbig.tune.full import full as full
    from jaxbig.tune.hra import hra as hra
    from jaxbig.tune.ia3 import ia3 as ia3
    from jaxbig.tune.loftq import loftq as loftq
    from jaxbig.tune.loha import loha as loha
    from jaxbig.tune.lokr import lokr as lokr
    from jaxbig.tune.lora import lora as lora
    from jaxbig.tune.oft import oft as oft
    from jaxbig.tune.olora import olora as olora
    from jaxbig.tune.pissa import pissa as pissa
    from jaxbig.tune.shira import shira as shira
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

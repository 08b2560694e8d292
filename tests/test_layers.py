"""Imports only flow downwards. These tables are the rule; a new part of jaxbig needs a line here."""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "jaxbig"

# Each part (a module, or a package of modules) and the parts it may import: only ones that stand above it here.
CORE = "errors contraction weight tree lift usage dataflow transform"
CODES = " codes"  # what techniques of both kinds share
ADAPT = " site adapter lowrank orthogonal matrix residual virtual"  # what those that train share
MAY_IMPORT = {
    "errors": "",
    "atomic": "errors",
    "contraction": "",
    "weight": "errors contraction",
    "tree": "errors weight",
    "lift": "errors contraction weight tree",
    "dataflow": "",
    "usage": "errors contraction weight tree lift dataflow",
    "transform": "errors contraction weight tree lift usage",
    "inject": "errors transform",
    "partition": "tree transform",
    "codes": CORE,
    "shifted": CORE + CODES,
    "calibrate": CORE,
    "describe": CORE,
    "fidelity": CORE,
    "site": CORE,
    "adapter": CORE + " site",
    "lowrank": CORE + " site",
    "orthogonal": "",
    "matrix": CORE,
    "virtual": CORE,
    "residual": CORE + " site lowrank matrix",
    "bank": CORE + " site lowrank",
    "tune": CORE + CODES + ADAPT,
    "compress": CORE + CODES,
    "combine": CORE + " compress",
    "plain": CORE + " lowrank tune",
    "eva": CORE + " calibrate site lowrank tune",
    "plus": CORE,
    "registry": CORE + " inject partition tune compress",
    "models": "errors",
    "data": "errors tree",
    "generate": "errors weight lift models",
    "objective": "errors weight tree lift models",
    "schedule": "errors",
    "averaging": "errors tree schedule",
    "directions": "errors tree",
    "slots": "errors tree schedule",
    "thaw": "",
    "depth": CORE,
    "optim": "errors tree schedule averaging directions slots thaw",
    "storage": "errors atomic tree weight",
    "manifest": "errors",
    "checkpoint": "errors tree storage manifest",
    "saver": "errors tree checkpoint",
    "mesh": "errors tree weight",
    "hub": CORE + " atomic codes shifted site lowrank tune registry models mesh",
    "placement": "errors tree mesh",
    "metrics": "errors",
    "significance": "errors",
    "processes": "",
    "history": "errors atomic metrics",
    "progress": "errors history",
    "evaluate": "errors tree lift data objective processes history",
    "gradient": CORE + " objective",
    "step": CORE + " objective gradient",
    "stopping": "errors manifest",
    "diagnose": CORE + " gradient step",
    "fingerprint": "tree storage",
    "job": CORE + " data objective evaluate history step stopping",
    "resume": "errors data fingerprint job step",
    "train": CORE
    + " data objective manifest checkpoint saver placement history progress evaluate gradient step diagnose job resume",
    "record": "errors",
    "recipe": CORE + " data objective optim averaging evaluate gradient history job step train",
    "best": "errors checkpoint job resume",
    "batch_statistics": "errors tree lift data job",
    "seeds": CORE + " data objective optim step",
    "curves": CORE + " data objective seeds significance",
    "export": "errors atomic tree weight lift",
    "theme": "",
    "plots": "errors history theme",
    "pictures": "errors theme",
    "diagnostics": "metrics theme plots",
    "callbacks": "errors atomic history job pictures",
    "report": "errors atomic theme",
    "gallery": "errors theme",
    "classifier_page": "errors atomic theme history metrics plots pictures diagnostics report gallery",
    "summary": "errors data",
    "flops": "",
    "catalogue": "errors hub models",
    "words": "errors",
    "peft_list": CORE + " catalogue compress flops registry tune words",
    "show": "errors atomic theme data gallery summary words",
    "model_info": "errors hub",
    "gguf_info": "hub model_info",
    "convert": "hub words",
    "info": "errors storage manifest hub model_info gguf_info words",
    "compare": "errors history manifest plots report words",
    "tuned": CORE + " manifest checkpoint fingerprint hub registry",
    "write": "errors generate hub tuned words",
    "talk": "errors hub tuned write",
    "ask": "errors generate hub",
    "experiment": "errors",
    "manual": "",
    "cli": "errors manual experiment show info convert compare peft_list write talk",
    "__main__": "cli",
}
# The package itself offers names of any part; inside it, everything is imported from where it is defined.
ROOT_NAMES = {"__version__"}
# No module of these knows another of them, nor is known by another: a new technique touches no old one.
TECHNIQUES = ("tune", "compress")
# What a part may import besides the standard library, where that is restricted.
ONLY_THIRD_PARTY = {"models": {"jax", "flax", "einops", "numpy"}, "errors": set(), "cli": set()}
# The only parts that know JAX's primitives.
KNOW_PRIMITIVES = {"lift", "usage"}
PRIMITIVES = ("jax.extend", "jax.interpreters")
# Names that say nothing about what is inside.
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "misc", "base_utils", "v2"}


def read(package: Path) -> dict[str, str]:
    """Module name without the package -> source; a package's own module by the package's name."""
    return {
        ".".join(p for p in path.relative_to(package).with_suffix("").parts if p != "__init__") or "__init__": (
            path.read_text(encoding="utf-8")
        )
        for path in sorted(package.rglob("*.py"))
    }


def imported(module: str, source: str, modules: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, those inside functions too; a name's own module where it is one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                is_package = module == "__init__" or any(other.startswith(module + ".") for other in modules)
                inside = ["jaxbig", *([] if module == "__init__" else module.split("."))]
                inside = inside[: len(inside) - node.level + is_package]
                base = ".".join([*inside, *([base] if base else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def violations(modules: Mapping[str, str]) -> list[str]:
    """What the tables forbid, one line each: where, and which rule."""
    found = []
    for module, source in modules.items():
        part = module.split(".")[0]
        if set(module.split(".")) & FORBIDDEN_NAMES:
            found.append(f"{module}: a name that says nothing")
        if module == "__init__":
            continue
        if part not in MAY_IMPORT:
            found.append(f"{module}: {part} is not in the table")
            continue
        for line, name in imported(module, source, modules):
            rule = _ours(module, name, modules) if name.split(".")[0] == "jaxbig" else _others(part, name)
            if rule:
                found.append(f"{module}:{line}: {name}: {rule}")
    return found


def _ours(module: str, name: str, modules: Mapping[str, str]) -> str:
    part, target = module.split(".")[0], name.removeprefix("jaxbig").lstrip(".")
    goal = target.split(".")[0]
    if goal not in MAY_IMPORT:
        return "" if goal in ROOT_NAMES else "import a name from the module that defines it"
    if goal != part:
        if any(piece.startswith("_") and not piece.startswith("__") for piece in target.split(".")):
            return f"private to {goal}"
        return "" if goal in MAY_IMPORT[part].split() else f"{part} may not import {goal}"
    same = target == module or target.rpartition(".")[0] == module
    if part in TECHNIQUES and not same:
        return "a technique knows no other technique"
    return ""


def _others(part: str, name: str) -> str:
    top = name.split(".")[0]
    if any(piece.startswith("_") and not piece.startswith("__") for piece in name.split(".")):
        return "private to its library"
    if name.startswith(PRIMITIVES) and part not in KNOW_PRIMITIVES:
        return f"only {' and '.join(sorted(KNOW_PRIMITIVES))} know primitives"
    if top in sys.stdlib_module_names or part not in ONLY_THIRD_PARTY or top in ONLY_THIRD_PARTY[part]:
        return ""
    return f"{part} may not import {top}"


def test_the_package_keeps_to_the_tables():
    modules = read(PACKAGE)
    assert {"errors", "cli", "models", "tune.lora", "__init__"} <= modules.keys()
    found = violations(modules)
    assert not found, "\n" + "\n".join(found)


def test_the_table_itself_only_points_downwards():
    above: set[str] = set()
    for part, allowed in MAY_IMPORT.items():
        assert set(allowed.split()) <= above, part
        above.add(part)


@pytest.mark.parametrize("part", ["models", "train", "objective", "data", "optim", "checkpoint"])
def test_parts_that_know_no_technique(part):
    assert not {*TECHNIQUES, "registry"} & set(MAY_IMPORT[part].split())


@pytest.mark.parametrize("techniques", TECHNIQUES)
def test_techniques_may_import_the_core_and_what_they_share(techniques):
    assert MAY_IMPORT[techniques].removesuffix(ADAPT) == CORE + CODES


GOOD = {
    "__init__": "from jaxbig.tune.lora import lora",
    "errors": "import enum",
    "tree": "from jaxbig.errors import UsageError\nimport jax",
    "models": "from jaxbig.models.cnn import CNN",
    "models.cnn": "import math\nimport flax.linen as nn\nfrom jaxbig.models.mlp import MLP",
    "models.mlp": "import flax.linen as nn\nfrom .. import errors",
    "lift": "from jaxbig.lift import rules\nimport jax.extend.core",
    "lift.rules": "from . import table\nfrom jaxbig.weight import Weight",
    "lift.table": "from __future__ import annotations",
    "tune": "",
    "tune.lora": "from jaxbig.transform import Transform\nfrom jaxbig import tree",
    "registry": "from jaxbig.tune.lora import lora",
    "cli": "from jaxbig import __version__",
}

BAD = {
    "upwards": ("tree", "from jaxbig.transform import chain", "tree:1: .*tree may not import transform"),
    "upwards, the module": ("errors", "import jaxbig.cli", "errors may not import cli"),
    "upwards, from the package": ("tree", "from jaxbig import lift", "tree may not import lift"),
    "upwards, relative": ("models.mlp", "from ..train import fit", "models may not import train"),
    "upwards, in a function": ("tree", "x = 1\ndef f():\n    import jaxbig.usage", "tree:3: .*may not import usage"),
    "upwards, for types": ("tree", "if TYPE_CHECKING:\n    from jaxbig.lift import lift", "tree may not import lift"),
    "a model knows a technique": ("models.cnn", "from jaxbig.tune.lora import lora", "models may not import tune"),
    "the trainer knows a technique": ("train", "from jaxbig.compress import prune", "train may not import compress"),
    "the trainer knows the registry": ("train", "import jaxbig.registry", "train may not import registry"),
    "technique to technique": ("tune.dora", "from jaxbig.tune.lora import lora", "knows no other technique"),
    "technique to technique, relative": ("tune.dora", "from .lora import lora", "knows no other technique"),
    "technique to its package": ("tune.dora", "from jaxbig.tune import lora", "knows no other technique"),
    "technique to the other kind": ("tune.dora", "import jaxbig.compress.prune", "tune may not import compress"),
    "by the public name": ("train", "from jaxbig import lora", "from the module that defines it"),
    "a model needs more": ("models.cnn", "import optax", "models may not import optax"),
    "a heavy command": ("cli", "import jax", "cli may not import jax"),
    "primitives elsewhere": ("tune.dora", "from jax.extend import core", "only lift and usage know primitives"),
    "private API": ("lift.rules", "from jax._src import core", "private to its library"),
    "private of another part": ("registry", "from jaxbig.transform import _check_uses", "private to transform"),
    "unknown part": ("shiny", "", "shiny is not in the table"),
    "no name": ("models.utils", "", "a name that says nothing"),
}


def test_the_checker_accepts_what_is_right():
    assert violations(GOOD) == []


@pytest.mark.parametrize(("module", "source", "says"), BAD.values(), ids=BAD)
def test_the_checker_finds_a_violation(module, source, says):
    (found,) = violations({**GOOD, module: source})
    assert found.startswith(module)
    assert re.search(says, found), found

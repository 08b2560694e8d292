"""The plan for a module over a folder, with what is more than names and shapes: new heads and tied ones."""

from typing import Any

from jaxbig.errors import UserError
from jaxbig.hub.build import Built, Opened, nested
from jaxbig.hub.fill import blocks
from jaxbig.hub.peft_files import some
from jaxbig.hub.plan import Given, Plan, find, planned
from jaxbig.hub.safetensors_file import Stored
from jaxbig.usage import usage


def resolve(at: Opened, built: Built, dtype: Any = None, new: bool = False, new_classes: bool = False) -> Plan:
    """Which tensors fill which leaves.

    Args:
        at: the folder.
        built: its module.
        dtype: of the leaves; None: the files'.
        new: whether leaves of the head may be in none of the files.
        new_classes: whether those in the files may be of another number of classes, and are new then.

    Returns:
        the plan.

    Raises:
        UserError: a tensor is missing or has another shape than the model's; a head that ``config.json`` ties to the
            embedding is another.
    """
    found = planned(at.stored, Given(built.leaves, built.shapes, at.family.prefix, dtype, new_classes))
    if found.fresh and not new:
        lacking = {built.leaves[path].names[0]: path for path in found.fresh}
        raise UserError(
            f"{at.folder}: {some(lacking)}, of the head of {built.config['architectures'][0]}, "
            f"{'is' if len(lacking) == 1 else 'are'} in none of its files; task={built.task!r} draws a new head"
        )
    return _check_tied(at, built, found)


def _check_tied(at: Opened, built: Built, found: Plan) -> Plan:
    """A head in the files is no leaf where the config ties it to the embedding; it has to be the embedding then."""
    if not found.unused or at.config.get("tie_word_embeddings") is False:
        return found
    known = {tensor.name for tensor in at.family.tensors(built.module)}
    untied = at.family.module({**built.config, "tie_word_embeddings": False}, built.task)
    names = [tensor.name for tensor in at.family.tensors(untied) if tensor.name not in known]
    heads = [head for head in (find(at.stored, name, at.family.prefix) for name in names) if head]
    for head in heads if any(head.name in found.unused for head in heads) else ():
        for table in _tables(at, built, found):
            if table.shape == head.shape and not _equal(table, head):
                raise UserError(
                    f"{at.folder}: {head.name} differs from {table.name}, to which config.json ties it; set "
                    "tie_word_embeddings to false there"
                )
    return found._replace(unused=[name for name in found.unused if name not in {head.name for head in heads}])


def _tables(at: Opened, built: Built, found: Plan) -> list[Stored]:
    """The tensors that are looked up in and multiplied by."""
    module, shapes = built.module, nested(built.shapes)
    uses = usage(lambda params, *inputs: module.apply({"params": params}, *inputs), shapes, *built.inputs)
    both = [path for path, its in uses.items() if {"lookup", "product"} <= {use.kind for use in its}]
    return [found.sources[path].tensors[0] for path in both if path in found.sources]


def _equal(one: Stored, other: Stored) -> bool:
    return one.code == other.code and all(
        a.tobytes() == b.tobytes() for a, b in zip(blocks(one), blocks(other), strict=True)
    )

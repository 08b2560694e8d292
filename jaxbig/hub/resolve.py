"""The plan for a module over a folder, with what is more than names and shapes: new heads, tied ones, what is over."""

import re
from typing import Any

from jaxbig.errors import UserError
from jaxbig.hub.build import Built, Opened
from jaxbig.hub.fill import blocks
from jaxbig.hub.peft_files import some
from jaxbig.hub.plan import Given, Plan, find, planned
from jaxbig.hub.safetensors_file import Stored

# What published files hold in a model's body that is computed, or that only pre-training needs.
_IDLE = re.compile(
    r"(.*\.)?(position_ids|token_type_ids|inv_freq|attn\.(masked_)?bias|mask_token|"
    r"EncDecAttention\.relative_attention_bias\.weight)"
)


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
        UserError: a tensor is missing or has another shape than the model's; the files hold more of the body than the
            model has, such as a layer; a head that ``config.json`` ties to the embedding, or a copy, is another.
    """
    at = at._replace(stored=_without_copies(at))
    found = planned(at.stored, Given(built.leaves, built.shapes, at.family.prefix, dtype, new_classes))
    if found.fresh and not new:
        lacking = {built.leaves[path].names[0]: path for path in found.fresh}
        raise UserError(
            f"{at.folder}: {some(lacking)}, of the head of {built.config['architectures'][0]}, "
            f"{'is' if len(lacking) == 1 else 'are'} in none of its files; task={built.task!r} draws a new head"
        )
    if extra := _extra(at, built, found):
        raise UserError(
            f"{at.folder}: {some(dict.fromkeys(extra))} {'is' if len(extra) == 1 else 'are'} in its files, and not in "
            f"the {at.family.name} that config.json describes; mend config.json, or remove the tensors"
        )
    return _check_tied(at, built, found)


def _without_copies(at: Opened) -> dict[str, Stored]:
    """The files' tensors, each under one name."""
    found = dict(at.stored)
    for copy, name in at.family.copies.items():
        if copy not in found:
            continue
        its = found.pop(copy)
        if not _equal(found.setdefault(name, its._replace(name=name)), its):
            raise UserError(f"{at.folder}: {copy} differs from {name}, of which it is a copy; remove it from the files")
    return found


def _extra(at: Opened, built: Built, found: Plan) -> list[str]:
    """Tensors in the body that the body has not; other heads are another matter, they lie beside it."""
    part = lambda name: name.removeprefix(at.family.prefix + ".").split(".")[0]  # noqa: E731
    body = {part(name) for its in built.leaves.values() if not its.head for name in its.names}
    return [name for name in found.unused if part(name) in body and not _IDLE.fullmatch(name)]


def _check_tied(at: Opened, built: Built, found: Plan) -> Plan:
    """A head in the files is no leaf where the config ties it to the embedding; it has to be the embedding then."""
    if not found.unused or at.config.get("tie_word_embeddings") is False:
        return found
    known = {tensor.name for tensor in at.family.tensors(built.module)}
    untied = at.family.module({**built.config, "tie_word_embeddings": False}, built.task)
    names = [tensor.name for tensor in at.family.tensors(untied) if tensor.name not in known]
    heads = [head for head in (find(at.stored, name, at.family.prefix) for name in names) if head]
    for head in heads:
        tables = [source.tensors[0] for source in found.sources.values() if source.tensors[0].shape == head.shape]
        if len(head.shape) == 2 and not any(_equal(table, head) for table in tables):
            raise UserError(
                f"{at.folder}: {head.name} differs from the embedding, to which config.json ties it; set "
                "tie_word_embeddings to false there"
            )
    taken = {head.name for head in heads}
    return found._replace(unused=[name for name in found.unused if name not in taken])


def _equal(one: Stored, other: Stored) -> bool:
    if (one.file, one.start, one.stop) == (other.file, other.start, other.stop):
        return True
    return (
        one.code == other.code
        and one.shape == other.shape
        and all(a.tobytes() == b.tobytes() for a, b in zip(blocks(one), blocks(other), strict=True))
    )

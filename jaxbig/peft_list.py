"""``jaxbig peft list``: what each technique would train, hold and compute on a model, which is never allocated."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from jaxbig.catalogue import Model, model
from jaxbig.compress.quantize import quantize
from jaxbig.errors import UsageError, UserError
from jaxbig.flops import flops
from jaxbig.lift import lift
from jaxbig.registry import REGISTRY, Entry
from jaxbig.transform import Transform, chain
from jaxbig.tree import nbytes
from jaxbig.tune.lora import lora
from jaxbig.usage import usage
from jaxbig.words import Words

USAGE = "jaxbig peft list --model NAME [--method NAME ...] [--batch N] [--image PIXELS]"


class Row(NamedTuple):
    """What a technique costs on a model.

    Attributes:
        method: its name.
        trained: number of trained parameters.
        share: of the model's parameters.
        own: bytes of what is trained and of the technique's own arrays: an adapter's file, in the dtype of training.
        base: bytes of the frozen parameters, in the form in which they are held.
        forward, step: FLOPs of the products of one batch's forward pass, and of loss and gradients.
        why: empty; or why the technique cannot be used on this model, all else then 0.
    """

    method: str
    trained: int = 0
    share: float = 0.0
    own: int = 0
    base: int = 0
    forward: int = 0
    step: int = 0
    why: str = ""


def methods() -> dict[str, Transform]:
    """Every technique that trains, with its defaults (where it has none, with what the laws try it with), and QLoRA.

    Example:
        >>> {"lora", "ia3", "full", "qlora (nf4)"} <= set(methods())
        True
    """
    found = {name: entry.factory(**_needed(entry)) for name, entry in REGISTRY.items() if entry.trains}
    return {**found, "qlora (nf4)": chain(quantize("nf4"), lora())}


def _needed(entry: Entry) -> dict[str, Any]:
    """Arguments that have no default."""
    parameters = inspect.signature(entry.factory).parameters.values()
    return {p.name: entry.arguments[0][p.name] for p in parameters if p.default is p.empty}


def rows(on: Model, which: Mapping[str, Transform]) -> Iterable[Row]:
    """The costs of techniques on a model, one after the other.

    Args:
        on: see `jaxbig.catalogue.model`.
        which: name -> transform.

    Yields:
        a row for each.

    Example:
        >>> row, = rows(model("vit-ti16"), {"lora": lora(rank=4)})
        >>> row.trained, row.own == 4 * row.trained, round(row.step / row.forward, 2)
        (169728, True, 2.14)
    """
    uses = usage(on.fn, on.params, *on.inputs)
    total = sum(leaf.size for leaf in jax.tree.leaves(on.params))
    for name, transform in which.items():
        try:
            split = jax.eval_shape(lambda params, t=transform: t.init(jax.random.key(0), params, uses), on.params)
            forward, step = _computed(on, transform, split)
        except (UsageError, UserError) as error:
            yield Row(name, why=str(error))
            continue
        trained = sum(leaf.size for leaf in jax.tree.leaves(split.train))
        own = nbytes((split.train, split.state))
        yield Row(name, trained, trained / total, own, nbytes(split.params), forward, step)


def _computed(on: Model, transform: Transform, split: Any) -> tuple[int, int]:
    rest = split._replace(train=None)

    def result(train, rest, *inputs):
        whole = rest._replace(train=train)
        return lift(transform.wrap(whole, on.fn))(transform.apply(whole), *inputs)

    def step(train, rest, *inputs):
        def loss(train):
            leaves = jax.tree.leaves(result(train, rest, *inputs))
            return sum((leaf.astype(jnp.float32) ** 2).sum() for leaf in leaves)

        return jax.value_and_grad(loss)(train)

    return flops(result, split.train, rest, *on.inputs), flops(step, split.train, rest, *on.inputs)


def peft_list(words: Sequence[str], console: Console | None = None) -> list[Row]:
    """Prints the table.

    Args:
        words: those after ``jaxbig peft list``.
        console: where to print; None: standard output.

    Returns:
        its rows.

    Raises:
        UsageError: an unknown option, model or method.
    """
    parser = Words(USAGE)
    parser.add_argument("--model", required=True)
    parser.add_argument("--method", nargs="+")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--image", type=int, default=224)
    options = parser.read(words)
    console = Console(highlight=False) if console is None else console
    known = methods()
    for name in options.method or ():
        if name not in known:
            raise UsageError(f"no method is called {name!r}; there are {', '.join(known)}")
    if options.batch < 1 or options.image < 1:
        raise UsageError(f"--batch {options.batch} --image {options.image}; use at least 1")
    on = model(options.model, options.batch, options.image)
    found = []
    with console.status("") as status:
        for name in options.method or known:
            status.update(f"{on.name}: {name}")
            found += rows(on, {name: known[name]})
    _print(console, on, found)
    return found


def _print(console: Console, on: Model, found: Sequence[Row]) -> None:
    total = sum(leaf.size for leaf in jax.tree.leaves(on.params))
    shapes = ", ".join("x".join(map(str, leaf.shape)) for leaf in jax.tree.leaves(on.inputs))
    console.print(f"{on.name}: {total:,} parameters, {_bytes(nbytes(on.params))}; one batch: {shapes}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("method", no_wrap=True)
    for name in ("trained", "share", "adapter", "base", "forward", "step", "step / full"):
        table.add_column(name, justify="right", no_wrap=True)
    usable = sorted((row for row in found if not row.why), key=lambda row: row.trained)
    full = next((row.step for row in found if row.method == "full"), 0)
    for row in usable:
        against = f"{row.step / full:.2f}" if full else "-"
        table.add_row(
            row.method, f"{row.trained:,}", f"{100 * row.share:.3g}%", _bytes(row.own), _bytes(row.base),
            _flops(row.forward), _flops(row.step), against,
        )  # fmt: skip
    console.print(table)
    for row in found:
        if row.why:
            console.print(f"{row.method}: not on this model: {row.why}", style="dim")
    console.print(
        "adapter: bytes of what is trained and kept beside it; FLOPs of products, multiply-add as 2", style="dim"
    )


def _bytes(count: float) -> str:
    return _scaled(count, 1024, ["B", "KiB", "MiB", "GiB", "TiB"])


def _flops(count: float) -> str:
    return _scaled(count, 1000, ["", "K", "M", "G", "T", "P"])


def _scaled(count: float, step: int, units: list[str]) -> str:
    for unit in units[:-1]:
        if count < step:
            return f"{count:.3g} {unit}".strip() if count < 10 * step else f"{count:.0f} {unit}"
        count /= step
    return f"{count:.3g} {units[-1]}"

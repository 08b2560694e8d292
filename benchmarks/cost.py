"""What lifting adds to a compiled program: gradients of LoRA and QLoRA, on unedited linen against plain jax by hand.

    python benchmarks/cost.py [--no-record]

Prints FLOPs, bytes accessed and temporary bytes of both programs, without and with remat, and appends one line to
benchmarks/results/cost.jsonl. `tests/test_cost.py` fails where they differ by 1%.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path

import flax
import jax

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.by_hand import ALPHA, R, example, Linen, linen_loss, loss_by_hand, nest, parameters  # noqa: E402, I001
from jaxbig import chain, lift, lora, quantize, usage  # noqa: E402
from jaxbig.codes import Quantized  # noqa: E402
from jaxbig.weight import is_weight  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "cost.jsonl"
KERNELS = "layers/.*kernel"
METHODS = {
    "LoRA": lora(rank=R, alpha=ALPHA, where=KERNELS),
    "QLoRA": chain(quantize("nf4", where=KERNELS), lora(rank=R, alpha=ALPHA, where=KERNELS)),
}


def factors(method: str, train):
    """LoRA's factors in what a method trains, nested as the model by hand takes them."""
    return nest(train["lora"] if method == "QLoRA" else train)


def programs(method: str, remat: bool):
    """((gradient lifted, its arguments), (gradient by hand, its arguments))."""
    ids, params = example(), parameters(jax.random.key(0))
    technique = METHODS[method]
    uses = usage(lambda p, x: Linen().apply({"params": p}, x), params, ids)
    split = technique.init(jax.random.key(2), params, uses)

    def ours(train, frozen, ids):
        adapted = lambda train: technique.apply(frozen._replace(train=train))  # noqa: E731
        return jax.value_and_grad(lambda train: lift(linen_loss, strict=True)(adapted(train), ids, remat))(train)

    def theirs(train, frozen, ids):
        return jax.value_and_grad(lambda train: loss_by_hand(frozen, train, ids, remat))(train)

    codes = jax.tree.map(
        lambda leaf: {"codes": leaf.codes, "scale": leaf.scale} if isinstance(leaf, Quantized) else leaf,
        split.params,
        is_leaf=is_weight,
    )
    lifted = (ours, (split.train, split._replace(train=None), ids))
    return lifted, (theirs, (factors(method, split.train), codes, ids))


def measured(function, *arguments):
    """Result, and FLOPs, bytes accessed and temporary bytes of one compiled program."""
    compiled = jax.jit(function).lower(*arguments).compile()
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    assert cost, "this backend tells no costs"
    assert memory, "this backend tells no memory"
    figures = {"flops": cost["flops"], "bytes": cost["bytes accessed"], "temporaries": memory.temp_size_in_bytes}
    return compiled(*arguments), figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args()
    table = {}
    for method in METHODS:
        for remat in (False, True):
            (ours, given), (theirs, given_) = programs(method, remat)
            name = method + (", remat" if remat else "")
            table[name] = {"lifted": measured(ours, *given)[1], "by hand": measured(theirs, *given_)[1]}
            for way, figures in table[name].items():
                print(f"{name:14} {way:8}", *(f"{key} {int(value):>12,}" for key, value in figures.items()))
    record = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "python benchmarks/cost.py",
        "jax": jax.__version__,
        "flax": flax.__version__,
        "python": sys.version.split()[0],
        "figures": table,
    }
    if not options.no_record:
        with RESULTS.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()

"""GELU by erf, as `jaxbig.models.activation.gelu` has it, and by erfc, as `jax.nn.gelu` does: forward and backward.

    python benchmarks/gelu.py [--rounds 15] [--no-record]

Both run in turns on [8, 128, 3072] numbers in float32, a batch's hidden layer of BERT-base; shown are the medians and
their ratio. Appends one line to benchmarks/results/gelu.jsonl.
"""

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from jaxbig.models.activation import gelu  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "gelu.jsonl"
SHAPE = (8, 128, 3072)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args()
    x = jax.random.normal(jax.random.key(0), SHAPE)
    ways: dict[str, Any] = {"erf": gelu, "erfc": lambda x: jax.nn.gelu(x, approximate=False)}
    calls = {}
    for name, way in ways.items():
        calls[f"{name}, forward"] = jax.jit(way)
        calls[f"{name}, forward and backward"] = jax.jit(jax.value_and_grad(lambda x, way=way: way(x).sum()))
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(options.rounds + 1):  # the first compiles
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call(x))
            if turn:
                spent[name].append(time.perf_counter() - start)
    median = {name: 1000 * statistics.median(times) for name, times in spent.items()}
    figures = {
        "milliseconds": {name: round(value, 2) for name, value in median.items()},
        "erf over erfc": {
            what: round(median[f"erf, {what}"] / median[f"erfc, {what}"], 3)
            for what in ("forward", "forward and backward")
        },
    }
    print(figures)
    record = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python benchmarks/gelu.py", *sys.argv[1:]]),
        "jax": jax.__version__,
        "cores": os.cpu_count(),
        **figures,
    }
    if not options.no_record:
        with RESULTS.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()

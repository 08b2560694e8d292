"""Tokens a second of greedy decoding, ours and transformers', of a model of GPT-2's shape with random weights.

    python benchmarks/decode.py [--rounds 5] [--tokens 64] [--batches 1 8] [--no-record]

CPU, float32, batches of 1 and 8, prompts of 16 tokens. The two run in turns, so that what else the machine does falls
on both alike; shown are the medians, prompts and all, after one call each to warm up. The floor is the time that
reading every parameter and the cache's slots once a step takes at the rate at which this machine, in the same round,
sums a large array. Appends one line to benchmarks/results/decode.jsonl.
"""

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from jaxbig.generate.loop import generate  # noqa: E402
from jaxbig.generate.prompts import slots_for  # noqa: E402
from jaxbig.models.gpt2 import GPT2  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "decode.jsonl"
PROMPT = 16
GPT2_124M = GPT2(vocabulary=50257, width=768, layers=12, heads=12, hidden=3072, length=1024)


def theirs(tokens: int) -> Callable[[np.ndarray], Any]:
    """transformers' generate, on a model of its own of the same shape."""
    import torch
    import transformers

    torch.manual_seed(0)
    model: Any = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    asked: Any = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}

    def run(prompts: np.ndarray) -> Any:
        ids: Any = torch.tensor(prompts)
        with torch.inference_mode():
            return model.generate(ids, attention_mask=torch.ones_like(ids), **asked)

    return run


def ours(tokens: int) -> tuple[Callable[[np.ndarray], Any], int]:
    """Our generate, and the parameters' bytes."""
    params = jax.jit(GPT2_124M.init)(jax.random.key(0), jnp.zeros((1, 1), int))["params"]
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    return lambda prompts: generate(GPT2_124M, params, prompts.tolist(), max_tokens=tokens), size


def read_step(batch: int, tokens: int, params: int) -> int:
    """Bytes that a step has to read: parameters but for the tables' rows not looked up, and all slots."""
    learned = GPT2_124M.length * GPT2_124M.width * 4
    slots = slots_for(PROMPT + tokens)
    return params - learned + 2 * GPT2_124M.layers * batch * slots * GPT2_124M.width * 4


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args()
    mine, size = ours(options.tokens)
    sides = {"jaxbig": mine, "transformers": theirs(options.tokens)}
    large, summed = jnp.ones(75_000_000), jax.jit(jnp.sum)
    table = {}
    for batch in options.batches:
        prompts = np.random.default_rng(0).integers(0, 50257, (batch, PROMPT))
        spent: dict[str, list[float]] = {name: [] for name in [*sides, "floor"]}
        for _ in range(options.rounds + 1):
            for name, run in sides.items():
                spent[name].append(seconds(lambda run=run, prompts=prompts: run(prompts)))
            rate = large.nbytes / min(seconds(lambda: summed(large)) for _ in range(3))
            spent["floor"].append(options.tokens * read_step(batch, options.tokens, size) / rate)
        median = {name: statistics.median(times[1:]) for name, times in spent.items()}
        row = {name: round(batch * options.tokens / value, 2) for name, value in median.items()}
        row["ratio"] = round(median["transformers"] / median["jaxbig"], 3)
        row["share of floor"] = round(median["floor"] / median["jaxbig"], 3)
        table[f"batch {batch}"] = row
        print(f"batch {batch}: " + ", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    record = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python benchmarks/decode.py", *sys.argv[1:]]),
        "jax": jax.__version__,
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
        "tokens_per_second": table,
    }
    if not options.no_record:
        with RESULTS.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()

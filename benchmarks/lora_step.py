"""A training step of LoRA on BERT-base, ours and transformers with PEFT, from the same random weights.

    python benchmarks/lora_step.py [--rounds 9] [--dropout 0.0] [--batch 8] [--length 128] [--no-record]

CPU, float32, sequence classification: rank 8 on queries and values, the head trained whole, AdamW, 8 texts of 128
tokens. The two run in turns, after two steps each to warm up, so that what else the machine does falls on both alike;
shown are the medians. Before anything is timed the losses of the first step have to agree within 1e-4 (without
dropout), else the program ends. The floor is the time that the FLOPs of the step's products take at the rate at which
JAX multiplies square matrices of 2048 in the same round: forward once, and backward once for activations; the frozen
kernels have no gradient. Appends one line to benchmarks/results/lora_step.jsonl.
"""

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from jaxbig import chain, full, load, lora, usage  # noqa: E402
from jaxbig.models import Reader  # noqa: E402
from jaxbig.objective import classify  # noqa: E402
from jaxbig.step import init_state, make_step  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "lora_step.jsonl"
RANK, ALPHA, RATE = 8, 16, 1e-4
WIDTH, LAYERS, HIDDEN = 768, 12, 3072
SQUARE = 2048


def base(folder: str, dropout: float) -> Any:
    """transformers' BERT-base with random weights, saved to a folder."""
    import torch
    import transformers

    torch.manual_seed(0)
    rates: Any = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), dropout)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**rates))
    model.save_pretrained(folder)
    return model


def theirs(model: Any, batch: dict[str, np.ndarray]) -> Callable[[], float]:
    """``step() -> loss`` of transformers and PEFT."""
    import peft
    import torch

    config = peft.LoraConfig(
        task_type=peft.TaskType.SEQ_CLS, r=RANK, lora_alpha=ALPHA, target_modules=["query", "value"], bias="none"
    )
    tuned: Any = peft.get_peft_model(model, config).train()
    optimiser = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], RATE)
    names = {"ids": "input_ids", "segments": "attention_mask", "label": "labels"}
    given: Any = {names[name]: torch.tensor(array) for name, array in batch.items()}

    def step() -> float:
        optimiser.zero_grad(set_to_none=True)
        loss = tuned(**given).loss
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def ours(folder: str, batch: dict[str, np.ndarray]) -> Callable[[], float]:
    """``step() -> loss`` of jaxbig."""
    model = load(folder, task="sequence_classification")
    module = Reader(model.module, ("segments",))
    given = jax.tree.map(jnp.asarray, batch)
    uses = usage(lambda p, *inputs: module.apply({"params": p}, *inputs), model.params, given["ids"], given["segments"])
    technique = chain(lora(RANK, ALPHA, where=r".*/(query|value)/kernel"), full("head/.*"))
    optimiser = optax.adamw(RATE, weight_decay=1e-2)  # torch's default
    tree, state = init_state(technique.init(jax.random.key(0), model.params, uses), optimiser, jax.random.key(1))
    run = make_step(classify(module, inputs=("ids", "segments")), technique, optimiser)

    def step() -> float:
        nonlocal state
        state, metrics = run(tree, state, given)
        total, count = metrics["loss"]
        return float(total) / float(count)

    return step


def products(batch: int, length: int) -> int:
    """FLOPs of a step's products: kernels and attention, forward and, for activations, backward."""
    tokens = batch * length
    kernels = 2 * tokens * LAYERS * (4 * WIDTH * WIDTH + 2 * WIDTH * HIDDEN)
    attention = LAYERS * 2 * 2 * tokens * length * WIDTH  # scores, and their use
    return 2 * kernels + 3 * attention  # either operand of an attention's product has a gradient


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    batch = {
        "ids": random.integers(1000, 30000, (options.batch, options.length)),
        "segments": np.ones((options.batch, options.length), np.int32),
        "label": random.integers(0, 2, options.batch),
    }
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = base(folder, options.dropout)
        sides = {"jaxbig": ours(folder, batch), "transformers + PEFT": theirs(model, batch)}
    losses = {name: step() for name, step in sides.items()}
    if not options.dropout and abs(np.diff(list(losses.values()))[0]) > 1e-4:
        sys.exit(f"the losses of the first step differ: {losses}")
    square = jax.random.normal(jax.random.key(0), (SQUARE, SQUARE))
    multiply = jax.jit(jnp.matmul)
    spent: dict[str, list[float]] = {name: [] for name in [*sides, "floor"]}
    for turn in range(options.rounds + 1):
        for name, step in sides.items():
            spent[name].append(seconds(step))
        best = min(seconds(lambda: multiply(square, square)) for _ in range(3))
        spent["floor"].append(products(options.batch, options.length) * best / (2 * SQUARE**3))
        if turn:
            print(
                f"round {turn}: " + ", ".join(f"{name} {times[-1]:.3f} s" for name, times in spent.items()), flush=True
            )
    median = {name: statistics.median(times[1:]) for name, times in spent.items()}
    figures = {
        "seconds": {name: round(value, 4) for name, value in median.items()},
        "ratio": round(median["jaxbig"] / median["transformers + PEFT"], 3),
        "share of floor": round(median["floor"] / median["jaxbig"], 3),
        "first losses": losses,
    }
    print(figures)
    record = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python benchmarks/lora_step.py", *sys.argv[1:]]),
        "jax": jax.__version__,
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
        **figures,
    }
    if not options.no_record:
        with RESULTS.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()

"""A small published chat model taught which of two answers people prefer, straight on the 4-bit codes of its file.

Question: does DPO (Rafailov et al. 2023, arXiv:2305.18290) with an adapter on frozen codes raise the share of held-out
pairs in which the model's reward for the preferred answer is the larger one?

Model: SmolLM2-135M-Instruct (Allal et al. 2025, arXiv:2502.02737) as a GGUF file: --model; or any decoder with a chat
template. Data: --data, a file of preferences in a form that `jaxbig.data.read_preferences` knows. The reference is the
same tree with the adapter off; its log probabilities are computed once, before training.

Small form: the defaults, 200 pairs once. Large form: --pairs 0 --length 1024 --epochs 3. Learning rate, β and rank are
first guesses, not chosen by anything yet.

Command: jaxbig run experiments/language/smollm2_dpo.py --model FILE --data FILE --record
Result: not measured yet.
"""

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxbig import atomic, load, lora
from jaxbig.ask import ask
from jaxbig.data import Example, Loader, fitted, one_a_row, read_preferences
from jaxbig.errors import UserError
from jaxbig.evaluate import evaluate, predict
from jaxbig.experiment import check_range, make_folder
from jaxbig.hub.peft_files import Adapter
from jaxbig.hub.peft_write import write_peft
from jaxbig.hub.turns import all_turns
from jaxbig.objective import answer_log_p, prefer
from jaxbig.optim import Optimizer
from jaxbig.record import record
from jaxbig.report import Report, terminal_table
from jaxbig.train import Run, Task, fit
from jaxbig.tree import nbytes

RECORDS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "smollm2_dpo.jsonl"


@dataclasses.dataclass(frozen=True)
class Config:
    model: str
    """GGUF file, or folder as Hugging Face has it, of a decoder with a chat template."""
    data: str
    """File of preferences, jsonl or JSON."""
    workdir: str = "runs/smollm2_dpo"
    """Folder of results.json, report.html, the adapter and checkpoints."""
    pairs: int = 200
    """Pairs to learn from; 0: all that are not held out."""
    held_out: int = 40
    """Pairs to measure on."""
    length: int = 384
    """Tokens of a prompt with an answer; longer ones lose their end."""
    batch_size: int = 2
    """Pairs a step."""
    epochs: int = 1
    """Passes over the pairs."""
    beta: float = 0.1
    """The larger, the nearer to the reference."""
    rank: int = 16
    """Of the adapter."""
    lr: float = 5e-5
    """Peak learning rate."""
    scan_layers: bool = True
    """All layers as one program that is repeated: compiles sooner."""
    remat: bool = True
    """Compute each layer again in the backward pass: less memory, more time."""
    samples: int = 4
    """Held-out prompts to answer before and after."""
    max_tokens: int = 96
    """Of an answer."""
    seed: int = 0
    """Of the order and the adapter's start."""
    resume: bool = False
    """Go on where an earlier run was stopped; it ends in the same bits."""
    record: bool = False
    """Add the result to benchmarks/results/smollm2_dpo.jsonl."""

    def __post_init__(self):
        check_range(self, 1, math.inf, "held_out", "batch_size", "epochs", "rank", "max_tokens")
        check_range(self, 0, math.inf, "pairs", "samples")
        check_range(self, 2, math.inf, "length")


def main(config: Config) -> None:
    make_folder(config.workdir)
    if jax.config.values.get("jax_compilation_cache_dir") is None:  # before and after are one program
        jax.config.update("jax_compilation_cache_dir", str(Path(config.workdir) / "compiled"))
    console, since = Console(), time.perf_counter()
    base = load(config.model, "causal_lm", scan_layers=config.scan_layers, remat=config.remat)
    prompts, learn, held = prepared(config, base, console)
    transform, key = lora(config.rank, alpha=2.0 * config.rank), jax.random.key(config.seed)
    split = transform.init(key, base.params, base.uses)
    loader = Loader(learn, config.batch_size, config.seed, remainder="pad")
    measure = Loader(held, config.batch_size, shuffle=False, remainder="pad")
    steps = config.epochs * loader.steps
    optimizer = Optimizer("adamw", config.lr, "linear", steps, warmup=max(1, steps // 10), clip=1.0)
    objective, measured = (prefer(base.module, beta=config.beta, train=train) for train in (True, False))
    before = evaluate(measured, transform.apply(split), measure)
    settings = {"data": Path(config.data).name, "lr": config.lr, "rank": config.rank, "beta": config.beta}
    done = fit(
        Task(objective, transform, optimizer.build(), loader), split, key,
        Run(config.epochs, Path(config.workdir) / "run", config.resume, keep_last=1, log_every=1, config=settings),
    )  # fmt: skip
    tuned = transform.apply(done.split)
    adapter = Adapter(transform, done.split, {"task_type": "CAUSAL_LM"})
    write_peft(Path(config.workdir) / "adapter", adapter, base.uses, base.names)
    table = [{"when": "before", **before}, {"when": "after", **evaluate(measured, tuned, measure)}]
    results: dict[str, Any] = {"table": table, "samples": sampled(config, base, tuned, prompts)}
    results |= {"steps": steps, "base bytes": nbytes(base.params), "adapter bytes": nbytes(split.train)}
    results |= {"pairs": len(learn["ids"]), "held-out pairs": len(held["ids"])}
    results["seconds"] = round(time.perf_counter() - since, 1)
    atomic.write(Path(config.workdir) / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    if config.record:
        told = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("workdir", "resume", "record")}
        told |= {name: Path(told[name]).name for name in ("model", "data")}
        record(RECORDS, {"settings": told, **results})
    console.print(terminal_table(table, f"{results['held-out pairs']} held-out pairs"))
    console.print(f"adapter: {Path(config.workdir) / 'adapter'}; report: {report(config, results)}", soft_wrap=True)


def prepared(config: Config, base: Any, console: Console) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """The held-out prompts; and the pairs to learn from and to measure on, with the reference's log probabilities."""
    found = read_preferences(config.data)
    if len(found) <= config.held_out:
        raise UserError(f"{config.data}: {len(found)} pairs, --held-out {config.held_out}; hold fewer out")
    order = np.random.default_rng(config.seed).permutation(len(found))
    cut = len(found) - config.held_out
    sets = []
    for name, index in {"learn": order[: min(cut, config.pairs or cut)], "held out": order[cut:]}.items():
        sides = [
            all_turns(base.tokenizer, [[*found[i].prompt, getattr(found[i], side)] for i in index], "last")
            for side in ("chosen", "rejected")
        ]
        fits = [fitted((Example(*each) for each in side), config.length) for side in sides]
        both = np.intersect1d(fits[0].kept, fits[1].kept)
        if not len(both):
            raise UserError(f"{config.data}: no two answers begin within {config.length} tokens; use a larger --length")
        rows = [
            one_a_row([each for each, i in zip(fit.examples, fit.kept, strict=True) if i in both], config.length)
            for fit in fits
        ]
        pairs: dict[str, Any] = {name: np.stack([row[name] for row in rows], axis=1) for name in rows[0]}
        names = {name: name for name in pairs}
        pairs["reference"] = predict(
            answer_log_p(base.module),
            base.params,
            Loader(pairs, config.batch_size, shuffle=False, remainder="pad"),
            names,
        )
        cut_off = " and ".join(str(fit.shortened) for fit in fits)
        console.print(
            f"{name}: {len(both):,} pairs of {len(index):,} begin their answers within {config.length} tokens; "
            f"{cut_off} chosen and rejected answers lose their end",
            soft_wrap=True,
        )
        sets.append(pairs)
    return [found[i].prompt for i in order[cut:]], sets[0], sets[1]


def sampled(config: Config, base: Any, tuned: Any, prompts: list[Any]) -> list[dict[str, Any]]:
    # Of the shortest: a prompt of a thousand tokens is no sample to read.
    asked = sorted(prompts, key=lambda messages: sum(len(each["content"]) for each in messages))[: config.samples]
    if not asked:
        return []
    before, after = (ask(base, params, asked, max_tokens=config.max_tokens) for params in (base.params, tuned))
    return [
        {"prompt": messages[-1]["content"], "before": one, "after": other}
        for messages, one, other in zip(asked, before, after, strict=True)
    ]


def report(config: Config, results: dict[str, Any]) -> Path:
    page = Report("SmolLM2 and what people prefer")
    page.text(
        f"DPO with beta {config.beta}, {results['steps']} steps of {config.batch_size} pairs; LoRA of rank "
        f"{config.rank} on frozen codes. Accuracy is the share of held-out pairs whose preferred answer has "
        "the larger reward; margin is by how much. Before training all rewards are 0."
    )
    page.table(results["table"], f"{results['held-out pairs']} held-out pairs")
    if results["samples"]:
        page.section("Held-out prompts").table(results["samples"], "The likeliest answers, before and after")
    return page.save(Path(config.workdir) / "report.html")

"""A small published chat model tuned on instructions, straight on the 4-bit codes of its file.

Question: how much of what LoRA learns on the expanded weights does QLoRA learn on the codes, and what do both hold?

Model: SmolLM2-135M-Instruct (Allal et al. 2025, arXiv:2502.02737) as a GGUF file, Q4_1 with a Q8_0 table: --model; or
any decoder with a chat template. Data: --data, a file of conversations in any form that
`jaxbig.data.read_conversations` knows (Alpaca's, ShareGPT's, messages, GSM8K's). They go through the chat template, are
packed into rows, and only what the assistant says is learnt. The held-out loss is per token of the answers of the last
--held-out conversations of an order drawn by the seed. The codes stay codes: the adapter
alone is trained (Dettmers et al. 2023, arXiv:2305.14314), and leaves in PEFT's files. --dense trains the same adapter
with the same batches on the expanded weights, in float32.
--gsm8k asks questions of GSM8K's test set with examples of its training set in the context, before and after.

Small form: the defaults, 400 conversations once. Large form: --examples 0 --epochs 3. Learning rate and rank are first
guesses, not chosen by anything yet.

Command: jaxbig run experiments/language/smollm2_instruct.py --model FILE --data FILE --dense --record
Result: not measured yet.
"""

import dataclasses
import json
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from jaxbig import atomic, load, lora
from jaxbig.ask import ask
from jaxbig.data import Example, Loader, few_shot, fitted, packed, read_conversations
from jaxbig.errors import UserError
from jaxbig.evaluate import evaluate
from jaxbig.experiment import check_range, make_folder
from jaxbig.hub.peft_files import Adapter
from jaxbig.hub.peft_write import write_peft
from jaxbig.hub.turns import all_turns
from jaxbig.metrics import same_number
from jaxbig.objective import next_token
from jaxbig.optim import Optimizer
from jaxbig.record import record
from jaxbig.report import Report, terminal_table
from jaxbig.step import init_state, step_fn
from jaxbig.train import Run, Task, fit
from jaxbig.tree import nbytes

RECORDS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "smollm2_instruct.jsonl"
CALCULATOR = re.compile(r"<<.*?>>")  # GSM8K's notes for a calculator, which nobody else writes


@dataclasses.dataclass(frozen=True)
class Config:
    model: str
    """GGUF file, or folder as Hugging Face has it, of a decoder with a chat template."""
    data: str
    """File of conversations, jsonl or JSON."""
    workdir: str = "runs/smollm2_instruct"
    """Folder of results.json, report.html, the adapter and checkpoints."""
    examples: int = 400
    """Conversations to learn from; 0: all that are not held out."""
    held_out: int = 50
    """Conversations to measure on."""
    length: int = 384
    """Tokens of a row; longer conversations lose their end."""
    batch_size: int = 2
    """Rows a step."""
    epochs: int = 1
    """Passes over the conversations."""
    rank: int = 16
    """Of the adapter."""
    lr: float = 5e-4
    """Peak learning rate."""
    scan_layers: bool = True
    """All layers as one program that is repeated: compiles sooner."""
    remat: bool = True
    """Compute each layer again in the backward pass: less memory, more time."""
    dense: bool = False
    """Train on the expanded weights too, with the same batches."""
    samples: int = 4
    """Held-out questions to answer before and after."""
    max_tokens: int = 96
    """Of an answer."""
    gsm8k: str = ""
    """Folder with GSM8K's train.jsonl.gz and test.jsonl.gz, to ask its questions; none without."""
    shots: int = 4
    """Examples in the context of each of its questions."""
    questions: int = 20
    """The first so many of its test set; 0: all."""
    answer_tokens: int = 192
    """Of an answer to one of them."""
    seed: int = 0
    """Of the order, the adapter's start and the examples in the context."""
    resume: bool = False
    """Go on where an earlier run was stopped; it ends in the same bits."""
    record: bool = False
    """Add the result to benchmarks/results/smollm2_instruct.jsonl."""

    def __post_init__(self):
        check_range(self, 1, math.inf, "held_out", "batch_size", "epochs", "rank", "max_tokens", "answer_tokens")
        check_range(self, 0, math.inf, "examples", "samples", "shots", "questions")
        check_range(self, 2, math.inf, "length")


class Setting(NamedTuple):
    """What both runs share: conversations to learn and to measure on, and their packed rows."""

    config: Config
    learn: list[Any]
    held: list[Any]
    rows: dict[str, dict[str, np.ndarray]]


def main(config: Config) -> None:
    make_folder(config.workdir)
    if jax.config.values.get("jax_compilation_cache_dir") is None:  # before and after are one program
        jax.config.update("jax_compilation_cache_dir", str(Path(config.workdir) / "compiled"))
    console, since = Console(), time.perf_counter()
    base = loaded(config)
    setting = prepared(config, base, console)
    row, tuned = trained(setting, base, "QLoRA, codes")
    results: dict[str, Any] = {"table": [row]}
    results["samples"] = sampled(setting, base, tuned)
    if config.gsm8k:
        results["gsm8k"] = examined(config, base, {"before": base.params, "after": tuned})
    if config.dense:
        dense, _ = trained(setting, loaded(config, dtype="float32"), "LoRA, expanded")
        results["table"].append(dense)
        results["share of its drop"] = row["drop"] / dense["drop"] if dense["drop"] else None
    results["seconds"] = round(time.perf_counter() - since, 1)
    atomic.write(Path(config.workdir) / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    if config.record:
        settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("workdir", "resume", "record")}
        settings |= {name: Path(settings[name]).name for name in ("model", "data", "gsm8k")}
        record(RECORDS, {"settings": settings, **results})
    shown = ("run", "before", "after", "drop", "base bytes", "step memory")
    rows = [{name: row[name] for name in shown} for row in results["table"]]
    console.print(terminal_table(rows, "nats a token of the held-out answers; bytes"))
    if "share of its drop" in results:
        console.print(f"QLoRA's drop as a share of LoRA's: {results['share of its drop']}")
    if "gsm8k" in results:
        console.print(terminal_table(results["gsm8k"], f"GSM8K, {config.shots} examples in the context"))
    console.print(f"adapter: {Path(config.workdir) / 'adapter'}; report: {report(setting, results)}", soft_wrap=True)


def loaded(config: Config, **more: Any) -> Any:
    return load(config.model, "causal_lm", scan_layers=config.scan_layers, remat=config.remat, **more)


def prepared(config: Config, base: Any, console: Console) -> Setting:
    found = [[clean(each) for each in messages] for messages in read_conversations(config.data)]
    if len(found) <= config.held_out:
        raise UserError(f"{config.data}: {len(found)} conversations, --held-out {config.held_out}; hold fewer out")
    order = np.random.default_rng(config.seed).permutation(len(found))
    cut = len(found) - config.held_out
    parts = {"learn": order[: min(cut, config.examples or cut)], "held out": order[cut:]}
    rows, kept = {}, {}
    for name, index in parts.items():
        given = [found[i] for i in index]
        fit_in = fitted((Example(*each) for each in all_turns(base.tokenizer, given)), config.length)
        if not fit_in.examples:
            raise UserError(f"{config.data}: no answer begins within {config.length} tokens; use a larger --length")
        kept[name] = [given[i] for i in fit_in.kept]
        rows[name] = packed(fit_in.examples, config.length, base.tokenizer.ids.get("pad", 0))
        tokens, answers = int((rows[name]["segments"] > 0).sum()), int(rows[name]["answers"].sum())
        console.print(
            f"{name}: {len(fit_in.examples):,} conversations ({fit_in.shortened} shortened, {fit_in.dropped} left out) "
            f"in {len(rows[name]['ids']):,} rows, {tokens:,} tokens ({tokens / rows[name]['ids'].size:.0%} full), "
            f"{answers:,} of answers",
            soft_wrap=True,
        )
    return Setting(config, kept["learn"], kept["held out"], rows)


def clean(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "content": CALCULATOR.sub("", message["content"])}


def trained(setting: Setting, base: Any, name: str) -> tuple[dict[str, Any], Any]:
    """A row of the table, and the tuned parameters. The adapter on the codes is saved."""
    since, config, key = time.perf_counter(), setting.config, jax.random.key(setting.config.seed)
    on_codes = name.startswith("QLoRA")
    transform = lora(config.rank, alpha=2.0 * config.rank)
    split = transform.init(key, base.params, base.uses)
    loader = Loader(setting.rows["learn"], config.batch_size, config.seed, remainder="pad")
    held = Loader(setting.rows["held out"], config.batch_size, shuffle=False, remainder="pad")
    steps = config.epochs * loader.steps
    optimizer = Optimizer("adamw", config.lr, "cosine", steps, warmup=max(1, steps // 16), clip=1.0)
    objective, measured = next_token(base.module), next_token(base.module, train=False)
    before = evaluate(measured, transform.apply(split), held)
    memory = memory_of(objective, transform, optimizer.build(), split, next(iter(loader.epoch(0))))
    place = Path(config.workdir) / ("qlora" if on_codes else "lora")
    settings = {
        "run": name,
        "data": Path(config.data).name,
        "lr": config.lr,
        "rank": config.rank,
        "length": config.length,
    }
    done = fit(
        Task(objective, transform, optimizer.build(), loader), split, key,
        Run(config.epochs, place, config.resume, keep_last=1, log_every=1, config=settings),
    )  # fmt: skip
    tuned = transform.apply(done.split)
    after = evaluate(measured, tuned, held)
    if on_codes:
        adapter = Adapter(transform, done.split, {"task_type": "CAUSAL_LM", "base_model_name_or_path": config.model})
        write_peft(Path(config.workdir) / "adapter", adapter, base.uses, base.names)
    return {
        "run": name,
        "before": before["loss"],
        "after": after["loss"],
        "drop": before["loss"] - after["loss"],
        "accuracy before": before["accuracy"],
        "accuracy after": after["accuracy"],
        "base bytes": nbytes(base.params),
        "adapter bytes": nbytes(split.train),
        "step memory": memory,
        "steps": steps,
        "seconds": round(time.perf_counter() - since, 1),
    }, tuned


def memory_of(objective: Any, transform: Any, optimizer: Any, split: Any, batch: Any) -> int:
    """Bytes that a training step holds at once, as its compiler says: what goes in, and what comes in between."""
    base, state = init_state(split, optimizer, jax.random.key(0))
    step = jax.jit(step_fn(objective, transform, optimizer), donate_argnums=1)
    found: Any = step.lower(base, state, batch).compile().memory_analysis()
    inside = found.argument_size_in_bytes + found.temp_size_in_bytes
    return inside + found.output_size_in_bytes - found.alias_size_in_bytes


def sampled(setting: Setting, base: Any, tuned: Any) -> list[dict[str, Any]]:
    """Held-out questions, each with the answers before and after, and the right one."""
    config = setting.config
    chosen = setting.held[: config.samples]
    firsts = [next(i for i, each in enumerate(messages) if each["role"] == "assistant") for messages in chosen]
    asked = [messages[:first] for messages, first in zip(chosen, firsts, strict=True)]
    said = {name: answered(base, params, asked, config.max_tokens) for name, params in
            {"before": base.params, "after": tuned}.items()}  # fmt: skip
    return [
        {"question": asked[i][-1]["content"], "before": said["before"][i], "after": said["after"][i],
         "in the data": chosen[i][firsts[i]]["content"]}
        for i in range(len(chosen))
    ]  # fmt: skip


def answered(base: Any, params: Any, asked: Sequence[Any], max_tokens: int) -> list[str]:
    return ask(base, params, asked, max_tokens=max_tokens) if asked else []


def examined(config: Config, base: Any, versions: dict[str, Any]) -> list[dict[str, Any]]:
    """GSM8K: how many questions each version answers with the right number, after examples in its context."""
    sets = {name: read_conversations(Path(config.gsm8k) / f"{name}.jsonl.gz") for name in ("train", "test")}
    if config.shots > len(sets["train"]):
        raise UserError(f"--shots {config.shots}: {config.gsm8k} has {len(sets['train'])} examples")
    drawn = np.random.default_rng(config.seed).permutation(len(sets["train"]))[: config.shots]
    shots = [[clean(each) for each in sets["train"][i]] for i in drawn]
    test = sets["test"][: config.questions or None]
    asked = [few_shot(shots, messages[:-1]) for messages in test]
    rows = []
    for name, params in versions.items():
        said = answered(base, params, asked, config.answer_tokens)
        right = [same_number(answer, messages[-1]["content"]) for answer, messages in zip(said, test, strict=True)]
        rows.append({"version": name, "questions": len(right), "right": sum(right), "share": float(np.mean(right))})
    return rows


def report(setting: Setting, results: dict[str, Any]) -> Path:
    config = setting.config
    page = Report("SmolLM2 tuned on instructions")
    page.text(
        f"{len(setting.learn):,} conversations of {Path(config.data).name}, {config.epochs} passes, packed into rows "
        f"of {config.length} tokens; LoRA of rank {config.rank}. Losses are nats a token of held-out answers; memory "
        "is that of a training step, as its compiler counts it."
    )
    page.table(results["table"], "What is learnt, and what it costs")
    if "gsm8k" in results:
        page.table(results["gsm8k"], f"GSM8K's test set, {config.shots} examples in the context, exact number")
    if results["samples"]:
        page.section("Held-out questions").table(results["samples"], "The likeliest answers, before and after")
    return page.save(Path(config.workdir) / "report.html")

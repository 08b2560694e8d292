"""A published language model that goes on learning, on another kind of text.

Question: how much does a small model gain on new text by continued pretraining, whole or by LoRA, and how much of what
it knew does it lose?

Model: stories260K (Karpathy 2023, llama2.c), a Llama of 260,000 parameters that writes children's stories: --model, a
folder of llama2.c. Data: --data, a text file, whose last tenth is held out. What it knew: stories that it draws itself,
before training; its loss on them can only rise.

Small form: the defaults. Large form: any decoder of 1B parameters, --length 2048 --batch-size 128 --dtype bfloat16 on
a mesh. Learning rates are first guesses, not chosen by anything yet.

Command: jaxbig run experiments/language/stories_continued.py --model FOLDER --data FILE --record
Result: not measured yet.
"""

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxbig import atomic, lora, usage
from jaxbig.data import Loader, windows
from jaxbig.errors import UserError
from jaxbig.evaluate import evaluate
from jaxbig.experiment import check_range, make_folder
from jaxbig.generate.loop import generate
from jaxbig.generate.sampling import sampling
from jaxbig.hub.llama2c import Llama2c, read_llama2c
from jaxbig.objective import next_token
from jaxbig.optim import Optimizer
from jaxbig.plots import learning_curves
from jaxbig.record import record
from jaxbig.report import Report, terminal_table
from jaxbig.train import Run, Task, fit
from jaxbig.transform import Transform
from jaxbig.tune.full import full

RECORDS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "stories_continued.jsonl"


@dataclasses.dataclass(frozen=True)
class Config:
    model: str
    """Folder of llama2.c: a model and its tokenizer, two files *.bin."""
    data: str
    """Text file to go on with."""
    workdir: str = "runs/stories_continued"
    """Folder of results.json, report.html and checkpoints."""
    length: int = 256
    """Tokens of a row."""
    batch_size: int = 16
    """Rows a step."""
    epochs: int = 4
    """Passes over the text."""
    lr: float = 1e-3
    """Peak learning rate of the whole model."""
    lora_lr: float = 5e-3
    """Peak learning rate of LoRA."""
    rank: int = 8
    """Of LoRA."""
    stories: int = 48
    """Stories that the model draws before training, to see what it forgets."""
    prompt: str = "Once upon a time"
    """What the samples begin with."""
    max_tokens: int = 120
    """Of a sample."""
    seed: int = 0
    """Of the order, the adapter's start and the stories."""
    resume: bool = False
    """Go on where an earlier run was stopped; it ends in the same bits."""
    record: bool = False
    """Add the result to benchmarks/results/stories_continued.jsonl."""

    def __post_init__(self):
        check_range(self, 1, math.inf, "batch_size", "epochs", "rank", "stories", "max_tokens")
        check_range(self, 2, math.inf, "length")


class Setting(NamedTuple):
    """What both runs share: rows to learn, and two sets to measure on."""

    config: Config
    base: Llama2c
    learn: Any
    held: Any
    known: Any


def main(config: Config) -> None:
    make_folder(config.workdir)
    console, since = Console(), time.perf_counter()
    setting = prepared(config, console)
    params = setting.base.params
    ways = {"full": (full(), config.lr), f"LoRA {config.rank}": (lora(rank=config.rank), config.lora_lr)}
    table, histories, samples = [row(setting, "before", params, 0)], {}, [sample(setting, "before", params)]
    for name, (transform, rate) in ways.items():
        tuned, histories[name], trained = learnt(setting, name, transform, rate, console)
        table.append(row(setting, name, tuned, trained))
        samples.append(sample(setting, name, tuned))
    results = {"table": table, "samples": samples, "seconds": round(time.perf_counter() - since, 1)}
    atomic.write(Path(config.workdir) / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    if config.record:
        settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("workdir", "resume", "record")}
        record(
            RECORDS, {"settings": settings | {name: Path(settings[name]).name for name in ("model", "data")}, **results}
        )
    console.print(terminal_table(table, "nats a token"))
    console.print(f"report: {report(config, results, histories)}", soft_wrap=True)


def prepared(config: Config, console: Console) -> Setting:
    base = read_llama2c(config.model)
    if config.length > base.positions:
        raise UserError(f"--length {config.length}: the model is made for {base.positions} tokens")
    try:
        lines = Path(config.data).read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{config.data}: cannot be read ({error}); give a text file in UTF-8") from error
    # Line by line: a token reaches over no line's end, as in the text that the tokenizer was made from.
    begins = base.tokenizer.encode("")
    coded = [base.tokenizer.encode(line)[len(begins) :] for line in lines]
    cut = len(lines) * 9 // 10
    learn, held = (np.fromiter((i for ids in part for i in ids), np.int32) for part in (coded[:cut], coded[cut:]))
    start = base.tokenizer.encode(config.prompt)
    drawn = generate(
        base.module, base.params, [start] * config.stories, max_tokens=config.length - len(start),
        how=sampling(temperature=1.0), key=jax.random.key(config.seed),
    )  # fmt: skip
    known = {"ids": np.array([start + ids for ids in drawn], np.int32)}
    console.print(
        f"{len(learn):,} tokens to learn, {len(held):,} to measure on, {config.stories} stories of {config.length}",
        soft_wrap=True,
    )
    return Setting(config, base, windows(learn, config.length), windows(held, config.length), known)


def learnt(setting: Setting, name: str, transform: Transform, rate: float, console: Console) -> tuple[Any, Any, int]:
    """The tuned parameters, the history, and how many numbers were trained."""
    config, (module, params) = setting.config, setting.base[:2]
    example = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    uses = usage(lambda params, ids: module.apply({"params": params}, ids), params, example)
    key = jax.random.key(config.seed)
    split = transform.init(key, params, uses)
    loader = Loader(setting.learn, config.batch_size, config.seed)
    steps = config.epochs * loader.steps
    optimizer = Optimizer("adamw", rate, "cosine", steps, warmup=max(1, steps // 16), clip=1.0)
    validation = Loader(setting.held, config.batch_size, shuffle=False, remainder="pad")
    objective, measured = objectives(setting)
    task = Task(objective, transform, optimizer.build(), loader, (measured, validation))
    run = Run(
        config.epochs, Path(config.workdir) / name.replace(" ", "_").lower(), config.resume, keep_last=1,
        config={"method": name, "lr": rate, "length": config.length}, console=console,
    )  # fmt: skip
    done = fit(task, split, key, run)
    return transform.apply(done.split), done.history, sum(leaf.size for leaf in jax.tree.leaves(split.train))


def objectives(setting: Setting) -> tuple[Any, Any]:
    module = setting.base.module
    learnt, measured = (next_token(module, train=train, inputs="ids", answers=None) for train in (True, False))
    return learnt, measured


def row(setting: Setting, name: str, params: Any, trained: int) -> dict[str, Any]:
    _, measured = objectives(setting)
    found = {}
    for what, rows in (("new text", setting.held), ("its own stories", setting.known)):
        loader = Loader(rows, setting.config.batch_size, shuffle=False, remainder="pad")
        found[what] = evaluate(measured, params, loader)["loss"]
    return {"model": name, **found, "trained": trained}


def sample(setting: Setting, name: str, params: Any) -> dict[str, str]:
    """The likeliest text after the prompt."""
    config, base = setting.config, setting.base
    start = base.tokenizer.encode(config.prompt)
    (found,) = generate(base.module, params, [start], max_tokens=config.max_tokens, ends=base.tokenizer.ends)
    return {"model": name, "text": base.tokenizer.decode([*start, *found])}


def report(config: Config, results: dict[str, Any], histories: dict[str, Any]) -> Path:
    page = Report("A small story teller that goes on learning")
    page.text(
        f"{Path(config.data).name}, {config.epochs} passes in rows of {config.length} tokens. Losses are nats a token: "
        "of held-out new text, and of stories that the model drew before training."
    )
    page.table(results["table"], "What is gained, and what is forgotten")
    page.figure(learning_curves(histories), "The new text: to learn and held out")
    page.section("The likeliest text").table(results["samples"], "After the same beginning")
    return page.save(Path(config.workdir) / "report.html")

"""A published MiniLM on tasks of GLUE and on AG News: all of its weights trained, or a hundredth of them.

Question: on one small pretrained encoder, how near do LoRA, DoRA, BitFit, Houlsby's adapters and prompts come to
training everything, with all labels and with a few?

Model: all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957; 6 layers of 384, 22.7 million weights, tuned for sentence
embeddings), a folder as Hugging Face has it: --model. Data: --data, the folder of the task's tsv files as GLUE has them
(SST-2 with a held-out part of its training phrases; CoLA, RTE; STS-B; AG News: text and class).
The small form takes a part of SST-2's training phrases (--examples); the large form is all of them and three epochs.
The learning rates are first guesses, not chosen by anything yet: --tune tries others on the last tenth of the training
part, with a seed that the table does not use.

Command: jaxbig run experiments/language/minilm_glue.py --model DIR --data DIR --record
Result: not measured yet. One run of one method (--methods lora --examples 1600 --seeds 1): held-out 0.833, dev 0.795.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from rich.console import Console
from scipy import stats

from jaxbig import atomic, bitfit, bottleneck, chain, dora, full, load, lora, metrics, plots, prompt
from jaxbig.data import BucketLoader, Texts, k_shot, read_table, select
from jaxbig.errors import UserError
from jaxbig.evaluate import predict
from jaxbig.experiment import check_range, make_folder
from jaxbig.flops import flops
from jaxbig.models import Reader, replace_head
from jaxbig.objective import classify, regress
from jaxbig.optim import Optimizer
from jaxbig.record import record
from jaxbig.report import Report, terminal_table
from jaxbig.significance import bootstrap_difference, t_interval
from jaxbig.step import init_state, step_fn
from jaxbig.train import Run, Task, fit
from jaxbig.transform import Transform
from jaxbig.tree import nbytes

RECORDS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "minilm_glue.jsonl"
INPUTS = ("ids", "segments", "types")
HEAD = "head/.*"
FILL = {"segments": 1, "types": 0}
METHODS: dict[str, tuple[Transform | None, float]] = {
    "full": (full(), 1e-4),
    "lora": (lora(4, alpha=8.0), 2e-3),
    "dora": (dora(4, alpha=8.0), 2e-3),
    "bitfit": (bitfit(), 3e-3),
    "houlsby": (bottleneck(16), 2e-3),
    "prompt, 16 tokens": (prompt(16, ids="ids", fill=FILL), 1e-2),
    "head only": (None, 3e-3),
}


class Kind(NamedTuple):
    """A task's files and what is measured.

    Attributes:
        sets: "train" and those to measure on -> the file.
        columns: of the text, of the second text if there is one, and of the label.
        names: of a file's columns; None: its first line's.
        classes: of the label, in order; (): a number.
        metric: (labels, predictions) -> number. Predictions are classes, or numbers.
    """

    sets: dict[str, str]
    columns: tuple[str, ...]
    names: tuple[str, ...] | None
    classes: tuple[str, ...]
    metric: str = "accuracy"


def _sets(train: str = "train", **more: str) -> dict[str, str]:
    return {"train": f"{train}.tsv.gz", **{name.replace("_", "-"): f"{file}.tsv.gz" for name, file in more.items()}}


KINDS = {
    "sst2": Kind(_sets(held_out="dev", dev="test"), ("sentence", "label"), None, ("0", "1")),
    "agnews": Kind(
        _sets("dev", test="test"), ("text", "label"), ("text", "label"), ("World", "Sports", "Business", "Sci/Tech")
    ),
    "cola": Kind(
        _sets(held_out="val", dev="dev"), ("sentence", "label"), ("source", "label", "star", "sentence"), ("0", "1"),
        "matthews",
    ),
    "rte": Kind(
        _sets(dev="dev"), ("sentence1", "sentence2", "label"), None, ("entailment", "not_entailment")
    ),
    "stsb": Kind(
        _sets(dev="dev"), ("sentence1", "sentence2", "score"),
        ("index", "genre", "file", "year", "old", "of1", "of2", "sentence1", "sentence2", "score"), (), "spearman",
    ),
}  # fmt: skip


def accuracy(labels: np.ndarray, said: np.ndarray) -> float:
    return float((labels == said).mean())


def matthews(labels: np.ndarray, said: np.ndarray) -> float:
    return metrics.scores(metrics.confusion(labels, said, 2))["matthews"]


def spearman(labels: np.ndarray, said: np.ndarray) -> float:
    return float(np.corrcoef(stats.rankdata(labels), stats.rankdata(said))[0, 1])


MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy, "matthews": matthews, "spearman": spearman,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    model: str
    """Folder of the encoder, with its tokenizer."""
    data: str
    """Folder of the task's files."""
    task: Literal["sst2", "agnews", "cola", "rte", "stsb"] = "sst2"
    """Which task."""
    workdir: str = "runs/minilm_glue"
    """Folder of results.json, report.html and each run's checkpoints."""
    methods: tuple[str, ...] = ()
    """Only these; all, if none is named."""
    examples: int = 16_000
    """Of the training part, the first so many of an order drawn by the seed; 0: all."""
    shots: tuple[int, ...] = ()
    """Labels a class, for a curve beside the table."""
    epochs: int = 1
    """Passes over the training part."""
    batch_size: int = 32
    """Texts a step."""
    bounds: tuple[int, ...] = (16, 32, 64, 128)
    """Lengths, in tokens, that batches may have."""
    seeds: int = 3
    """Runs of each method, with an order and a head of their own."""
    tune: tuple[float, ...] = ()
    """Try these rates on the last tenth of the training part, and measure nothing else."""
    resume: bool = False
    """Go on where an earlier run was stopped; it ends in the same bits."""
    record: bool = False
    """Add the result to benchmarks/results/minilm_glue.jsonl."""

    def __post_init__(self):
        check_range(self, 1, math.inf, "epochs", "batch_size", "seeds")
        check_range(self, 0, math.inf, "examples")
        for name in self.methods:
            if name not in METHODS:
                raise UserError(f"methods: {name!r} is none of {', '.join(map(repr, METHODS))}")


class Setting(NamedTuple):
    """What all runs share."""

    config: Config
    kind: Kind
    base: Any
    module: Reader
    sources: dict[str, Texts]


def main(config: Config) -> None:
    make_folder(config.workdir)
    # Runs of one method are one program: the second finds it compiled.
    if jax.config.values.get("jax_compilation_cache_dir") is None:
        jax.config.update("jax_compilation_cache_dir", str(Path(config.workdir) / "compiled"))
    console, since = Console(), time.perf_counter()
    setting = prepared(config, console)
    if config.tune:
        tune(setting, console)
        return
    rows, said = [], {}
    for name in config.methods or METHODS:
        row, said[name] = measured(setting, name)
        rows.append(row)
        console.print("  ".join(f"{key} {value}" for key, value in row.items() if key != "runs"), soft_wrap=True)
    results = {"table": rows, "against full": against(setting, said), "shots": curve(setting, console)}
    results["seconds"] = round(time.perf_counter() - since, 1)
    atomic.write(Path(config.workdir) / "results.json", json.dumps(results, indent=1) + "\n")
    if config.record:
        settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("workdir", "resume", "record")}
        settings |= {"model": Path(config.model).name, "data": Path(config.data).name}
        record(RECORDS, {"settings": settings, **results})
    console.print(terminal_table([shown(row) for row in rows], f"MiniLM on {config.task}"))
    console.print(terminal_table(results["against full"], "less than full, 95% over examples"))
    console.print(f"report: {report(setting, results)}")


def prepared(config: Config, console: Console) -> Setting:
    kind = KINDS[config.task]
    base = load(config.model, "sequence_classification", num_classes=max(1, len(kind.classes)), scan_layers=True)
    sources = {name: texts(config, kind, base.tokenizer, file) for name, file in kind.sets.items()}
    if config.examples:
        order = np.random.default_rng(0).permutation(len(sources["train"]))[: config.examples]
        sources["train"] = part(sources["train"], order)
    tokens = {name: f"{len(source):,} texts, {int(source.lengths.sum()):,} tokens" for name, source in sources.items()}
    console.print(f"{config.task}: {'; '.join(f'{name} {told}' for name, told in tokens.items())}")
    return Setting(config, kind, base, Reader(base.module, INPUTS[1:]), sources)


def texts(config: Config, kind: Kind, tokenizer: Any, file: str) -> Texts:
    place = Path(config.data) / file
    names = None if kind.names is None else list(kind.names)
    columns = read_table(
        place, delimiter="\t", header=names is None, names=names, kinds=dict.fromkeys(kind.columns, "text"),
        hint="give the folder of the task's tsv files as --data",
    ).columns  # fmt: skip
    first, *pairs, label = (list(columns[name]) for name in kind.columns)
    most = config.bounds[-1]
    ids = tokenizer.encode_all(first, *pairs, most=most)
    types = tokenizer.types_all(first, *pairs, most=most) if pairs else None
    if kind.classes:
        numbers = {name: i for i, name in enumerate(kind.classes)}
        strange = next((each for each in label if each.strip() not in numbers), None)
        if strange is not None:
            raise UserError(f"{place}: the label {strange!r} is none of {', '.join(kind.classes)}")
        labels = np.array([numbers[each.strip()] for each in label], np.int32)
    else:
        labels = np.array([float(each) / 5 for each in label], np.float32)  # 0 to 5
    return Texts(ids, config.bounds, {"label": labels}, types, tokenizer.ids.get("pad", 0))


def part(source: Texts, index: np.ndarray) -> Texts:
    types = None if source.types is None else [source.types[i] for i in index]
    columns = select(source.columns, index)
    return Texts([source.ids[i] for i in index], source.bounds.tolist(), columns, types, source.padding)


def trained(setting: Setting, name: str, rate: float, seed: int, train: Texts, epochs: int, run: str) -> Any:
    """The parameters of one run."""
    config, key = setting.config, jax.random.key(seed)
    technique = METHODS[name][0]
    transform = whole(technique)
    objective = (classify if setting.kind.classes else regress)(setting.module, inputs=INPUTS)
    loader = BucketLoader(train, config.batch_size, seed, shuffle=True, remainder="pad", buckets=train.buckets)
    steps = epochs * loader.steps
    optimizer = Optimizer("adamw", rate, "linear", steps, warmup=max(1, steps // 16), weight_decay=0.01, clip=1.0)
    params = replace_head(setting.base.params, key, max(1, len(setting.kind.classes)))
    split = transform.init(jax.random.fold_in(key, 1), params, setting.base.uses)
    place = Path(config.workdir) / f"{name.replace(', ', '_').replace(' ', '_')}-{run}-{seed}"
    settings = {"method": name, "rate": rate, "run": run, "task": config.task, "epochs": epochs, "examples": len(train)}
    done = fit(
        Task(objective, transform, optimizer.build(), loader, None), split, key,
        Run(epochs, place, config.resume, config=settings, keep_last=1),
    )  # fmt: skip
    return transform, done.split


def whole(technique: Transform | None) -> Transform:
    head = full(where=HEAD)
    return head if technique is None else technique if technique.name == "full" else chain(head, technique)


def outputs(setting: Setting, transform: Transform, split: Any, source: Texts) -> np.ndarray:
    """What the model says of each text: a class, or a number."""
    loader = BucketLoader(source, 128, 0, remainder="pad", buckets=source.buckets)

    def fn(params, batch):
        return setting.module.apply({"params": params}, *(batch[name] for name in INPUTS))

    named = {name: name for name in INPUTS}
    logits = predict(transform.wrap(split, fn), transform.apply(split), loader, named)
    return logits.argmax(-1) if setting.kind.classes else logits[:, 0]


def measured(setting: Setting, name: str) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
    """A method's row, and what each of its runs said of each set."""
    since, config, rate = time.perf_counter(), setting.config, METHODS[name][1]
    said: dict[str, list[np.ndarray]] = {key: [] for key in setting.sources if key != "train"}
    cost: dict[str, Any] = {}
    for seed in range(config.seeds):
        transform, split = trained(setting, name, rate, seed, setting.sources["train"], config.epochs, "all")
        cost = cost or costs(setting, transform, split)
        for key in said:
            said[key].append(outputs(setting, transform, split, setting.sources[key]))
    row: dict[str, Any] = {"method": name, **cost, "rate": rate}
    for key, runs in said.items():
        values = [measure(setting, key, each) for each in runs]
        row[key] = float(np.mean(values))
        if len(values) > 1:
            interval = t_interval(values)
            row |= {f"{key} low": interval.low, f"{key} high": interval.high}
        row[f"{key} runs"] = values
    return {**row, "seconds": round(time.perf_counter() - since, 1)}, said


def measure(setting: Setting, key: str, said: np.ndarray) -> float:
    return MEASURES[setting.kind.metric](setting.sources[key].columns["label"], said)


def costs(setting: Setting, transform: Transform, split: Any) -> dict[str, Any]:
    """Numbers that are trained, bytes of what is kept of them, and a step's FLOPs and temporary bytes."""
    objective = (classify if setting.kind.classes else regress)(setting.module, inputs=INPUTS)
    optimizer = Optimizer("adamw", 1e-3).build()
    base, state = init_state(split, optimizer, jax.random.key(0))
    rows = setting.sources["train"].batch(np.arange(setting.config.batch_size))
    step = step_fn(objective, transform, optimizer)
    memory: Any = jax.jit(step).lower(base, state, rows).compile().memory_analysis()
    trained = sum(leaf.size for leaf in jax.tree.leaves(split.train))
    return {
        "trained": trained,
        "share": trained / sum(leaf.size for leaf in jax.tree.leaves(setting.base.params)),
        "bytes": nbytes(jax.tree.leaves((split.train, split.state))),
        "step FLOPs": flops(step, base, state, rows),
        "step memory": memory.temp_size_in_bytes,
    }


def against(setting: Setting, said: dict[str, dict[str, list[np.ndarray]]]) -> list[dict[str, Any]]:
    """Each method less full, runs of one seed paired, with an interval over examples."""
    rows = []
    for name in said if "full" in said else ():
        for key in said[name] if name != "full" else ():
            labels = setting.sources[key].columns["label"]
            value = bootstrap_difference(
                lambda labels, *runs: np.mean([MEASURES[setting.kind.metric](labels, each) for each in runs]),
                [labels, *said[name][key]], [labels, *said["full"][key]],
            )  # fmt: skip
            rows.append({"method": name, "set": key, "difference": value.value, "low": value.low, "high": value.high})
    return rows


def curve(setting: Setting, console: Console) -> list[dict[str, Any]]:
    """Each method with some labels a class; two epochs at least, and about 512 texts a class seen in all."""
    rows = []
    key = list(setting.sources)[-1]
    for shots in setting.config.shots if setting.kind.classes else ():
        for name in setting.config.methods or METHODS:
            values = []
            for seed in range(setting.config.seeds):
                source = setting.sources["train"]
                few = part(source, k_shot(source.columns["label"], shots, seed))
                epochs = max(2, 512 // shots)
                transform, split = trained(setting, name, METHODS[name][1], seed, few, epochs, f"{shots}")
                values.append(measure(setting, key, outputs(setting, transform, split, setting.sources[key])))
            rows.append({"method": name, "labels a class": shots, "set": key, "value": float(np.mean(values)),
                         "least": min(values), "most": max(values)})  # fmt: skip
            console.print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), soft_wrap=True)
    return rows


def tune(setting: Setting, console: Console) -> None:
    """The rates' values on the last tenth of the training part, by seed 100."""
    source = setting.sources["train"]
    cut = len(source) * 9 // 10
    setting.sources["tenth"] = part(source, np.arange(cut, len(source)))
    rest = part(source, np.arange(cut))
    for name in setting.config.methods or METHODS:
        for rate in setting.config.tune:
            transform, split = trained(setting, name, rate, 100, rest, setting.config.epochs, f"tune-{rate:g}")
            value = measure(setting, "tenth", outputs(setting, transform, split, setting.sources["tenth"]))
            console.print(f"{name:20} rate {rate:<8g} {setting.kind.metric} {value:.4f}", soft_wrap=True)


def shown(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.endswith("runs")}


def report(setting: Setting, results: dict[str, Any]) -> Path:
    config = setting.config
    page = Report(f"MiniLM on {config.task}, tuned in several ways")
    page.text(
        f"{len(setting.sources['train']):,} texts, {config.epochs} epochs, {config.seeds} seeds: mean and 95% interval "
        f"over seeds of {setting.kind.metric}. The share is of all weights; bytes are those of what is trained."
    )
    page.table([shown(row) for row in results["table"]], "What each reaches, and what it costs")
    if results["against full"]:
        page.table(results["against full"], "Less than full; the interval is over examples, runs of one seed paired")
    key = list(setting.sources)[-1]
    points = [{"name": row["method"], "bytes": row["bytes"], "accuracy": row[key]} for row in results["table"]]
    sizes = plots.accuracy_against_bytes(points)
    sizes.axes[0].set_ylabel(f"{setting.kind.metric}, {key}")
    sizes.axes[0].set_xlabel("bytes of what is trained and kept beside it")
    sizes.savefig(Path(config.workdir) / "accuracy.png", dpi=110)
    page.figure(sizes, "Against bytes")
    if results["shots"]:
        page.table(results["shots"], "With a few labels a class")
    return page.save(Path(config.workdir) / "report.html")

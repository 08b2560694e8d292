"""The whole life of a model on real handwritten digits: train, transfer, tune, distill, prune, quantize, export.

Data: scikit-learn's 1,797 digits of 8x8 pixels, 70% of each class to train on, 30% to test. No network, no GPU.
Ends with a table and, in the working folder, results.json and report.html (self-contained, with pictures).

Command: jaxbig run experiments/quickstart.py
Results: the table in README.md
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from rich.console import Console

from jaxbig import atomic, bitfit, chain, full, lift, lora, pictures, plots, prune, quantize, usage
from jaxbig.compress.prune import packed_bytes
from jaxbig.curves import Labels, Method, Problem, label_curve
from jaxbig.data import Loader, k_shot, load_digits, select, split_fraction
from jaxbig.errors import UserError
from jaxbig.evaluate import predict
from jaxbig.experiment import check_range, make_folder
from jaxbig.export import export, run_in_fresh_process
from jaxbig.history import TIMES
from jaxbig.metrics import confusion
from jaxbig.models import CNN, MLP, replace_head
from jaxbig.objective import classify, distill
from jaxbig.optim import Optimizer
from jaxbig.report import Report, terminal_table
from jaxbig.seeds import fit_seeds, init_seeds, seed_batches
from jaxbig.significance import t_interval
from jaxbig.train import Fitted, Run, Task, fit
from jaxbig.transform import Transform
from jaxbig.tree import paths

TEACHER = CNN(channels=(32, 64), hidden=128, padding="SAME")
STUDENT = MLP(features=(64,))
SHOTS, FEW = (5, 10, 25), 10
BODY, HEAD = "(conv|dense).*", "head/.*"


@dataclasses.dataclass(frozen=True)
class Config:
    workdir: str = "runs/quickstart"
    """Folder of checkpoints, results.json and report.html."""
    epochs: int = 20
    """Epochs of the two networks that are trained from scratch; pruned and quantized ones get a quarter of them."""
    steps: int = 100
    """Steps of each run on few labels; the distilled students get six times as many."""
    seeds: int = 5
    """Seeds of the runs on few labels and of the students; they run as one vmapped program."""
    seed: int = 0
    """Of everything: the split of the data, initialisation, order."""
    resume: bool = False
    """Go on in a working folder where an earlier run was stopped; it ends in the same bits."""

    def __post_init__(self):
        check_range(self, 1, math.inf, "epochs", "steps", "seeds")
        check_range(self, 0, 2**31 - 1, "seed")


def main(config: Config) -> None:
    make_folder(config.workdir)
    console = Console()
    digits = load_digits()
    first, second = split_fraction(digits["label"], 0.3, config.seed)
    train, test = select(digits, first), select(digits, second)
    low, low_test, high, high_test = (_classes(part, upper) for upper in (False, True) for part in (train, test))

    console.rule("train on digits 0-4")
    source_model = TEACHER.clone(num_classes=5)
    source = _train(config, "source", source_model, full(), _init(config, source_model, 1), low, low_test)
    console.rule("transfer to digits 5-9: few labels, five seeds at once")
    labels = _remember(config, "labels", lambda: _few_labels(config, console, _trained(source), high, high_test))
    console.rule("train on all digits: the teacher")
    teacher = _train(config, "teacher", TEACHER, full(), _init(config, TEACHER, 2), train, test)
    dense = _trained(teacher)
    console.rule("distill into a student")
    students = _remember(config, "students", lambda: _students(config, console, dense, train, test))
    console.rule("prune, quantize, compose")
    compressed = _compress(config, dense, train, test)
    rows = [_row("teacher", TEACHER, dense, test, _size(dense))]
    rows += [_row(name, TEACHER, params, test, trained) for name, (params, trained) in compressed.items()]
    rows += students["rows"]
    console.rule("export")
    exported = _export(config, compressed["LoRA over int4 over 2:4"][0], test)
    console.print(f"exported {exported['bytes']:,} bytes; a fresh process gives the same bits: {exported['same bits']}")
    results = {"table": rows, "labels": labels, "students": students, "export": exported, "teacher": _digest(dense)}
    atomic.write(Path(config.workdir) / "results.json", json.dumps(results, indent=1, sort_keys=True) + "\n")
    report = _report(config, results, {"digits 0-4": source, "teacher": teacher}, dense, test)
    console.print(terminal_table(rows, "digits 0-9"))
    console.print(f"report: {report}")


def _classes(part: dict, upper: bool) -> dict:
    """The examples of digits 0-4, or of 5-9 with labels from 0."""
    chosen = select(part, np.flatnonzero((part["label"] >= 5) == upper))
    return chosen | {"label": chosen["label"] - 5 * upper}


def _init(config: Config, model: nn.Module, stream: int) -> Any:
    key = jax.random.fold_in(jax.random.key(config.seed), stream)
    return model.init(key, jnp.zeros((1, 8, 8, 1)))["params"]


def _model_fn(model: nn.Module) -> Callable:
    return lambda params, x: model.apply({"params": params}, x)


def _trained(fitted: Fitted) -> Any:
    """The parameters that `full` has trained."""
    return full().apply(fitted.split)


def _train(config, name: str, model, transform: Transform, params, train, test, share: float = 1.0, lr=2e-3) -> Fitted:
    """One run of the trainer with checkpoints; resumed where it stopped."""
    epochs = max(1, round(config.epochs * share))
    data = Loader(train, batch_size=64, seed=config.seed)
    optimizer = Optimizer("adamw", lr=lr, schedule="cosine", steps=epochs * data.steps).build()
    validation = (classify(model, train=False), Loader(test, 256, shuffle=False, remainder="pad"))
    uses = usage(_model_fn(model), params, jnp.zeros((1, 8, 8, 1)))
    key = jax.random.key(config.seed)
    run = Run(epochs, Path(config.workdir) / name, config.resume, config={**dataclasses.asdict(config), "resume": None})
    task = Task(classify(model), transform, optimizer, data, validation)
    return fit(task, transform.init(key, params, uses), key, run)


def _remember(config: Config, name: str, compute: Callable[[], Any]) -> Any:
    """A stage's result, from its file if this is a resumed run that has got so far."""
    path = Path(config.workdir) / f"{name}.json"
    settings = {**dataclasses.asdict(config), "resume": None, "workdir": None}
    if config.resume and path.exists():
        saved = json.loads(path.read_text())
        if saved["settings"] != settings:
            raise UserError(f"{path}: is of a run with other settings; give those, or another --workdir")
        return saved["result"]
    result = compute()
    atomic.write(path, json.dumps({"settings": settings, "result": result}))
    return result


def _few_labels(config: Config, console: Console, base, train, test) -> list[dict]:
    """Accuracy on digits 5-9 for each way to use the network of digits 0-4 and each number of labels."""
    model = TEACHER.clone(num_classes=5)
    fresh = lambda key: model.init(key, jnp.zeros((1, 8, 8, 1)))["params"]  # noqa: E731
    moved = lambda key: replace_head(base, key, 5, init=nn.initializers.zeros)  # noqa: E731
    head = full(where=HEAD)

    def way(transform, params_of, lr):
        return Method(transform, Optimizer("adamw", lr=lr, schedule="cosine", steps=config.steps).build(), params_of)

    ways = {
        "from scratch": way(full(), fresh, 3e-3),
        "full": way(full(), moved, 1e-2),
        "LoRA": way(chain(lora(rank=4, where=f"{BODY}kernel"), head), moved, 1e-2),
        "BitFit": way(chain(bitfit(where=f"{BODY}bias"), head), moved, 1e-2),
        "head only": way(head, moved, 3e-2),
    }
    uses = usage(_model_fn(model), base, jnp.zeros((1, 8, 8, 1)))
    problem = Problem(classify(model), _model_fn(model), uses, train, test)
    labels = Labels(SHOTS, 5 * SHOTS[0], config.steps, config.seeds, config.seed)
    points = []
    for point in label_curve(ways, labels, problem):
        points.append(point)
        if point["labels"] == SHOTS[-1]:
            told = ", ".join(f"{p['labels']} labels {p['accuracy']:.3f}" for p in points[-len(SHOTS) :])
            console.print(f"{point['method']:13} {point['trained']:>7,} trained  accuracy at {told}")
    return points


def _students(config: Config, console: Console, teacher, train, test) -> dict[str, Any]:
    """One small network, from the same initial weights: alone on few labels, distilled without any, alone on all."""
    few = [k_shot(train["label"], FEW, config.seed + i) for i in range(config.seeds)]
    every = [np.arange(len(train["label"]))] * config.seeds
    ways = {
        f"student, {FEW} labels a class": (0.0, few),
        "student, distilled, no labels": (1.0, every),
        "student, all labels": (0.0, every),
    }
    found, table = [], []
    for name, (alpha, rows) in ways.items():
        trees = _student_trees(config, teacher, train, rows, alpha)
        guesses = [np.asarray(STUDENT.apply({"params": tree}, test["image"])).argmax(-1) for tree in trees]
        found.append(np.array([(guess == test["label"]).mean() for guess in guesses]))
        row = _row(name, STUDENT, trees[0], test, _size(trees[0])) | {"accuracy": float(found[-1].mean())}
        table.append(row)
        console.print(f"{name:29} accuracy {row['accuracy']:.4f}, mean of {config.seeds} seeds")
    gain = t_interval(found[1] - found[0])
    told = f"95% interval [{gain.low:+.4f}, {gain.high:+.4f}], paired by seed"
    console.print(f"distilled less alone on {FEW} labels a class: {gain.value:+.4f}, {told}")
    return {"rows": table, "gain": {"accuracy": gain.value, "low": gain.low, "high": gain.high}}


def _student_trees(config: Config, teacher, train, rows, alpha: float) -> list[Any]:
    """The trained student of each seed; alpha 0 learns from labels, 1 from the teacher."""
    transform, steps = full(where="student/.*"), 6 * config.steps
    optimizer = Optimizer("adamw", lr=3e-3, schedule="cosine", steps=steps).build()
    keys = jax.random.split(jax.random.key(config.seed + 1), config.seeds)

    def params_of(key):
        return {"teacher": teacher, "student": STUDENT.init(key, jnp.zeros((1, 8, 8, 1)))["params"]}

    start = init_seeds(transform, optimizer, keys, params_of, {})
    base = start[0]
    batches = seed_batches(train, rows, 64, steps, config.seed)
    objective = distill(TEACHER, STUDENT, alpha=alpha, temperature=2.0)
    states, _ = fit_seeds(objective, transform, optimizer, start, batches)
    every = [jax.tree.map(lambda leaf, i=i: leaf[i], states.split) for i in range(config.seeds)]
    return [transform.apply(split._replace(params=base))["student"] for split in every]


def _compress(config: Config, dense, train, test) -> dict[str, tuple[Any, int]]:
    """name -> (parameters, number of trained ones)."""
    uses = usage(_model_fn(TEACHER), dense, jnp.zeros((1, 8, 8, 1)))
    key = jax.random.key(config.seed)
    ways = {
        "pruned 80%": (chain(prune(0.8), full()), 0.25),
        "int8": (quantize("int8"), 0.0),
        "int4": (quantize("int4", group=32), 0.0),
        "2:4": (chain(prune(pattern="2:4"), full()), 0.25),
        "LoRA over int4 over 2:4": (chain(prune(pattern="2:4"), quantize("int4", group=32), lora(rank=4)), 0.25),
    }
    result = {}
    for name, (transform, share) in ways.items():
        if share:
            folder = name.replace(" ", "_").replace(":", "_").replace("%", "")
            split = _train(config, folder, TEACHER, transform, dense, train, test, share, lr=1e-3).split
        else:
            split = transform.init(key, dense, uses)
        result[name] = (transform.apply(split), _size(split.train))
    return result


def _row(name: str, model: nn.Module, params, test, trained: int) -> dict[str, Any]:
    loader = Loader(test, 256, shuffle=False, remainder="pad")
    accuracy = float((predict(_model_fn(model), params, loader).argmax(-1) == test["label"]).mean())
    compiled = jax.jit(lift(_model_fn(model))).lower(params, jnp.zeros((1, 8, 8, 1))).compile()
    flops = int((compiled.cost_analysis() or {})["flops"])
    return {"model": name, "accuracy": accuracy, "trained": trained, "bytes": packed_bytes(params), "FLOPs": flops}


def _size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _digest(params) -> str:
    """SHA-256 of all parameters' bits."""
    total = hashlib.sha256()
    for path, leaf in paths(params).items():
        total.update(path.encode() + np.asarray(leaf).tobytes())
    return total.hexdigest()


def _export(config: Config, params, test) -> dict[str, Any]:
    path = Path(config.workdir) / "model.jaxexport"
    x = test["image"][:64]
    size = export(_model_fn(TEACHER), params, jax.ShapeDtypeStruct(x.shape, x.dtype), path)
    here = np.asarray(jax.jit(lift(_model_fn(TEACHER)))(params, x))
    there = run_in_fresh_process(path, x)
    return {"bytes": size, "same bits": bool(np.array_equal(here, there)), "difference": float(abs(here - there).max())}


def _report(config: Config, results, histories: dict[str, Fitted], dense, test) -> Path:
    loader = Loader(test, 256, shuffle=False, remainder="pad")
    guess = predict(_model_fn(TEACHER), dense, loader).argmax(-1)
    shown = np.concatenate([np.flatnonzero(guess != test["label"])[:4], np.flatnonzero(guess == test["label"])[:4]])
    x = jnp.asarray(test["image"][shown])
    slope = jax.grad(lambda x: _model_fn(TEACHER)(dense, x).max(-1).sum())(x)
    true, taken = test["label"][shown], guess[shown]
    names = [f"{y} → {z}" if y != z else str(y) for y, z in zip(true, taken, strict=True)]
    curves = {
        name: [{metric: v for metric, v in line.items() if metric not in TIMES} for line in fitted.history]
        for name, fitted in histories.items()
    }
    gain, table = results["students"]["gain"], results["table"]
    report = Report("jaxbig quickstart: a model's whole life on handwritten digits")
    report.text(
        f"Seed {config.seed}; 1,797 digits of 8x8 pixels, 30% of each class held out. Bytes are those that the "
        "parameters take in a file: pruned ones as kept entries and a bit of mask each, 4-bit ones two to a byte. "
        "FLOPs are the compiled program's for one image."
    )
    report.table(table, "Digits 0-9, test accuracy")
    sizes = plots.accuracy_against_bytes([{"name": row["model"], **row} for row in table])
    report.figure(sizes, "Accuracy against bytes")
    report.section("Learning curves").figure(plots.learning_curves(curves), "Training and validation")
    report.section("Transfer from digits 0-4 to 5-9")
    labels = plots.labels_curve(results["labels"])
    report.figure(labels, f"Mean of {config.seeds} seeds with 95% intervals")
    report.section("Distillation").text(
        f"The student distilled from the teacher without labels, less the same student on {FEW} labels a class: "
        f"{100 * gain['accuracy']:+.2f} points of accuracy; 95% interval {100 * gain['low']:+.2f} to "
        f"{100 * gain['high']:+.2f}, paired over {config.seeds} seeds. Rows of the students are means over the seeds."
    )
    matrix = confusion(test["label"], guess, 10)
    report.section("The teacher").figure(pictures.confusion(matrix, list("0123456789")), "Confusion")
    report.figure(pictures.filters(dense["conv_0"]["kernel"]), "Filters of the first convolution")
    maps = np.asarray(slope[..., 0])
    report.figure(
        pictures.saliency(np.asarray(x), maps, names), "True digit (→ what it was taken for), and the gradient"
    )
    for name, figure in {"bytes": sizes, "labels": labels}.items():
        figure.savefig(Path(config.workdir) / f"{name}.png", dpi=120, facecolor="white", bbox_inches="tight")
    return report.save(Path(config.workdir) / "report.html")

"""CIFAR-10 with a residual network: what augmentation is worth at equal epochs.

Data: one of
  --data.dir DIR    the binary version, https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz, unpacked; or train.npz
                    and test.npz of packed JPEGs (`jaxbig.data.PackedImages`)
  --data.name cifar10 [--data.download]   by TensorFlow Datasets
Command: jaxbig run experiments/vision/cifar_resnet.py --data.dir data/cifar10 --record
Time: 260 s, jax 0.12, on 2 cores that other programs kept busy.
Result, measured by that command on 19,000 JPEGs (1,000 more held out; 5,000 to test): 76,586 parameters, 15 epochs,

  recipe       training   validation   test    95%              gain on plain
  plain        0.956      0.665        0.664   0.650 to 0.676
  crop_flip    0.706      0.700        0.701   0.688 to 0.714   +0.038 (+0.026 to +0.050)
  mixup        0.642      0.675        0.684   0.671 to 0.696   +0.020 (+0.007 to +0.033)

The large form, not measured here (ResNet-18 on all 50,000 images, several accelerators):
  --depth 18 --width 1 --pack 1 --epochs 200 --batch-size 512 --lr 0.4 --recipes mixup --bf16 --mesh --data.name cifar10
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxbig import atomic, full, pictures, plots
from jaxbig.best import variables
from jaxbig.data import Loader, Mapped, PackedImages, cifar, compose, moments, normalise, select, split_fraction
from jaxbig.data.augment_image import Crop, Cutout, Flip, Pack
from jaxbig.data.augment_mix import Mixup
from jaxbig.data.cifar import CIFAR10_CLASSES
from jaxbig.data.tfds import tfds_source
from jaxbig.errors import UsageError
from jaxbig.evaluate import predict
from jaxbig.gallery import gallery
from jaxbig.gradient import Accumulate
from jaxbig.metrics import confusion
from jaxbig.models import resnet
from jaxbig.objective import classify, computed_in
from jaxbig.optim import Optimizer
from jaxbig.record import record
from jaxbig.report import Report, terminal_table
from jaxbig.significance import bootstrap, bootstrap_difference
from jaxbig.train import Run, Task, fit

RECORDS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "cifar_resnet.jsonl"
MOVED = (Crop(4, "reflect"), Flip())
RECIPES: dict[str, tuple] = {
    "plain": (),
    "crop_flip": MOVED,
    "cutout": (*MOVED, Cutout(8)),
    "mixup": (*MOVED, Mixup(10, alpha=0.2)),
}


@dataclasses.dataclass(frozen=True)
class Data:
    dir: str | None = None
    """Folder of the binary version or of packed JPEGs; with `name` that of prepared sets."""
    name: str | None = None
    """Name of a set of TensorFlow Datasets, such as cifar10."""
    download: bool = False
    """Download and prepare that set if it is not there."""


@dataclasses.dataclass(frozen=True)
class Config:
    data: Data = dataclasses.field(default_factory=Data)
    """The images."""
    workdir: str = "runs/cifar_resnet"
    """Folder of checkpoints, results.json and report.html."""
    recipes: tuple[str, ...] = ("plain", "crop_flip", "mixup")
    """Augmentations to compare: plain, crop_flip, cutout, mixup (the last two crop and flip too)."""
    epochs: int = 15
    """Of each recipe."""
    seed: int = 0
    """Of initialisation, order, augmentation and the validation images."""
    batch_size: int = 128
    """Images a step."""
    depth: int = 8
    """Of the network: 6 n + 2 (8, 20, 56, ...), 18, 34, 50, ..."""
    width: float = 1.0
    """Factor on its channels, 16 (64 of 18, 34, ...) in the first stage."""
    pack: int = 2
    """Side of the squares of pixels that become one pixel of more channels, for speed; 1: the images as they are."""
    lr: float = 0.1
    """Peak learning rate of SGD with Nesterov's momentum."""
    weight_decay: float = 5e-4
    """L2 penalty on the kernels."""
    validation: float = 0.05
    """Share of the training images that are held out; the best recipe is chosen by them."""
    bf16: bool = False
    """Compute in bfloat16."""
    accumulate: int = 1
    """Parts of a batch whose gradients are added up; slow on a CPU."""
    mesh: bool = False
    """Split batches over all devices."""
    resume: bool = False
    """Go on in a working folder where an earlier run was stopped; it ends in the same bits."""
    record: bool = False
    """Add the result to benchmarks/results/cifar_resnet.jsonl."""


def main(config: Config) -> None:
    if unknown := [name for name in config.recipes if name not in RECIPES]:
        raise UsageError(f"--recipes {unknown[0]}: unknown; there are {', '.join(RECIPES)}")
    console = Console()
    images, test = arrays(config.data, "train"), arrays(config.data, "test")
    first, second = split_fraction(images["label"], config.validation, config.seed)
    parts = {"train": select(images, first), "val": select(images, second), "test": test}
    by = moments(parts["train"], ["image"])
    sources = {name: normalise(part, by) for name, part in parts.items()}
    model = resnet(config.depth, "cifar", config.width, num_classes=10)
    runs = {}
    for name in config.recipes:
        console.rule(name)
        runs[name] = train(config, model, sources, name)
    guesses = {name: guess(config, model, trained, sources["test"]) for name, (_, trained) in runs.items()}
    table = compare(runs, guesses, test["label"])
    best = max(table, key=lambda row: row["validation"])["recipe"]
    classes = per_class(confusion(test["label"], guesses[best], 10))
    count = {name: len(part["label"]) for name, part in parts.items()}
    results = {"table": table, "best by validation": best, "classes": classes, "images": count}
    atomic.write(Path(config.workdir) / "results.json", json.dumps(results, indent=1) + "\n")
    written = report(config, runs, guesses[best], test, results)
    console.print(terminal_table(table, f"CIFAR-10, {count['test']:,} test images, {config.epochs} epochs"))
    console.print(terminal_table(classes, f"{best}: per class"))
    seconds = round(sum(row["seconds"] for row in table), 1)
    console.print(f"{seconds} s of training; report: {written}")
    if config.record:
        settings = {
            k: v for k, v in dataclasses.asdict(config).items() if k not in ("data", "workdir", "record", "resume")
        }
        record(RECORDS, {"settings": settings, "seconds": seconds, **results})


def arrays(data: Data, split: str) -> dict[str, np.ndarray]:
    """All images of a split, in memory."""
    if data.name:
        source = tfds_source(data.name, split, data.dir, data.download)
    elif data.dir is None:
        raise UsageError("no data: give --data.dir with CIFAR-10's binary version, or --data.name cifar10")
    elif (packed := Path(data.dir) / f"{split}.npz").exists():
        source = PackedImages(packed)
    else:
        return cifar(data.dir, split)
    found = source.batch(np.arange(len(source)))
    return {"image": found["image"], "label": found["label"].astype(np.int32)}


def train(config: Config, model, sources, recipe: str) -> tuple[list[dict[str, Any]], Any]:
    """One recipe's history, and its variables after the last epoch."""
    augment = compose(*RECIPES[recipe], Pack(config.pack))
    loader = Loader(sources["train"], config.batch_size, config.seed, augment=augment, threads=1)
    steps = config.epochs * loader.steps
    optimizer = Optimizer(
        "sgd", config.lr, "cosine", steps, warmup=min(loader.steps, steps // 4), weight_decay=config.weight_decay,
        momentum=0.9, nesterov=True, decay_rules=[(".*(scale|bias)", 0)],
    )  # fmt: skip
    objective = classify(model)
    objective = computed_in(objective, "bfloat16") if config.bf16 else objective
    held_out = classify(model, train=False), in_order(config, sources["val"])
    ways = (Accumulate(config.accumulate),) if config.accumulate > 1 else ()
    task = Task(objective, full(), optimizer.build(), loader, held_out, ways)
    key, side = jax.random.key(config.seed), 32 // config.pack
    first = jax.jit(model.init)(key, jnp.zeros((1, side, side, 3 * config.pack**2)))
    mesh = None
    if config.mesh:
        mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    settings = dataclasses.asdict(config) | {"resume": None, "recipe": recipe}
    run = Run(config.epochs, Path(config.workdir) / recipe, config.resume, keep_last=1, mesh=mesh, config=settings)
    split = full().init(key, first.pop("params"), {})
    fitted = fit(task, split, key, run, first)
    return fitted.history, variables(task, fitted)


def in_order(config: Config, source) -> Loader:
    return Loader(Mapped(source, Pack(config.pack)), 256, shuffle=False, remainder="pad")


def guess(config: Config, model, trained, source) -> np.ndarray:
    return predict(model.apply, trained, in_order(config, source)).argmax(axis=-1)


def compare(runs, guesses, labels) -> list[dict[str, Any]]:
    """A row a recipe; intervals are over the test images, the difference's paired."""
    rows, reference = [], next(iter(runs))
    for name, (history, _) in runs.items():
        right, other = ((guesses[which] == labels).astype(float) for which in (name, reference))
        accuracy = bootstrap(np.mean, right, vectorized=True)
        row = {"recipe": name, "training": history[-1]["accuracy"], "validation": history[-1]["val_accuracy"]}
        row |= {"test": accuracy.value, "95% interval": f"{accuracy.low:.3f} to {accuracy.high:.3f}"}
        if name != reference:
            gain = bootstrap_difference(np.mean, [right], [other], vectorized=True)
            row[f"gain on {reference}"] = f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"
        rows.append(row | {"seconds": round(sum(line["seconds"] for line in history), 1)})
    return rows


def per_class(matrix: np.ndarray) -> list[dict[str, Any]]:
    hits, true, taken = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    shares = {"precision": hits / np.maximum(taken, 1), "recall": hits / np.maximum(true, 1)}
    shares["f1"] = 2 * hits / np.maximum(true + taken, 1)
    rivals = (matrix * (1 - np.eye(10))).argmax(axis=1)
    rows = []
    for i, name in enumerate(CIFAR10_CLASSES):
        row = {"class": name} | {measure: float(values[i]) for measure, values in shares.items()}
        rows.append(row | {"most often taken for": CIFAR10_CLASSES[rivals[i]]})
    return rows


def report(config: Config, runs, taken: np.ndarray, test, results) -> Path:
    page = Report("CIFAR-10 with a residual network: what augmentation is worth")
    count = results["images"]
    page.text(
        f"ResNet-{config.depth}, {config.width} times as wide; {count['train']:,} images to train on, {count['val']:,} "
        f"to validate, {count['test']:,} to test. Each recipe has the same {config.epochs} epochs, first weights and "
        f"order (seed {config.seed}); mixup and cutout crop and flip too. Training accuracy is of augmented images, of "
        "mixed ones against the larger share. Intervals are over the test images, so they say nothing of other seeds."
    )
    page.table(results["table"], "Recipes")
    curves = {name: history for name, (history, _) in runs.items()}
    page.section("Training").figure(plots.learning_curves(curves), "Training dashed, validation solid")
    page.section(f"The best by validation: {results['best by validation']}").table(results["classes"], "Test images")
    page.figure(pictures.confusion(confusion(test["label"], taken, 10), CIFAR10_CLASSES, rates=True), "Confusion")
    wrong = np.flatnonzero(taken != test["label"])
    wrong = wrong[np.linspace(0, len(wrong) - 1, min(25, len(wrong))).astype(int)]
    if len(wrong):
        names = {"label": CIFAR10_CLASSES, "taken": CIFAR10_CLASSES}
        shown = {"image": test["image"][wrong], "label": test["label"][wrong], "taken": taken[wrong]}
        page.section("Mistakes").figure(gallery(shown, names), "What it is, and what it was taken for")
    return page.save(Path(config.workdir) / "report.html")

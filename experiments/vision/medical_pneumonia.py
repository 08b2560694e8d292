"""Pneumonia in chest X-rays of 28 x 28 pixels: a small residual network, three seeds, the official split.

Claim: a network of 173,714 parameters, trained on images that are moved, turned, zoomed, cut out of and exposed anew,
with classes that count the same, is above the ResNet-18 of MedMNIST's benchmark (test AUC 0.944, accuracy 0.854).

Data: PneumoniaMNIST of MedMNIST v2 (4,708 / 524 / 624 images of children; arXiv:2110.14795), one file of 4 MB:
  https://zenodo.org/records/10519652, pneumoniamnist.npz
Command: jaxbig run experiments/vision/medical_pneumonia.py --data.dir data/pneumoniamnist.npz --record
Time: 321 s of training for the three seeds, jax 0.10.2, on 2 cores that other programs kept busy (load 11).
Result, mean of 3 seeds, 95% interval over the images (bootstrap); those over the seeds stand in results.json:

  |            | threshold | AUC                   | accuracy              | sensitivity | specificity |
  | test       | 0.5       | 0.982 (0.968 - 0.989) | 0.938 (0.919 - 0.955) | 0.944       | 0.927       |
  | test       | by val    |                       | 0.932 (0.913 - 0.949) | 0.984       | 0.846       |
  | validation | 0.5       | 0.997 (0.994 - 0.999) | 0.942 (0.920 - 0.958) | 0.922       | 1.000       |
  | validation | by val    |                       | 0.971 (0.956 - 0.982) | 0.967       | 0.983       |

Of each seed the checkpoint with the best validation AUC is taken; the test images were looked at once, for this table.
In the copy used, put together from two public ones, none of them is a copy of a training image, but eight of the
validation images are; a threshold chosen by those does not help on the test images (benchmarks/LOG.md).
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from sklearn.metrics import roc_auc_score

from jaxbig import atomic, diagnostics, full, pictures, plots
from jaxbig.averaging import view
from jaxbig.best import at_best, variables
from jaxbig.data import Loader, Mapped, class_weights, compose, medmnist
from jaxbig.data.augment_affine import Affine
from jaxbig.data.augment_image import Cutout, Jitter, Pack
from jaxbig.evaluate import predict
from jaxbig.gallery import gallery
from jaxbig.job import Validation
from jaxbig.metrics import classification_report, confusion, reliability, roc_curve, youden_threshold
from jaxbig.models import ResNet
from jaxbig.objective import classify
from jaxbig.optim import Optimizer
from jaxbig.record import record
from jaxbig.report import Report, terminal_table
from jaxbig.significance import bootstrap, t_interval
from jaxbig.stopping import patience
from jaxbig.train import Run, Task, fit

CLASSES = ("normal", "pneumonia")
BEST = "max:val_auc"
RECORDS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "medical_pneumonia.jsonl"


@dataclasses.dataclass(frozen=True)
class Data:
    dir: str = "data/pneumoniamnist.npz"
    """pneumoniamnist.npz, or the folder that holds it."""


@dataclasses.dataclass(frozen=True)
class Config:
    data: Data = dataclasses.field(default_factory=Data)
    """The images."""
    workdir: str = "runs/medical_pneumonia"
    """Folder of checkpoints, results.json and report.html."""
    epochs: int = 20
    """The most epochs of each seed; the learning rate falls to 0 over them."""
    patience: int = 10
    """Epochs without a better validation AUC after which a seed stops."""
    seeds: int = 3
    """Number of runs; run i differs in its initialisation, order and augmentation."""
    seed: int = 0
    """Of the first run."""
    batch_size: int = 64
    """Images a step."""
    blocks: tuple[int, ...] = (1, 1, 1)
    """Residual blocks of each stage."""
    channels: int = 24
    """Of the first stage; each has twice the channels of the one before."""
    lr: float = 2e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.05
    """Of AdamW."""
    smoothing: float = 0.1
    """Label smoothing."""
    ema: float = 0.0
    """Decay of an average of the weights that is evaluated in place of them, such as 0.99; 0: none."""
    resume: bool = False
    """Go on in a working folder where an earlier run was stopped; it ends in the same bits."""
    record: bool = False
    """Add the result to benchmarks/results/medical_pneumonia.jsonl."""


def main(config: Config) -> None:
    console = Console()
    path = Path(config.data.dir)
    path = path / "pneumoniamnist.npz" if path.is_dir() else path
    data = {split: medmnist(path, split) for split in ("train", "val", "test")}
    model = ResNet(num_classes=2, blocks=config.blocks, channels=config.channels, form="cifar")
    runs = []
    for i in range(config.seeds):
        console.rule(f"seed {config.seed + i}")
        runs.append(train(config, model, data, config.seed + i))
    logits = {part: np.stack([logits_of(model, own, data[part]) for _, own in runs]) for part in ("val", "test")}
    rows, thresholds = table(data, logits)
    seconds = round(sum(line["seconds"] for history, _ in runs for line in history), 1)
    results = {"table": rows, "thresholds": thresholds}
    atomic.write(Path(config.workdir) / "results.json", json.dumps(results, indent=1) + "\n")
    shown = [{column: cell for column, cell in row.items() if column != "values"} for row in rows]
    written = report(config, model, runs, data, logits, shown)
    console.print(terminal_table(shown, "each seed and their mean logits; 95% intervals over images and seeds"))
    console.print(f"{seconds} s of training; report: {written}")
    if config.record:
        settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("data", "workdir", "record")}
        record(RECORDS, {"settings": settings, "seconds": seconds, **results})


def scaled(arrays) -> Mapped:
    return Mapped(arrays, lambda batch: batch | {"image": batch["image"].astype(np.float32) / 255})


def train(config: Config, model, data, seed: int):
    """One seed's history, and its variables at the epoch with the best validation AUC."""
    # No mirroring: the heart is on one side. Contrast changes, because how an image was exposed must not matter.
    grey = float(data["train"]["image"].mean()) / 255
    augment = compose(
        Affine(rotate=10, shift=0.1, zoom=0.15), Jitter(brightness=0.2, contrast=0.2), Cutout(8, grey), Pack()
    )
    loader = Loader(scaled(data["train"]), config.batch_size, seed, augment=augment, threads=1)
    steps = config.epochs * loader.steps
    optimizer = Optimizer(
        "adamw", config.lr, "cosine", steps, warmup=min(loader.steps, steps // 4), weight_decay=config.weight_decay,
        decay_rules=[(".*(scale|bias)", 0)], ema=config.ema or None,
    )  # fmt: skip
    weights = class_weights(data["train"]["label"], 2).tolist()
    objective = classify(model, smoothing=config.smoothing, class_weights=weights)
    held_out = Validation(
        classify(model, train=False),
        Loader(Mapped(scaled(data["val"]), Pack()), 256, shuffle=False, remainder="pad"),
        lambda found: classification_report(found["label"], found["logits"], only=["auc", "balanced_accuracy"]),
    )
    averages: dict[str, Any] = {"view": view} if config.ema else {}
    task = Task(objective, full(), optimizer.build(), loader, held_out, **averages)
    key = jax.random.key(seed)
    first = jax.jit(model.init)(key, jnp.zeros((1, 14, 14, 4)))
    settings = dataclasses.asdict(config) | {"resume": None, "seed": seed}
    run = Run(
        config.epochs, Path(config.workdir) / f"seed_{seed}", config.resume, keep_last=1, keep_best=BEST,
        stop_when=patience(BEST, config.patience), config=settings,
    )  # fmt: skip
    split = full().init(key, first.pop("params"), {})
    fitted = at_best(task, fit(task, split, key, run, first), run)
    return fitted.history, variables(task, fitted)


def logits_of(model, trained, arrays) -> np.ndarray:
    loader = Loader(Mapped(scaled(arrays), Pack()), 256, shuffle=False, remainder="pad")
    return predict(model.apply, trained, loader)


def scores(logits: np.ndarray) -> np.ndarray:
    """log p / (1 - p) of pneumonia."""
    return logits[..., 1] - logits[..., 0]


def table(data, logits):
    """A row a metric, with the values of all seeds; and the thresholds that validation gives."""
    groups = {"each": logits}
    if len(logits["val"]) > 1:
        groups["together"] = {split: own.mean(axis=0, keepdims=True) for split, own in logits.items()}
    rows, cuts = [], {}
    for who, group in groups.items():
        cuts[who] = np.array([youden_threshold(data["val"]["label"], scores(own)) for own in group["val"]])
        for split, own in group.items():
            y, z = data[split]["label"], scores(own)
            found = {("auc", "any"): (np.array([roc_auc_score(y, one) for one in z]), interval_of_auc(y, z))}
            parts = {"accuracy": y >= 0, "sensitivity": y == 1, "specificity": y == 0}
            for threshold, limits in (("0.5", 0 * cuts[who]), ("val", cuts[who])):
                right = ((z >= limits[:, None]) == (y == 1)).astype(float)
                for metric, part in parts.items():
                    interval = bootstrap(np.mean, right[:, part].mean(axis=0), vectorized=True)
                    found[metric, threshold] = right[:, part].mean(axis=1), interval
            for (metric, threshold), (values, (value, low, high)) in found.items():
                _, first, last = t_interval(values)
                row = {"network": who, "split": split, "metric": metric, "threshold": threshold, "mean": value}
                row |= {"images": f"{low:.3f}–{high:.3f}", "values": values.tolist()}
                rows.append(row | ({"seeds": f"{first:.3f}–{last:.3f}"} if len(z) > 1 else {}))
    return rows, {who: (1 / (1 + np.exp(-own))).tolist() for who, own in cuts.items()}


def interval_of_auc(labels: np.ndarray, z: np.ndarray):
    """Over images, of the mean over seeds; from the pairs, which is quicker than ranking each resample anew."""
    positive, negative = z[:, labels == 1, None], z[:, None, labels == 0]
    better = ((positive > negative) + 0.5 * (positive == negative)).mean(axis=0)
    place = np.where(labels == 1, np.cumsum(labels == 1), np.cumsum(labels == 0)) - 1

    def area(rows):
        chosen = labels[rows] == 1
        return better[np.ix_(place[rows[chosen]], place[rows[~chosen]])].mean()

    return bootstrap(area, np.arange(len(labels)), resamples=2000)


def report(config: Config, model, runs, data, logits, shown) -> Path:
    names = [f"seed {config.seed + i}" for i in range(len(runs))]
    labels, z = data["test"]["label"], logits["test"]
    page = Report("Pneumonia in chest X-rays of 28 x 28 pixels")
    sizes = ", ".join(f"{len(part['label']):,} {split}" for split, part in data.items())
    page.text(
        f"PneumoniaMNIST's own split: {sizes}. {len(runs)} seeds, and the mean of their logits. 95% intervals are "
        "over the images (bootstrap) and over the seeds (t). Checkpoints and the second threshold, with the most "
        "sensitivity + specificity, were chosen on the validation images; nothing was chosen on the test images."
    )
    page.table(shown, "Validation and test")
    curves = {name: history for name, (history, _) in zip(names, runs, strict=True)}
    page.section("Training").figure(plots.learning_curves(curves), "Training dashed, validation solid")
    page.section("Test images")
    by_seed = dict(zip(names, z, strict=True))
    page.figure(diagnostics.roc({name: roc_curve(labels, own) for name, own in by_seed.items()}), "ROC")
    curves = {name: reliability(labels, own, bins=10) for name, own in by_seed.items()}
    page.figure(diagnostics.reliability(curves), "Calibration; in training classes were weighted and labels smoothed")
    guess = z[0].argmax(axis=-1)
    page.figure(pictures.confusion(confusion(labels, guess, 2), CLASSES), f"Confusion of {names[0]}, threshold 0.5")
    page.section("Mistakes").text("The 16 test images that the first seed is most wrong about.")
    margin = np.where(labels == 1, scores(z[0]), -scores(z[0]))
    worst = np.argsort(margin)[: min(16, int((margin < 0).sum()))]
    if len(worst):
        page.figure(gallery({"image": data["test"]["image"][worst], "label": labels[worst]}, {"label": CLASSES}),
                    "What each really is")  # fmt: skip
    page.section("Where the network looks").text(
        "The gradient of the log-odds of pneumonia by the pixels, of the first seed, mean of 32 copies with noise."
    )
    kinds = [(true, taken) for true in (0, 1) for taken in (0, 1)]
    few = np.concatenate([np.flatnonzero((labels == true) & (guess == taken))[:1] for true, taken in kinds])
    said = [f"{CLASSES[y]}\n→ {CLASSES[t]}" for y, t in zip(labels[few], guess[few], strict=True)]
    page.figure(
        pictures.saliency(data["test"]["image"][few], slopes(model, runs[0][1], data["test"]["image"][few]), said)
    )
    return page.save(Path(config.workdir) / "report.html")


def slopes(model, trained, images: np.ndarray) -> np.ndarray:
    """Smilkov et al. (2017), "SmoothGrad", arXiv:1706.03825: a single gradient is mostly noise."""
    log_odds = lambda x: scores(model.apply(trained, Pack()({"image": x})["image"])).sum()  # noqa: E731
    noise = np.random.default_rng(0).normal(0, 0.1, (32, *images.shape)).astype(np.float32)
    gradient = jax.jit(jax.grad(log_odds))
    return np.mean([gradient(images.astype(np.float32) / 255 + one) for one in noise], axis=0)[..., 0]

"""Fashion-MNIST with a small network: mirrored and shifted images, dropout, averaged weights; three seeds.

Question: how many clothes does a network of two convolutions tell apart, in minutes on two cores?

Data: apt install dataset-fashion-mnist (Debian, Ubuntu), or the four IDX files in any folder: --data.dir
Command: jaxbig run experiments/vision/fashion.py --record
Time: 222 to 438 s a seed, jax 0.12, on 2 cores that other programs kept busy (1,093 s in all).
Result: of the 10,000 test images, after 10 epochs, 91.5% (seeds 0 to 2: 91.4, 91.3, 91.8); the three together 91.9%.
"""

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from jaxbig import full
from jaxbig.averaging import Average
from jaxbig.classifier_page import classifier_page, rows_of, tell
from jaxbig.data import compose, fashion_mnist
from jaxbig.data.augment_image import Crop, Flip
from jaxbig.data.idx import FASHION_CLASSES, FASHION_FOLDER
from jaxbig.models import CNN
from jaxbig.optim import Optimizer
from jaxbig.recipe import Recipe, in_parts, train_seeds
from jaxbig.record import record
from jaxbig.train import Run

RECORDS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "fashion.jsonl"


@dataclasses.dataclass(frozen=True)
class Data:
    dir: str = FASHION_FOLDER
    """Folder of the four IDX files."""


@dataclasses.dataclass(frozen=True)
class Config:
    data: Data = dataclasses.field(default_factory=Data)
    """The images."""
    workdir: str = "runs/fashion"
    """Folder of checkpoints, results.json and report.html."""
    epochs: int = 10
    """Epochs of each seed."""
    batch_size: int = 128
    """Images a step."""
    lr: float = 2e-3
    """Peak learning rate of AdamW."""
    dropout: float = 0.4
    """Before the head."""
    seeds: int = 3
    """Number of runs; run i differs in its initialisation, order and augmentation."""
    seed: int = 0
    """Of the first run."""
    threads: int = 1
    """Threads that augment the next batches."""
    resume: bool = False
    """Go on in a working folder where an earlier run was stopped; it ends in the same bits."""
    record: bool = False
    """Add the result to benchmarks/results/fashion.jsonl."""


def main(config: Config) -> None:
    console, since = Console(), time.perf_counter()
    train, test = load(config, "train"), load(config, "test")
    model = CNN(hidden=256, padding="SAME", dropout=config.dropout, patches=jax.default_backend() == "cpu")
    recipe = Recipe(
        model,
        full(),
        Optimizer("adamw", config.lr, "cosine", weight_decay=0.02, ema=Average(0.998, "warmup")),
        config.batch_size,
        augment=compose(Flip(), Crop(2)),
        threads=config.threads,
        ways=in_parts(config.batch_size),
    )
    settings = dataclasses.asdict(config) | dict.fromkeys(("resume", "record", "seeds", "workdir"))
    run = Run(config.epochs, config.workdir, config.resume, keep_last=1, config=settings, console=console)
    runs = train_seeds(recipe, train, test, range(config.seed, config.seed + config.seeds), run)
    rows = rows_of(runs.histories, test["label"], runs.logits_SNC)
    told = (
        f"{len(train['label']):,} images to train on, {len(test['label']):,} to test; {config.epochs} epochs. Network: "
        f"convolutions of {model.channels} channels, hidden layer of {model.hidden}, dropout {model.dropout}. "
        f"Augmentation: {recipe.augment}. The last epoch counts: nothing was chosen on the test images."
    )
    page = classifier_page(
        "Fashion-MNIST with a small network", told, runs.histories, test, runs.logits_SNC, FASHION_CLASSES
    )
    tell(page, rows, config.workdir, console)
    if config.record:
        record(RECORDS, {"table": rows, "seconds": round(time.perf_counter() - since, 1)})


def load(config: Config, split: str) -> dict[str, np.ndarray]:
    """All images of a split, float32 from 0 to 1, and their labels."""
    found = fashion_mnist(split, config.data.dir)
    return found | {"image": found["image"].astype(np.float32) / 255}

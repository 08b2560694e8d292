"""A decoder over bytes from scratch, on the source of Python's standard library or on any text.

Question: how many bits a byte does a small Llama need for text that it has not seen, beside a table of how often bytes
come and beside a general compressor (xz) that has seen the same text before?

Model: Llama's layers (Touvron et al. 2023, arXiv:2302.13971) over 256 bytes, no tokenizer. Data: by default every
module of the standard library of the Python that runs this, without its tests, which needs no data set at all; of its
files a tenth is held out, by the hash of their names. --data FILE: another text, whose last tenth is held out.

Small form: the defaults. Large form: --width 768 --layers 12 --heads 12 --length 1024 --batch-size 64 --steps 20000
--dtype bfloat16. Learning rate and sizes are first guesses, not chosen by anything yet.

Command: jaxbig run experiments/language/byte_lm.py --record
Result: not measured yet.
"""

import dataclasses
import json
import lzma
import math
import sysconfig
import time
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxbig import atomic
from jaxbig.data import Loader, windows
from jaxbig.errors import UserError
from jaxbig.evaluate import evaluate
from jaxbig.experiment import check_range, make_folder
from jaxbig.generate.loop import generate
from jaxbig.generate.sampling import sampling
from jaxbig.models import Llama
from jaxbig.objective import next_token
from jaxbig.optim import Optimizer
from jaxbig.plots import learning_curves
from jaxbig.record import record
from jaxbig.report import Report, terminal_table
from jaxbig.train import Run, Task, fit
from jaxbig.tune.full import full

RECORDS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "byte_lm.jsonl"
LIBRARY = "stdlib"
TESTS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclasses.dataclass(frozen=True)
class Config:
    data: str = LIBRARY
    """A text file; "stdlib": the source of Python's standard library."""
    workdir: str = "runs/byte_lm"
    """Folder of results.json, report.html and checkpoints."""
    width: int = 128
    """Of the model."""
    layers: int = 4
    """Of the model."""
    heads: int = 4
    """Of each layer."""
    length: int = 256
    """Bytes of a row, which are what a byte can be predicted from."""
    batch_size: int = 16
    """Rows a step."""
    steps: int = 800
    """Of training."""
    lr: float = 2e-3
    """Peak learning rate."""
    weight_decay: float = 0.1
    """Of kernels."""
    dtype: str = "float32"
    """Of the computation."""
    held_out: int = 200_000
    """The most bytes to measure on; 0: all that is held out."""
    samples: int = 3
    """Held-out texts to go on with."""
    max_tokens: int = 200
    """Bytes of each."""
    temperature: float = 0.7
    """At which they are drawn."""
    seed: int = 0
    """Of the first weights, the order and the samples."""
    resume: bool = False
    """Go on where an earlier run was stopped; it ends in the same bits."""
    record: bool = False
    """Add the result to benchmarks/results/byte_lm.jsonl."""

    def __post_init__(self):
        check_range(self, 1, math.inf, "width", "layers", "heads", "batch_size", "steps", "max_tokens")
        check_range(self, 0, math.inf, "held_out", "samples")
        check_range(self, 2, math.inf, "length")


def main(config: Config) -> None:
    make_folder(config.workdir)
    console, since = Console(), time.perf_counter()
    learn, held = texts(config)
    held = held[: config.held_out or None]
    console.print(f"{len(learn):,} bytes to learn, {len(held):,} to measure on", soft_wrap=True)
    module = model(config)
    rows = {"learn": windows(learn, config.length), "held": windows(held, config.length)}
    params = jax.jit(module.init)(jax.random.key(config.seed), jnp.zeros((1, 8), int))["params"]
    loader = Loader(rows["learn"], config.batch_size, config.seed)
    measured = next_token(module, train=False, inputs="ids", answers=None)
    validation = Loader(rows["held"], config.batch_size, shuffle=False, remainder="pad")
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    before = evaluate(measured, params, validation)
    decay = [(r".*(scale|bias|embedding)", 0.0)]
    optimizer = Optimizer(
        "adamw", config.lr, "cosine", config.steps, warmup=max(1, config.steps // 20), clip=1.0, b2=0.95,
        weight_decay=config.weight_decay, decay_rules=decay,
    )  # fmt: skip
    task = Task(
        next_token(module, inputs="ids", answers=None), full(), optimizer.build(), loader, (measured, validation)
    )
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("workdir", "resume", "record", "data")}
    run = Run(
        workdir=config.workdir, resume=config.resume, steps=config.steps, every=max(1, config.steps // 8), keep_last=1,
        log_every=10, config=settings, console=console,
    )  # fmt: skip
    done = fit(task, full().init(jax.random.key(config.seed), params, {}), jax.random.key(config.seed), run)
    tuned = full().apply(done.split)
    after = evaluate(measured, tuned, validation)
    table = [
        {"model": "untrained", "bits a byte": before["loss"] / math.log(2), "parameters": count},
        {"model": "how often bytes come", "bits a byte": unigram(learn, held), "parameters": 256},
        {"model": "xz after the text to learn", "bits a byte": compressed(learn, held), "parameters": 0},
        {"model": "decoder", "bits a byte": after["loss"] / math.log(2), "parameters": count},
    ]
    results: dict[str, Any] = {"table": table, "accuracy": after["accuracy"], "samples": sampled(config, tuned, held)}
    results |= {"bytes": {"learn": len(learn), "held out": len(held)}, "seconds": round(time.perf_counter() - since, 1)}
    atomic.write(Path(config.workdir) / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    if config.record:
        record(RECORDS, {"settings": settings | {"data": Path(config.data).name}, **results})
    console.print(terminal_table(table, "held-out text"))
    console.print(f"report: {report(config, results, done.history)}", soft_wrap=True)


def model(config: Config) -> Llama:
    return Llama(
        vocabulary=256, width=config.width, layers=config.layers, heads=config.heads, kv_heads=config.heads,
        head_width=config.width // config.heads, hidden=-(-8 * config.width // 3 // 16) * 16, tied=True,
        scan_layers=True, dtype=jnp.dtype(config.dtype),
    )  # fmt: skip


def texts(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Bytes to learn and to measure on."""
    if config.data != LIBRARY:
        try:
            whole = np.frombuffer(Path(config.data).read_bytes(), np.uint8)
        except OSError as error:
            raise UserError(f"{config.data}: cannot be read ({error.strerror}); give a text file") from error
        cut = len(whole) * 9 // 10
        return whole[:cut], whole[cut:]
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in root.rglob("*.py") if not TESTS & set(path.relative_to(root).parts))
    parts: dict[bool, list[bytes]] = {True: [], False: []}
    for path in files:
        name = path.relative_to(root).as_posix()
        parts[zlib.crc32(name.encode()) % 10 == 0].append(path.read_bytes())
    learn, held = (np.frombuffer(b"\0".join(parts[kind]), np.uint8) for kind in (False, True))
    return learn, held


def unigram(learn: np.ndarray, held: np.ndarray) -> float:
    """Bits a byte by the share that each byte has of the text to learn, every byte counted once more."""
    counts = np.bincount(learn, minlength=256) + 1
    return float(-np.log2(counts / counts.sum())[held].mean())


def compressed(learn: np.ndarray, held: np.ndarray) -> float:
    """Bits a byte that xz -9 adds for the held-out text behind the one to learn."""
    longer = lzma.compress(learn.tobytes() + held.tobytes(), preset=9 | lzma.PRESET_EXTREME)
    return 8 * (len(longer) - len(lzma.compress(learn.tobytes(), preset=9 | lzma.PRESET_EXTREME))) / len(held)


def sampled(config: Config, params: Any, held: np.ndarray) -> list[dict[str, str]]:
    """Beginnings from the held-out text, and how the model goes on."""
    starts = np.linspace(0, len(held) - config.length, config.samples, dtype=int)
    prompts = [held[start : start + min(64, config.length // 2)].tolist() for start in starts]
    if not prompts:
        return []
    found = generate(
        model(config), params, prompts, max_tokens=config.max_tokens,
        how=sampling(temperature=config.temperature), key=jax.random.key(config.seed),
    )  # fmt: skip
    pairs = zip(prompts, found, strict=True)
    return [{"text": text(prompt), "goes on": text(more)} for prompt, more in pairs]


def text(ids: list[int]) -> str:
    return bytes(ids).decode(errors="replace")


def report(config: Config, results: dict[str, Any], history: Any) -> Path:
    page = Report("A decoder over bytes, from scratch")
    name = "Python's standard library" if config.data == LIBRARY else Path(config.data).name
    page.text(
        f"{results['bytes']['learn']:,} bytes of {name} to learn, {config.steps:,} steps of {config.batch_size} rows "
        f"of {config.length} bytes; measured on {results['bytes']['held out']:,} bytes of other "
        f"{'files' if config.data == LIBRARY else 'text'}."
    )
    page.table(results["table"], "Bits a byte of held-out text")
    page.figure(learning_curves({"decoder": history}), "Training and held-out text: nats a byte, and accuracy")
    if results["samples"]:
        page.section("How it goes on").table(results["samples"], f"Drawn at temperature {config.temperature}")
    return page.save(Path(config.workdir) / "report.html")

"""A model that writes texts after it was tuned: an adapter's folder, or a run's, over the model that it began with."""

from pathlib import Path
from typing import Any

import jax

from jaxbig import checkpoint, manifest
from jaxbig.errors import UsageError, UserError
from jaxbig.fingerprint import fingerprint
from jaxbig.hub.folder import read_json
from jaxbig.hub.load import load
from jaxbig.hub.model import Model
from jaxbig.hub.peft_read import read_peft
from jaxbig.hub.text_model import TextModel, task_of, text_model, writer
from jaxbig.registry import build
from jaxbig.transform import Split, Transform
from jaxbig.tree import paths

RUN = "checkpoints"
ADAPTER = "adapter_config.json"


def open_text_model(path: str | Path, base: str | Path | None = None) -> TextModel:
    """The model that a path holds, tuned or not; which it is, the files' contents say.

    Args:
        path: what `jaxbig.hub.text_model.text_model` takes; or a folder with a PEFT adapter; or the folder of a run of
            `jaxbig.train.fit`, or of its checkpoints, of which the newest counts.
        base: the model that was tuned, Hugging Face's folder or a GGUF file; None: the one that the adapter names. Its
            tokenizer and template count.

    Returns:
        the model; nothing is merged.

    Raises:
        UsageError: there is nothing at a path; a base that is missing, or that is not wanted; a technique that is
            around the model, such as prompts.
        UserError: a damaged file, or another base than the one that was tuned, as far as that can be seen: of a run
            that trained all of the model only paths and shapes tell.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    run = path / RUN if manifest.steps(path / RUN) else path
    if (path / ADAPTER).is_file():
        model = _base(path, base or read_json(path / ADAPTER).get("base_model_name_or_path"))
        adapter = read_peft(path, model.params, model.uses, model.names)
        return _over(path, model, adapter.transform, adapter.split, "PEFT")
    if manifest.steps(run):
        return _of_run(run, base)
    if base is not None:
        raise UsageError(f"--base {base}: {path} holds no adapter and no complete checkpoint; leave it out for a model")
    return text_model(path)


def _base(path: Path, base: Any, **options: Any) -> Model:
    if not base:
        raise UsageError(f"{path}: does not say which model was tuned; give it with --base PATH")
    if not Path(base).exists():
        raise UsageError(f"{path}: the model that was tuned is not at {base}; give its folder or file with --base PATH")
    return load(base, task_of(Path(base)), **options)


def _of_run(run: Path, base: Any) -> TextModel:
    told = checkpoint.read_manifest(run).get("identity")
    if told is None:
        raise UserError(f"{run}: its checkpoints are none of `jaxbig.train.fit`, and do not say what was tuned")
    transform = build(told["transform"])
    for scanned in (False, True):
        model = _base(run, base, scan_layers=scanned)
        split = transform.init(jax.random.key(0), model.params, model.uses)
        if fingerprint(split.params) == told["base"] and _fits(run, split):
            parts = {"train": split.train, "state": split.state}
            restored = {
                name: checkpoint.restore(run, part, only=name) if jax.tree.leaves(part) else part
                for name, part in parts.items()
            }
            return _over(run, model, transform, split._replace(**restored), "run")
    raise UserError(
        f"{run}: {base} is another model than the one that was tuned, or it was loaded otherwise there (dtype, task), "
        "or prepared on another device; give that with --base PATH, or save the tuned model with `jaxbig.save`"
    )


def _fits(run: Path, split: Split) -> bool:
    """Whether what was trained has this model's paths: layers may have been scanned, or not."""
    known = manifest.read(run, manifest.find(run, None))["leaves"]
    mine = {f"train/{path}" for path in paths(split.train)}
    return mine == {record["path"] for record in known if record["path"].startswith("train/")}


def _over(path: Path, model: Model, transform: Transform, split: Split, kind: str) -> TextModel:
    if transform.wrap(split, _over) is not _over:
        raise UsageError(
            f"{path}: {transform.config['technique']} is around the model, where `jaxbig generate` does not reach; "
            "call the model through `transform.wrap` in a program"
        )
    return writer(model, transform.apply(split), kind)

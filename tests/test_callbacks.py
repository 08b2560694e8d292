"""What callbacks write: every number for TensorBoard, pictures of outputs, lines of one's own."""

import io
import struct

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from jaxbig.callbacks import draw, lines, tensorboard
from jaxbig.data import Loader
from jaxbig.errors import UserError
from jaxbig.objective import classify
from jaxbig.train import Run, Task, Validation, fit
from jaxbig.tune.full import full

DATA = {"image": np.eye(6, dtype=np.float32), "label": np.arange(6) % 3}
MODEL = nn.Dense(3)


def run(**options):
    split = full().init(jax.random.key(0), {"kernel": jnp.zeros((6, 3)), "bias": jnp.zeros(3)}, {})
    held_out = Validation(classify(MODEL, train=False), Loader(DATA, 4, shuffle=False, remainder="pad"), outputs=True)
    task = Task(classify(MODEL), full(), optax.sgd(1.0), Loader(DATA, 2), held_out)
    return fit(task, split, jax.random.key(0), Run(**({"epochs": 2, "quiet": True} | options)))


def events(folder):
    """(step, tag, value) of all event files, by the format: length, its CRC, data, its CRC."""
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            data = data[16 + size :]
    return found


def test_tensorboard_is_given_every_number(tmp_path):
    fitted = run(workdir=tmp_path, callbacks=[tensorboard()])
    written = {(step, tag): value for step, tag, value in events(tmp_path / "tensorboard")}
    for line in fitted.history:
        assert written[line["step"], "training/loss"] == pytest.approx(line["loss"], rel=1e-6)
        assert written[line["step"], "validation/accuracy"] == pytest.approx(line["val_accuracy"])
        assert written[line["step"], "time/data_wait"] == pytest.approx(line["data_wait"])
    assert len(written) == sum(len(line) - 1 for line in fitted.history)


def test_pictures_are_drawn_of_the_outputs(tmp_path):
    def figure_of(moment):
        assert moment.outputs["logits"].shape == (6, 3)
        assert moment.params()["kernel"].shape == (6, 3)
        figure = Figure(figsize=(2, 1))
        figure.subplots().imshow(moment.outputs["logits"])
        return figure

    run(workdir=tmp_path, epochs=4, callbacks=[draw(figure_of, every=2)])
    pictures = sorted((tmp_path / "predictions").iterdir())
    assert [path.name for path in pictures] == ["step_00000006.png", "step_00000012.png"]
    with Image.open(pictures[0]) as picture:
        assert picture.size == (300, 150)


def test_a_line_of_one_s_own():
    console = Console(file=io.StringIO(), width=80)
    run(callbacks=[lines(lambda line: f"perplexity {np.exp(line['val_loss']):.3f}")], quiet=False, console=console)
    assert console.file.getvalue().count("perplexity ") == 2


@pytest.mark.parametrize("callback", [tensorboard(), draw(lambda moment: Figure())])
def test_without_a_folder_they_say_so(callback):
    with pytest.raises(UserError, match="no working folder to write to; give the run a workdir"):
        run(epochs=1, callbacks=[callback])


def test_every_is_at_least_one():
    with pytest.raises(UserError, match="every=0"):
        draw(lambda moment: Figure(), every=0)

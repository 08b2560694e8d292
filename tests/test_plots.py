"""Plots show the numbers they are given."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from jaxbig import pictures, plots


def _picture(axes: Axes) -> np.ndarray:
    return np.asarray(axes.get_images()[0].get_array(), dtype=float)


def _legend(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_learning_curves_pair_splits_in_one_panel():
    rows = [
        {"epoch": 1, "train_loss": 2.0, "eval/loss": 2.5, "eval/accuracy": 0.4},
        {"epoch": 2, "train_loss": 1.0},
        {"epoch": 3, "train_loss": 0.5, "eval/loss": 1.5, "eval/accuracy": 0.8},
    ]
    figure = plots.learning_curves({"cnn": rows})
    loss, accuracy = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "accuracy"]
    assert _legend(figure) == ["cnn train", "cnn eval"]
    train, evaluated = loss.get_lines()
    np.testing.assert_array_equal(train.get_xydata(), [[1, 2.0], [2, 1.0], [3, 0.5]])
    np.testing.assert_array_equal(evaluated.get_xydata(), [[1, 2.5], [3, 1.5]])
    assert train.get_linestyle() != evaluated.get_linestyle()
    np.testing.assert_array_equal(accuracy.get_lines()[0].get_ydata(), [0.4, 0.8])
    assert accuracy.get_xlabel() == "epoch"


def test_learning_curves_of_what_the_trainer_keeps():
    rows = [{"epoch": n, "step": 9 * n, "loss": 1.0 / n, "val_loss": 2.0 / n, "seconds": 0.1} for n in (1, 2)]
    figure = plots.learning_curves({"cnn": rows})
    (axes,) = figure.axes
    assert _legend(figure) == ["cnn train", "cnn val"]
    assert axes.get_xlabel() == "epoch"
    np.testing.assert_array_equal(axes.get_lines()[0].get_ydata(), [1.0, 0.5])
    assert len({line.get_linestyle() for line in axes.get_lines()}) == 2


def test_learning_curves_by_step_and_without_time():
    assert plots.learning_curves({"a": [{"step": 10, "loss": 1.0}]}).axes[-1].get_xlabel() == "step"
    assert plots.learning_curves({"a": [{"loss": 1.0}]}).axes[-1].get_xlabel() == "row"
    with pytest.raises(ValueError, match="no row holds a metric"):
        plots.learning_curves({"a": [{"epoch": 1}]})


def test_a_long_legend_stays_within_the_figure():
    runs = {f"a run with a rather long name {i}": [{"epoch": 1, "loss": 1.0}] for i in range(7)}
    figure = plots.learning_curves(runs)
    figure.draw_without_rendering()
    assert len(_legend(figure)) == 7
    assert figure.legends[0].get_window_extent().width <= figure.bbox.width


def test_labels_curve_draws_each_method_with_its_interval():
    points = [
        {"method": m, "labels": n, "accuracy": a, "low": a - 0.02, "high": a + 0.01}
        for m, a in (("full", 0.9), ("LoRA", 0.95))
        for n in (25, 5, 10)
    ]
    figure = plots.labels_curve(points)
    axes = figure.axes[0]
    assert _legend(figure) == ["full", "LoRA"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["5", "10", "25"]
    for container, accuracy in zip(axes.containers, (0.9, 0.95), strict=True):
        assert isinstance(container, ErrorbarContainer)
        line, _, (bars,) = container.lines
        np.testing.assert_allclose(np.asarray(line.get_ydata(), float), accuracy)
        np.testing.assert_allclose(np.asarray(line.get_xdata(), float), [5, 10, 25], rtol=0.05)
        for segment in bars.get_segments():
            np.testing.assert_allclose(segment[:, 1], [accuracy - 0.02, accuracy + 0.01])


def test_labels_curve_without_intervals():
    points = [{"method": "full", "labels": n, "accuracy": 0.5} for n in (5, 10)]
    assert len(plots.labels_curve(points).axes[0].containers) == 1


def test_accuracy_against_bytes_sets_every_name_apart():
    points = [{"name": f"variant {i}", "bytes": 10_000 + 150 * i, "accuracy": 0.97 + 0.002 * (i % 2)} for i in range(6)]
    axes = plots.accuracy_against_bytes(points).axes[0]
    drawn = [tuple(np.asarray(line.get_xydata())[0]) for line in axes.get_lines()]
    assert drawn == [(p["bytes"], p["accuracy"]) for p in points]
    assert sorted(text.get_text() for text in axes.texts) == [p["name"] for p in points]
    boxes = [text.get_window_extent() for text in axes.texts]
    overlaps = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert len(overlaps) <= 1


@pytest.mark.parametrize(
    ("value", "shown"), [(1, "1 B"), (999, "999 B"), (1500, "1.5 kB"), (2e6, "2 MB"), (7e9, "7 GB")]
)
def test_bytes_are_shown_in_their_unit(value, shown):
    axes = plots.accuracy_against_bytes([{"name": "a", "bytes": 10, "accuracy": 1.0}]).axes[0]
    assert axes.xaxis.get_major_formatter()(value, None) == shown


def test_confusion_shades_by_share_of_the_true_class():
    axes = pictures.confusion([[3, 1], [0, 0]], ["cat", "dog"]).axes[0]
    np.testing.assert_allclose(_picture(axes), [[0.75, 0.25], [0, 0]])
    assert [text.get_text() for text in axes.texts] == ["3", "1"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    with pytest.raises(ValueError, match="3 classes"):
        pictures.confusion([[1, 2], [3, 4]], ["a", "b", "c"])


def test_confusion_tells_rates_where_they_are_asked_for():
    axes = pictures.confusion([[199, 1], [1, 2]], ["cat", "dog"], rates=True).axes[0]
    assert [text.get_text() for text in axes.texts] == ["100", "33", "67"]
    assert "%" in axes.get_xlabel()


def test_filters_share_one_scale_around_zero():
    kernel = np.zeros((3, 3, 2, 10), np.float32)
    kernel[..., 0] = -4
    kernel[0, 0, :, 1] = 2
    figure = pictures.filters(kernel)
    images = [axes.get_images()[0] for axes in figure.axes]
    assert len(images) == 10
    assert {image.get_clim() for image in images} == {(-4.0, 4.0)}
    np.testing.assert_array_equal(images[1].get_array(), [[2, 0, 0], [0, 0, 0], [0, 0, 0]])


def test_filters_with_three_inputs_are_in_colour():
    kernel = np.full((3, 3, 3, 2), 0.5)
    kernel[..., 1] = -0.5
    first, second = (_picture(axes) for axes in pictures.filters(kernel).axes)
    assert first.shape == (3, 3, 3)
    np.testing.assert_array_equal(first, 1.0)
    np.testing.assert_array_equal(second, 0.0)


def test_filters_of_zeros_and_of_a_wrong_shape():
    assert len(pictures.filters(np.zeros((3, 3, 1, 4))).axes) == 4
    with pytest.raises(ValueError, match=r"\(3, 3\), not \(height, width, inputs, outputs\)"):
        pictures.filters(np.zeros((3, 3)))


def test_saliency_scales_each_map_by_its_own_largest():
    maps = np.stack([np.full((4, 4), -2.0), np.zeros((4, 4))])
    figure = pictures.saliency(np.ones((2, 4, 4, 1)), maps, ["3", "5"])
    assert [axes.get_title() for axes in figure.axes] == ["3", "5", "", ""]
    np.testing.assert_array_equal(_picture(figure.axes[2]), 1.0)
    np.testing.assert_array_equal(_picture(figure.axes[3]), 0.0)
    with pytest.raises(ValueError, match="2 images, 1 maps and 2 labels"):
        pictures.saliency(np.ones((2, 4, 4)), maps[:1], ["3", "5"])

"""Figures: what is drawn, and that nothing is hidden behind a legend."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from distributed_autolora.reporting.figures import curves_figure, samples_figure
from tests.reporting import runs

CLASSES = ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def marked(figure: Figure, gid: str) -> list[Line2D]:
    return [line for axes in figure.axes for line in axes.lines if line.get_gid() == gid]


def panel(figure: Figure, title: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_title().startswith(title))


def test_every_halving_and_restore_is_marked_where_it_happened() -> None:
    figure = curves_figure(runs.history(20))
    for gid in ("halved", "restored"):
        (line,) = marked(figure, gid)
        assert list(np.asarray(line.get_xdata())) == [epoch + 0.5 for epoch in runs.HALVED_AFTER]
    restored = [text.get_text() for text in panel(figure, "Learning rate").texts]
    assert restored == ["9", "13", "15"]


def test_a_run_that_never_halved_has_no_marks() -> None:
    figure = curves_figure(runs.history(5))
    assert not marked(figure, "halved")
    assert not marked(figure, "restored")


def test_the_best_epoch_is_marked_at_its_accuracy() -> None:
    history = runs.history(20)
    (star,) = marked(curves_figure(history), "best_epoch")
    assert list(np.asarray(star.get_xdata())) == [15]
    assert list(np.asarray(star.get_ydata())) == [max(record["val/robust_accuracy/pgd10"] for record in history)]


@pytest.mark.parametrize(("vanilla", "with_result", "panels"), [(0, 1, 6), (0, 0, 5), (1, 1, 5), (1, 0, 4)])
def test_panels_without_values_are_left_out(vanilla: int, with_result: int, panels: int) -> None:
    history = runs.history(6, vanilla=bool(vanilla))
    figure = curves_figure(history, runs.result(history) if with_result else None)
    titled = [axes for axes in figure.axes if axes.get_title()]
    assert len(titled) == panels
    assert all(axes.get_ylabel() for axes in figure.axes)


@pytest.mark.parametrize("epochs", [1, 20, 60])
def test_curves_fit_1400_by_900_pixels_with_legends_outside_the_data(epochs: int) -> None:
    history = runs.history(epochs)
    figure = curves_figure(history, runs.result(history))
    figure.draw_without_rendering()
    assert (figure.bbox.width, figure.bbox.height) == (1400, 900)
    for axes in figure.axes:
        legend = axes.get_legend()
        if legend is not None:
            box = legend.get_window_extent()
            assert box.y1 <= axes.get_window_extent().y0
            assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
            assert box.y0 >= 0


def test_the_bars_of_an_epoch_add_up_to_its_seconds() -> None:
    history = runs.history(3)
    bars = panel(curves_figure(history), "Seconds").patches
    heights = np.array([patch.get_height() for patch in bars if hasattr(patch, "get_height")]).reshape(5, 3)
    np.testing.assert_allclose(heights.sum(0), [record["seconds/epoch"] for record in history])


def test_test_accuracies_are_drawn_for_both_models() -> None:
    history = runs.history(3)
    axes = panel(curves_figure(history, runs.result(history)), "Accuracy on 1,000 test images")
    assert [text.get_text() for text in axes.texts] == ["92.1 %", "83.3 %", "78.9 %", "31.2 %"]


@pytest.mark.parametrize(("n", "channels"), [(10, 1), (3, 3), (1, 1)])
def test_samples_show_image_perturbation_and_adversarial_image(n: int, channels: int) -> None:
    samples = runs.samples(n, channels, size=12)
    figure = samples_figure(samples, CLASSES, 0.1)
    columns = min(n, 8)
    assert len(figure.axes) == 3 * columns
    natural, perturbation, adversarial = (figure.axes[row * columns].images[0].get_array() for row in range(3))
    assert natural is not None
    assert perturbation is not None
    assert adversarial is not None
    np.testing.assert_allclose(np.asarray(natural), np.moveaxis(samples["x"][0] / 255, 0, -1).squeeze())
    np.testing.assert_allclose(
        np.asarray(perturbation), np.clip(0.5 + (np.asarray(adversarial) - np.asarray(natural)) / 0.2, 0, 1)
    )


def test_predictions_are_coloured_by_whether_they_are_right() -> None:
    samples = runs.samples(8)
    figure = samples_figure(samples, CLASSES, 8 / 255)
    for row, key in ((0, "natural_prediction"), (2, "adversarial_prediction")):
        for column in range(8):
            axis_label = figure.axes[8 * row + column].xaxis.label
            right = samples[key][column] == samples["label"][column]
            assert axis_label.get_color() == ("#1a7f37" if right else "#b2182b")
            assert axis_label.get_text() == f"seen as {CLASSES[samples[key][column]]}"
    assert "8/255" in figure.axes[8].get_ylabel()


def test_epsilon_zero_draws_a_grey_perturbation() -> None:
    samples = runs.samples(1)
    samples["x_adv"] = (samples["x"] / 255).astype(np.float32)
    perturbation = samples_figure(samples, CLASSES, 0.0).axes[1].images[0].get_array()
    np.testing.assert_allclose(np.asarray(perturbation), 0.5, atol=1e-6)


def test_figures_are_written_without_touching_global_state(tmp_path: Path) -> None:
    settings = dict(mpl.rcParams)
    history = runs.history(2)
    curves_figure(history).savefig(tmp_path / "curves.png")
    samples_figure(runs.samples(2), CLASSES, 0.1).savefig(picture := io.BytesIO(), format="png")
    assert (tmp_path / "curves.png").stat().st_size > 10000
    assert picture.getvalue().startswith(b"\x89PNG")
    assert dict(mpl.rcParams) == settings

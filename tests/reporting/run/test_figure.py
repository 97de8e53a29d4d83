"""The figure of a run: that what it shows is what happened, and that nothing of it is hidden."""

import itertools
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy.stats import norm

from distributed_autolora.records import EpochRecord
from distributed_autolora.reporting.run.figure import curves_figure
from distributed_autolora.reporting.run.panels import losses, measured, seconds
from distributed_autolora.reporting.run.samples_figure import samples_figure
from tests.reporting import runs

CHECKED = {4: 1, 8: 9, 12: 0, 16: 1, 20: 2}
"""Of 59 images, those that only the stronger attack fools, by epoch."""


def checked(epochs: int, *, vanilla: bool = False) -> list[EpochRecord]:
    return [
        replace(
            runs.checked(record, CHECKED.get(record.epoch, 0), 59),
            phase_seconds={**record.phase_seconds, "masking": 0.4},
        )
        if record.epoch in CHECKED or record.epoch == epochs
        else record
        for record in runs.history(epochs, vanilla=vanilla)
    ]


def panel(figure: Figure, title: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_title(loc="left").startswith(title))


def at(figure: Figure, gid: str) -> list[float]:
    lines = [line for axes in figure.axes for line in axes.lines if line.get_gid() == gid]
    return [float(x) for line in lines for x in np.asarray(line.get_xdata(), dtype=float)]


def shown(figure: Figure) -> list[Text]:
    """Returns all texts that are drawn; Matplotlib keeps labels of ticks beyond the ends of an axis, and hides them."""
    unseen: set[Text] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = axis.get_view_interval()
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            unseen |= {tick.label1 for tick in ticks if not low <= tick.get_loc() <= high}
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    return [text for text in texts if text not in unseen and text.get_visible() and text.get_text().strip()]


def test_every_interval_holds_its_estimate_and_solves_wilsons_equation() -> None:
    history = runs.history(20)
    z, images = norm.ppf(0.975), runs.VAL_IMAGES
    found = measured({record.epoch: record.robust for record in history})
    for value, low, high in zip(found.values, found.low, found.high, strict=True):
        assert low < value < high
        for end in (low, high):
            assert (value - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / images, rel=1e-6)


def test_checks_are_drawn_at_their_epochs_with_both_accuracies_of_the_same_images() -> None:
    history = checked(20)
    axes = panel(curves_figure(history, runs.result(history)), "Validation accuracy")
    drawn = {line.get_gid(): line for line in axes.lines}
    stronger, same = (np.asarray(drawn[gid].get_ydata(), dtype=float) for gid in ("stronger", "same_images"))
    assert at(axes.get_figure(), "stronger") == list(CHECKED)  # type: ignore[arg-type]
    np.testing.assert_allclose((same - stronger) * 59, list(CHECKED.values()), atol=1e-9)


def test_every_event_is_marked_in_the_epoch_in_which_it_happened() -> None:
    history = checked(20)
    figure = curves_figure(history, runs.result(history))
    for gid in ("lowered", "restored"):
        assert at(figure, gid) == [9.5, 13.5, 17.5]
    assert at(figure, "deployed") == [15]
    assert [text.get_text() for text in panel(figure, "Learning rate").texts] == ["9", "13", "15"]
    (warning,) = [text for text in panel(figure, "Validation accuracy").texts if text.get_text() == "!"]
    assert warning.xy[0] == 8  # type: ignore[attr-defined]


def test_a_fixed_decay_is_marked_and_not_called_a_halving() -> None:
    history = [replace(record, halved=False, restored_epoch=None) for record in runs.history(20)]
    figure = curves_figure(history, runs.result(history))
    assert at(figure, "lowered") == [9.5, 13.5, 17.5]
    legend = panel(figure, "Learning rate").get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["learning rate", "lowered"]
    never = curves_figure(runs.history(5), runs.result(runs.history(5)))
    assert at(never, "lowered") == at(never, "restored") == []


def test_the_phases_of_an_epoch_add_up_to_its_seconds() -> None:
    history = runs.history(20)
    found = seconds(history)
    assert min(map(min, found.values())) >= 0
    np.testing.assert_allclose(np.sum(list(found.values()), axis=0), [max(6.4, 6.05 + 0.02 * e) for e in range(1, 21)])
    bars = panel(curves_figure(history, runs.result(history)), "Time of an epoch").containers
    tops = np.max([[bar.get_y() + bar.get_height() for bar in stack] for stack in bars], axis=0)
    np.testing.assert_allclose(tops, np.sum(list(found.values()), axis=0))


def test_the_loss_term_of_a_method_of_ones_own_is_shown() -> None:
    history = [replace(record, losses={**record.losses, "margin": 0.3}) for record in runs.history(3)]
    assert list(losses(history)) == ["total", "natural", "adversarial", "kl", "margin"]
    legend = panel(curves_figure(history, runs.result(history)), "Training loss").get_legend()
    assert legend is not None
    assert legend.get_texts()[-1].get_text() == "margin"


@pytest.mark.parametrize(("vanilla", "with_test", "panels"), [(0, 1, 7), (0, 0, 6), (1, 1, 6), (1, 0, 5)])
def test_panels_without_values_are_left_out(vanilla: int, with_test: int, panels: int) -> None:
    history = runs.history(6, vanilla=bool(vanilla))
    result = runs.result(history)
    figure = curves_figure(history, result if with_test else replace(result, test=None))
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]
    assert len(titles) == panels
    assert ("Loss weights" in titles) == (not vanilla)


def test_stationarity_is_drawn_where_it_was_measured_and_left_out_for_records_without_it() -> None:
    history = runs.history(6)
    history[2] = replace(history[2], fosc=None)
    axes = panel(curves_figure(history, runs.result(history)), "First-order stationarity")
    (line,) = [line for line in axes.lines if line.get_gid() == "fosc"]
    expected = [(record.epoch, record.fosc) for record in history if record.fosc is not None]
    assert np.asarray(line.get_xydata()).tolist() == [list(map(float, pair)) for pair in expected]
    before = [replace(record, fosc=None) for record in history]
    titles = [axes.get_title(loc="left") for axes in curves_figure(before, runs.result(before)).axes]
    assert not any(title.startswith("First-order") for title in titles)


def test_test_accuracies_are_drawn_for_both_models() -> None:
    history = runs.history(3)
    axes = panel(curves_figure(history, runs.result(history)), "On 1,000 test images")
    assert [text.get_text() for text in axes.texts] == ["92.1", "83.3", "78.9", "31.2"]


@pytest.mark.parametrize(
    ("epochs", "vanilla", "tested"), [(1, False, True), (20, True, True), (60, False, True), (2, False, False)]
)
def test_panels_share_the_epochs_and_no_two_texts_overlap(
    epochs: int, vanilla: bool, tested: bool, tmp_path: Path
) -> None:
    history = checked(epochs, vanilla=vanilla)
    result = runs.result(history)
    figure = curves_figure(history, result if tested else replace(result, test=None))
    settings = dict(mpl.rcParams)
    figure.savefig(tmp_path / "curves.png")
    assert dict(mpl.rcParams) == settings
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert figure.bbox.width == 1200
    over_epochs = [axes for axes in figure.axes if not axes.get_title(loc="left").startswith("On ")]
    assert len({(axes.get_xlim(), axes.get_position().x0, axes.get_position().x1) for axes in over_epochs}) == 1
    boxes = {text: text.get_window_extent() for text in shown(figure)}
    for text, box in boxes.items():
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1, text
    for (one, first), (other, second) in itertools.combinations(boxes.items(), 2):
        assert not first.shrunk(0.9, 0.8).overlaps(second.shrunk(0.9, 0.8)), (one, other)


CLASSES = ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


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


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (1, 1, 3), (3, 3, 1)])
def test_images_of_one_pixel_or_line_are_shown(shape: tuple[int, int, int]) -> None:
    samples = runs.samples(2, shape[0], size=12)
    samples |= {key: samples[key][:, :, : shape[1], : shape[2]] for key in ("x", "x_adv")}
    shown_image = np.asarray(samples_figure(samples, CLASSES, 0.1).axes[0].images[0].get_array())
    assert shown_image.shape[:2] == shape[1:]
    np.testing.assert_allclose(shown_image.reshape(*shape[1:], -1), np.moveaxis(samples["x"][0] / 255, 0, -1))


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

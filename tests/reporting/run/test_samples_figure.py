"""The figure of a few test images: what is shown, and in which colours."""

import numpy as np
import pytest

from distributed_autolora.reporting.run.samples_figure import samples_figure
from tests.reporting import runs

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

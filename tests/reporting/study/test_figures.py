"""A study's figures hold their legends, however long the names of the arms are."""

import pytest
from matplotlib.figure import Figure

from distributed_autolora.reporting.study.figures import _shared_legend

LONG = "AutoLoRa, paired, average deployed and teaching, detached labels"


@pytest.mark.parametrize(("label", "columns"), [("TWINS", 5), (LONG, 2), (2 * LONG, 1)])
def test_a_shared_legend_has_as_many_columns_as_fit_and_stays_inside(label: str, columns: int) -> None:
    figure = Figure(figsize=(12, 6), dpi=100, layout="constrained")
    axes = figure.subplots()
    for index in range(10):
        axes.plot([0, 1], [index, index], "o", label=f"{label} {index}")
    _shared_legend(figure)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    drawn = legend.get_window_extent()
    rows = len({round(text.get_window_extent().y0) for text in legend.get_texts()})
    assert rows == -(-10 // columns)
    assert drawn.x0 >= 0
    assert drawn.x1 <= figure.bbox.width
    assert drawn.y0 >= 0
    assert drawn.y1 <= axes.get_window_extent().y0

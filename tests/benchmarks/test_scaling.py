"""The model of a step on many workers: nothing is free, and what does not depend on the link does not."""

import pytest

from benchmarks.scaling import LINKS, Flags, Step, gpus


def test_one_worker_has_neither_waiting_nor_collectives_and_one_synchronisation_costs_what_its_bytes_do() -> None:
    assert Step(2.0, 1.0, 213, 1e9).seconds(1, (1e9, 1.0), 0.5) == pytest.approx(3.0)
    assert Step(2.0, 1.0, 1, 1e9).seconds(2, (1e9, 0.0), 0.0) == pytest.approx(3.0 + 1.0)
    assert Step(2.0, 1.0, 1, 0.0).seconds(4, (1e9, 0.5), 0.0) == pytest.approx(3.0 + 2 * 2 * 0.5)


def test_more_synchronisations_slower_links_and_more_spread_never_make_a_step_faster() -> None:
    for workers in (8, 64, 256):
        for link in LINKS.values():
            one = [Step(2.0, 1.0, syncs, 1e8).seconds(workers, link, 0.05) for syncs in (1, 2, 213)]
            assert one == sorted(one)
            assert Step(2.0, 1.0, 2, 1e8).seconds(workers, link, 0.0) < one[1]
    rates = gpus(Flags())
    best = rates.pop("without any loss")
    for name, row in rates.items():
        assert all(rate < best[count] for count, rate in row.items()), name
        if name.endswith("shards"):
            assert all(rate > rates[name.replace("shards", "global")][count] for count, rate in row.items()), name

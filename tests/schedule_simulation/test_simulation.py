"""The simulated world behaves as its description says, and the program writes what it prints."""

import json
import subprocess
import sys
from pathlib import Path

from tests.schedule_simulation.__main__ import RULES, automatic, run
from tests.schedule_simulation.worlds import State, World


def test_outcomes_have_the_true_accuracy_and_the_same_images_stay_difficult() -> None:
    world = World(seed=3, images=40_000, hiding=0.0)
    for _ in range(8):
        world.epoch(1.0)
    first, second = (world.seen(epoch, 20).outcomes for epoch in (1, 2))
    truth = world.accuracy
    assert abs(float(first.double().mean()) - truth) < 0.01
    agree = float((first == second).double().mean())
    assert agree > truth**2 + (1 - truth) ** 2 + 0.1, "independent outcomes would agree as often as that alone"


def test_a_state_that_hides_its_gradients_looks_better_and_is_worse_and_a_check_finds_most_of_it() -> None:
    world = World(seed=3, images=40_000, hiding=1.0)
    for _ in range(8):
        world.epoch(1.0)
    promise, deceit = world.state.promise, world.state.deceit
    assert 0 <= promise <= 0.06 < deceit <= 0.3
    assert world.seen(1, 20).check is None, "every fourth epoch has a check"
    seen = world.seen(4, 20)
    assert seen.check is not None
    assert abs(seen.accuracy - world.honest_accuracy - promise) < 0.01
    assert abs(world.honest_accuracy - world.accuracy - deceit) < 1e-9
    newly_broken = float(seen.check.newly_broken.sum()) / seen.check.images
    assert abs(newly_broken - (promise + 0.01 + 0.9 * deceit)) < 0.02


def test_a_lower_rate_has_a_lower_floor() -> None:
    """What makes halving worth while."""
    accuracies = []
    for lr in (1.0, 0.05):
        world = World(seed=5, images=1, hiding=0.0)
        world.overfitting_an_epoch, world.state = 0.0, State(world.state.distance * 0, 0.0)
        settled = []
        for _ in range(400):
            world.epoch(lr)
            settled.append(world.accuracy)
        accuracies.append(sum(settled) / len(settled))
    assert accuracies[1] > accuracies[0] + 0.01


def test_the_truth_is_what_a_rule_with_the_truth_steers_by() -> None:
    found = run(World(0, 10, hiding=0.15), 20, automatic("released")(20), World.truth)
    assert found.restores_to_worse == 0


def test_the_program_writes_every_rule_of_every_cell(tmp_path: Path) -> None:
    output = tmp_path / "schedules.json"
    flags = ["--runs", "2", "--images", "30", "--epochs", "9", "--hiding", "0.15"]
    command = [sys.executable, "-m", "tests.schedule_simulation", *flags]
    done = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True, check=True)
    (cell,) = json.loads(output.read_text())["cells"]
    assert set(RULES) < set(cell["rules"])
    assert all(name in done.stdout for name in cell["rules"])

"""Short names give the same config as the full ones in every program, and an unknown flag names the nearest."""

import pytest

from distributed_autolora.cli import parse_flags, parse_one_of, parse_training_flags
from distributed_autolora.config import ScalingConfig
from distributed_autolora.config.flags import SHORT
from distributed_autolora.data.preparation.flags import SOURCES
from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.evaluations.request import EvaluationRequest
from distributed_autolora.orchestration.studies.request import CompareFlags, study_request

VALUES = {"--lr": "0.5", "--epochs": "7", "--batch-size": "48", "--epsilon": "4/255", "--method": "vanilla"}
SWITCH = "--system-metrics"
VALUES |= {"--workers": "3", "--cpus-per-worker": "2", "--wait-for-resources-s": "9"}


@pytest.mark.parametrize("short", SHORT)
def test_a_short_name_is_its_full_flag(short: str) -> None:
    full, value = SHORT[short][0], VALUES.get(short, "words")
    ways = ([[short, value], [f"{short}={value}"]], [f"{full}={value}"]) if short != SWITCH else ([[short]], [full])
    expected = parse_training_flags("", "demo", ways[1])
    assert [parse_training_flags("", "demo", way) for way in ways[0]] == [expected] * len(ways[0])
    assert expected != parse_training_flags("", "demo", [])


def test_programs_share_the_short_names_of_what_they_share() -> None:
    words = ["--workers", "3", "--data", "D", "--output", "O", "--mlflow-uri", "U"]
    training = parse_training_flags("", "demo", words).experiment
    evaluation = parse_flags(EvaluationRequest, "", [*words, "--weights", "W", "--epsilon", "1/8"])
    study = parse_flags(CompareFlags, "", [*words, "--weights", "W"])
    assert training.scaling.num_workers == evaluation.num_workers == study.num_workers == 3
    assert training.data.path == evaluation.data == study.data == "D"
    assert training.run.output == evaluation.output == study.output == "O"
    assert (evaluation.model, study.weights, evaluation.epsilon) == ("W", "W", 0.125)


def test_gpus_are_workers_with_one_each_in_every_program() -> None:
    def scaling(*words: str) -> list[tuple[int, bool]]:
        trained: ScalingConfig = parse_training_flags("", "cifar10", list(words)).experiment.scaling
        evaluation = parse_flags(EvaluationRequest, "", ["--model", "m", *words])
        flags = parse_flags(CompareFlags, "", ["--task", "cifar10", "--data", "D", "--weights", "W", *words])
        compared = study_request(flags, "").study.arms[0].config.scaling
        return [(found.num_workers, found.use_gpu) for found in (trained, evaluation, compared)]

    assert scaling("--gpus", "4") == scaling("--gpus=4") == [(4, True)] * 3
    assert [use_gpu for _, use_gpu in scaling("--gpus", "0")] == [False] * 3
    for words, said in (
        (["--gpus", "two"], '"two"'),
        (["--gpus"], '""'),
        (["--gpus", "2", "--workers", "4"], "--workers"),
    ):
        with pytest.raises(UserError, match=said):
            parse_training_flags("", "demo", words)


def test_a_range_of_workers_is_the_fewest_and_the_most() -> None:
    shards = ["--optimization.batch-norm", "shards", "--optimization.batch-norm-shards", "8"]
    for words in (
        ["--workers", "2..8"],
        ["--scaling.num-workers=2..8"],
        ["--gpus", "2..8"],
        ["--scaling.num_workers", "2..8"],
    ):
        scaling = parse_training_flags("", "demo", [*words, *shards]).experiment.scaling
        assert (scaling.num_workers, scaling.max_workers, scaling.use_gpu) == (2, 8, "--gpus" in words)
    assert parse_training_flags("", "demo", ["--workers", "2"]).experiment.scaling.max_workers is None
    with pytest.raises(UserError, match="needs batch norm that does not depend on it"):
        parse_training_flags("", "demo", ["--workers", "2..8"]).experiment.validate()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("folder --sorce IN", r"no flag --sorce\. Did you mean --source\? --help"),
        ("folder --gpu 1", r"no flag --gpu\. --help"),
        ("fodler --source IN", r'no "fodler"\. Did you mean "folder"\? Expected one of cifar10, '),
        ("", r"^Expected one of cifar10, .*, folder, csv, check as"),
        ("folder --source IN", r"--output"),
        ("folder --source IN --output OUT --test-fraction half", r"half is not a number"),
    ],
)
def test_a_program_of_several_sources_names_the_nearest_too(typed: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_one_of(SOURCES, "", typed.split())


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--lrr", r"mean --lr \(that is --optimization\.lr\)\?"),
        ("--gpu", r"mean --gpus\?"),
        ("--num-steps", r"mean --eval-attack\.num-steps or --train-attack\.num-steps\?"),
        ("--optimisation.lr", r"mean --optimization\.lr\?"),
        ("--frehs", r"mean --fresh\?"),
        ("--xyzzy", r"no flag --xyzzy\. --help"),
    ],
)
def test_an_unknown_flag_is_answered_by_the_nearest_last_part(typed: str, meant: str) -> None:
    with pytest.raises(UserError, match=meant):
        parse_training_flags("", "demo", [typed, "1"])

"""Which runs a study makes, who wins a search, and what a continued study takes over: all without Ray."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.data.parquet.reader import read_texts
from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.evaluations.post_training import check_attacks
from distributed_autolora.orchestration.studies.dry_run import dry_run
from distributed_autolora.orchestration.studies.folder import StudyFolder
from distributed_autolora.orchestration.studies.plan import (
    batches,
    best_trial,
    plan_final,
    plan_search,
    planned,
    run_config,
    study_record,
)
from distributed_autolora.orchestration.studies.progress import StudyProgress
from distributed_autolora.orchestration.studies.request import CompareFlags, StudyRequest, study_request
from distributed_autolora.records import PlannedRun, RunStatus, StudyRecord, TrackedRun
from distributed_autolora.studies import Arm, Study, with_settings
from tests.reporting import runs
from tests.training.tasks import write_task

LR = "optimization.lr"


def tiny_study(**changes: Any) -> Study:
    config = ExperimentConfig(recipe="tiny")
    arms = (
        Arm(id="autolora", label="AutoLoRa", config=config),
        Arm(id="twins", label="TWINS", config=config, grid={LR: (0.1, 0.01), "method.twins_gamma": (1.0, 3.0)}),
    )
    study = Study(name="tiny", title="Tiny", paper_tables=("1",), arms=arms, reference="autolora")
    return replace(study, **changes)


def request(home: Path, **changes: Any) -> StudyRequest:
    return replace(StudyRequest(study=tiny_study(), name="tiny", home=home, seeds=(0, 1)), **changes)


def pretend(folder: StudyFolder, run: PlannedRun, accuracy: float, *, finished: bool = True) -> None:
    place = folder.folder(run).path
    place.mkdir(parents=True)
    folder.folder(run).write_history([replace(runs.history(1)[0], best_robust_accuracy=accuracy)])
    if finished:
        (place / "result.json").write_text("{}")


def held(home: Path) -> StudyFolder:
    folder = StudyFolder(home / "studies" / "tiny")
    folder.acquire()
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return held(tmp_path)


def record_of(folder: StudyFolder) -> StudyRecord:
    record = folder.record()
    assert record is not None
    return record


def test_a_search_has_every_point_of_the_grid_on_one_seed_and_the_finals_every_seed() -> None:
    study = tiny_study()
    search = plan_search(study, 7)
    assert [(run.seed, run.settings[LR], run.settings["method.twins_gamma"]) for run in search] == [
        (7, 0.1, 1.0),
        (7, 0.1, 3.0),
        (7, 0.01, 1.0),
        (7, 0.01, 3.0),
    ]
    final = plan_final(study, (0, 1), {"twins": search[2].settings})
    assert [(run.arm, run.seed) for run in final] == [(arm.id, seed) for arm in study.arms for seed in (0, 1)]
    assert final[2].settings == search[2].settings
    names = [str(run.run) for run in [*search, *final]]
    assert len(set(names)) == len(names)
    assert planned("A", "search", 0, {LR: 1e8}).run != planned("A", "search", 0, {LR: 1e-8}).run
    assert all(len(name) <= 100 and not set(name) & set("/ ,=") for name in names)


def test_a_search_never_opens_the_test_split_and_a_final_run_reads_it_whatever_the_base_says() -> None:
    study = tiny_study()
    for opened in (True, False):
        base = with_settings(study.arms[1].config, {"evaluation.test_split": opened})
        arm = replace(study.arms[1], config=base)
        for run in plan_search(study, 0):
            assert run_config(arm, run, output="/o", mlflow_uri=None).evaluation.test_split is False
        (final,) = plan_final(replace(study, arms=(arm,)), (0,), {arm.id: arm.points()[0]})
        assert run_config(arm, final, output="/o", mlflow_uri=None).evaluation.test_split is True


def test_runs_of_one_seed_share_split_order_and_noise_and_a_seed_is_no_new_split() -> None:
    study = tiny_study()
    runs = plan_final(study, (0, 1), {"twins": study.arms[1].points()[0]})
    configs = [run_config(study.arm(run.arm), run, output="/o", mlflow_uri=None) for run in runs]
    assert [config.seed for config in configs] == [0, 1, 0, 1]
    assert len({config.data for config in configs}) == 1


def test_the_best_trial_has_the_highest_validation_score_is_the_first_of_equals_and_finished() -> None:
    runs = plan_search(tiny_study(), 0)
    runs = [replace(run, status="finished") for run in runs]
    assert best_trial(zip(runs, (0.3, 0.5, 0.5, 0.4), strict=True)) == runs[1].settings
    runs[1:3] = [replace(runs[1], status="failed"), replace(runs[2], status="stopped_early")]
    assert best_trial(zip(runs, (0.3, 0.5, 0.5, 0.4), strict=True)) == runs[3].settings
    assert best_trial(zip(runs[1:3], (0.5, 0.5), strict=True)) is None


def test_a_continued_study_keeps_what_is_done_and_does_the_rest_again(folder: StudyFolder) -> None:
    folder.plan(tiny_study(), (0, 1))
    search = folder.runs[:4]
    for run, accuracy in zip(search[:3], (0.4, 0.6, 0.9), strict=True):
        pretend(folder, run, accuracy, finished=accuracy < 0.9)
    statuses: tuple[RunStatus, ...] = ("running", "finished", "stopped_early", "failed", "running")
    for run, status in zip(list(folder.runs), statuses, strict=False):
        folder.update(run, status=status)

    again = StudyFolder(folder.path)
    again.plan(tiny_study(), (0, 1))
    assert [run.status for run in again.runs[:5]] == ["finished", "finished", "stopped_early", "pending", "pending"]
    assert [run.run for run in again.runs[6:]] == [None, None], "no best trial before the failed trial was tried again"

    again.update(again.runs[3], status="failed", error="out of memory")
    final = again.plan_final(tiny_study(), (0, 1))
    assert [run.settings for run in final[2:]] == [search[1].settings] * 2
    assert json.loads((folder.path / "runs.json").read_text())["runs"][3]["error"] == "out of memory"


def test_a_trial_that_diverged_is_not_tried_again_and_keeps_its_reason(folder: StudyFolder) -> None:
    folder.plan(tiny_study(), (0, 1))
    folder.update(folder.runs[0], status="diverged", error="the loss is no longer finite")

    again = StudyFolder(folder.path)
    again.plan(tiny_study(), (0, 1))
    assert (again.runs[0].status, again.runs[0].error) == ("diverged", "the loss is no longer finite")
    assert {run.status for run in again.runs[1:]} == {"pending"}


def test_an_arm_whose_trials_all_failed_has_failed_finals_and_no_number(folder: StudyFolder) -> None:
    folder.plan(tiny_study(), (0,))
    for run in [run for run in folder.runs if run.phase == "search"]:
        folder.update(run, status="failed")
    final = folder.plan_final(tiny_study(), (0,))
    assert [(run.status, run.run) for run in final] == [("pending", "final-autolora-seed0"), ("failed", None)]
    assert "no trial" in str(final[1].error)


def test_an_arm_that_is_left_for_later_waits_and_has_not_failed(folder: StudyFolder) -> None:
    folder.plan(tiny_study(), (0,))
    final = folder.plan_final(tiny_study(), (0,))
    assert [(run.status, run.run) for run in final] == [("pending", "final-autolora-seed0"), ("pending", None)]


def test_runs_that_are_evaluated_are_made_seed_by_seed_and_others_all_at_once() -> None:
    runs = [planned(arm, "final", seed, {}) for seed in (0, 1) for arm in ("autolora", "twins")]
    assert batches(runs, by_seed=True) == [runs[:2], runs[2:]]
    assert batches(runs, by_seed=False) == [runs]


def test_named_arms_are_the_ones_that_are_made_and_an_unknown_name_is_refused(tmp_path: Path) -> None:
    some = study_request(CompareFlags(arms=("twins",), output=str(tmp_path)), "")
    assert [arm.id for arm in some.study.arms if some.wants(arm.id)] == ["twins"]
    every = study_request(CompareFlags(output=str(tmp_path)), "")
    assert all(every.wants(arm.id) for arm in every.study.arms)
    assert "final twins seed 2" in dry_run(some)
    assert "autolora" not in dry_run(some)
    with pytest.raises(UserError, match=r'no arm "twin".* Its arms: autolora, twins, vanilla-rft'):
        study_request(CompareFlags(arms=("twin",), output=str(tmp_path)), "")


def test_a_study_is_not_continued_as_another_one_but_takes_more_seeds(folder: StudyFolder, tmp_path: Path) -> None:
    folder.describe(request(tmp_path))
    folder.describe(request(tmp_path, seeds=(0, 1, 2)))
    assert record_of(folder).seeds == (0, 1, 2)
    (folder.path / "runs" / "trial").mkdir(parents=True)
    with pytest.raises(UserError, match="begun with other scheduler: grid there, asha here"):
        folder.describe(request(tmp_path, scheduler="asha"))
    other = with_settings(ExperimentConfig(), {"optimization.epochs": 3})
    arms = (replace(tiny_study().arms[0], config=other), tiny_study().arms[1])
    with pytest.raises(UserError, match="values in the config of arm autolora"):
        folder.describe(request(tmp_path, study=tiny_study(arms=arms)))


def test_a_study_has_the_arms_that_were_asked_for_so_far_and_all_commands(folder: StudyFolder, tmp_path: Path) -> None:
    for arms, known in ((("twins",), ["twins"]), (("autolora",), ["autolora", "twins"]), ((), ["autolora", "twins"])):
        asked = request(tmp_path, arms=arms, command=f"compare --arms {' '.join(arms)}")
        folder.describe(replace(asked, study=folder.asked(asked)))
        assert [arm.id for arm in record_of(folder).arms] == known
    assert len(record_of(folder).commands) == 3


def test_a_study_that_was_refused_before_its_first_run_is_begun_anew_with_other_flags(
    folder: StudyFolder, tmp_path: Path
) -> None:
    folder.write(replace(study_record(request(tmp_path)), mlflow=TrackedRun("sqlite:///x", "refused")))
    folder.describe(request(tmp_path, scheduler="asha"))
    assert (record_of(folder).scheduler, record_of(folder).mlflow) == ("asha", None)


def test_seeds_that_have_runs_are_not_left_out_of_the_report(folder: StudyFolder, tmp_path: Path) -> None:
    folder.describe(request(tmp_path, seeds=(0, 1, 2)))
    folder.plan(tiny_study(), (0, 1, 2))
    folder.save()
    folder.describe(request(tmp_path, seeds=(0, 1)))
    folder.describe(request(tmp_path, seeds=(0, 1, 2)))
    last = next(run for run in folder.runs if run.phase == "final" and run.seed == 2)
    folder.folder(last).path.mkdir(parents=True)
    folder.folder(last).create(ExperimentConfig())
    with pytest.raises(UserError, match="give --seeds 3 or more, or another --name"):
        folder.describe(request(tmp_path, seeds=(0, 1)))
    assert record_of(folder).seeds == (0, 1, 2)


def test_an_attack_that_cannot_evaluate_the_final_runs_is_refused_before_the_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='Did you mean "autoattack"'):
        study_request(CompareFlags(attacks="pgd10,autoatack", output=str(tmp_path)), "")
    few = write_task(tmp_path / "task", train=6, test=3)
    with pytest.raises(UserError, match="needs at least 4 classes"):
        check_attacks("apgd-t", few)
    check_attacks("pgd10,autoattack", few)
    check_attacks("apgd-ce", few, 3)
    with pytest.raises(UserError, match=r"Attacks on 4 test images .* has 3: ask for fewer"):
        check_attacks("apgd-ce", few, 4)


@pytest.mark.parametrize(("attacks", "images"), [("pgd10", 250), ("apgd", 0)])
def test_a_number_of_attacked_images_needs_an_attack_and_an_image(attacks: str, images: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--attack-images is"):
        study_request(CompareFlags(attacks=attacks, attack_images=images, output=str(tmp_path)), "")


def test_a_study_remembers_on_how_many_images_it_was_evaluated_last(folder: StudyFolder, tmp_path: Path) -> None:
    for attacks, images, kept in (("apgd", 250, 250), ("pgd10", None, 250), ("autoattack", None, None)):
        folder.describe(request(tmp_path, attacks=attacks, attack_images=images))
        assert record_of(folder).attack_images == kept


def test_images_from_elsewhere_are_named_where_they_are_not_the_tasks_own(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "task", train=6, test=3)
    name = read_texts(folder, "train")["task"]
    for task, said in (("fashion-mnist-5-9", name), (name, None)):
        config = with_settings(ExperimentConfig(), {"data.path": folder, "data.task": task})
        study = tiny_study(arms=(Arm(id="autolora", label="AutoLoRa", config=config),))
        assert study_record(request(tmp_path, study=study)).images == said


def test_a_study_is_in_use_by_one_process_at_a_time(folder: StudyFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match='Study "tiny" is in use by process'):
        held(tmp_path)
    folder.release()
    held(tmp_path).release()


def test_progress_says_result_time_and_what_is_honestly_left() -> None:
    said: list[str] = []
    now = [0.0]
    progress = StudyProgress(21, 6, 2, say=said.append, clock=lambda: now[0])
    one, other = plan_search(tiny_study(), 0)[:2]
    progress.started(one)
    assert progress.seconds_left() is None
    progress.started(other)
    now[0] = 252.0
    progress.ended(replace(one, status="finished"), [replace(runs.history(1)[0], best_robust_accuracy=0.784)])
    # 14 runs of 252 s are left, 1 of them nearly done, 2 at a time: 13 * 252 / 2 = 1638 s.
    assert said == ["[ 7/21] search twins lr=0.1 gamma=1 seed 0: val PGD-10 78.4 % in 4:12; about 27 min left"]
    progress.ended(replace(other, status="failed", error="out of memory"), [])
    assert said[1].startswith("[ 8/21] search twins lr=0.1 gamma=3 seed 0: FAILED (out of memory) in 4:12")


def test_flags_name_a_study_and_its_folder(tmp_path: Path) -> None:
    flags = CompareFlags(study="lora_rank", task="cub", backbone="resnet50", seeds=2, output=str(tmp_path))
    made = study_request(flags, "python jobs/compare.py")
    assert made.folder == tmp_path / "studies" / "lora_rank-cub-resnet50"
    assert made.seeds == (0, 1)
    assert {arm.config.scaling.num_workers for arm in made.study.arms} == {1}
    own = study_request(CompareFlags(study="custom", data="images", weights="w"), "")
    assert own.study.arms[0].config.data.task == "custom"
    with pytest.raises(UserError, match="--seeds is 0"):
        study_request(CompareFlags(seeds=0), "")

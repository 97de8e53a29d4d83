"""An evaluation of a run is a run of its own in MLflow, nested below it."""

from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from distributed_autolora.orchestration.evaluations.evaluate import evaluate
from distributed_autolora.orchestration.evaluations.request import EvaluationRequest
from distributed_autolora.orchestration.mlflow_tracking import PARENT, default_tracking_uri
from distributed_autolora.orchestration.runs.results import finish
from distributed_autolora.records import TrackedRun
from tests.orchestration.evaluations.shared import result
from tests.orchestration.mlflow_tracking.tracking_server import opened
from tests.training.tasks import data_of, fitted, small_config, write_task
from tests.training.test_no_test_split import AWAY, returned, run_folder


def test_an_evaluation_is_nested_below_its_run_once_although_the_server_was_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(write_task(tmp_path / "task", train=130, test=37), epochs=1)
    folder = run_folder(tmp_path, config)
    finish(config, folder, returned(fitted(config), data_of(config)), AWAY)
    request = EvaluationRequest(
        model=str(folder.path), attacks="fgsm,pgd3", images=8, num_workers=0, sanity=False, export=False
    )
    capsys.readouterr()
    place = evaluate(request)
    assert f"warning: MLflow at {AWAY['uri']} cannot be used (connection refused)" in capsys.readouterr().err

    uri = default_tracking_uri(tmp_path)
    trained = opened(uri, tmp_path, experiment=config.run.mlflow_experiment)
    folder.write_result(replace(folder.result(), mlflow=TrackedRun(uri, trained)))
    for _ in range(2):
        assert evaluate(request) == place
    client = MlflowClient(uri)
    (child,) = client.search_runs([client.get_run(trained).info.experiment_id], f"tags.`{PARENT}` = '{trained}'")
    assert (child.info.status, child.info.run_name) == ("FINISHED", "evaluation-8-images of one")
    assert child.data.params["images"] == "8"
    accuracies = {key: count.accuracy for key, count in result(place).accuracies().items()}
    assert child.data.metrics == {
        "evaluation/natural_accuracy": accuracies["natural_accuracy"],
        "evaluation/robust_accuracy_fgsm": accuracies["robust_accuracy/fgsm"],
        "evaluation/robust_accuracy_pgd3": accuracies["robust_accuracy/pgd3"],
        "evaluation/robust_accuracy_worst_case": accuracies["robust_accuracy/worst_case"],
    }
    assert "PGD-3" in child.data.tags["mlflow.note.content"]
    assert not client.get_run(trained).data.metrics

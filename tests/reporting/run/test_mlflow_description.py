"""Descriptions for the pages of an experiment tracker: complete, short enough, no broken pictures."""

from dataclasses import replace

from distributed_autolora.reporting.run.mlflow_description import run_description
from tests.reporting import runs


def test_a_run_is_described_by_what_it_was_and_what_its_schedule_did() -> None:
    history = runs.history(20)
    result = replace(runs.result(history), rule="paired")
    text = run_description(result, history)
    assert "`autolora` on `pets`, backbone `resnet18`, learning rate: automatic, rule `paired`, seed 0." in text
    assert "Restored the weights of epoch 9 after epoch 9, 13 after epoch 13, 15 after epoch 17." in text
    assert text.index("83.3 %") < text.index("`autolora`") < text.index("autolora finetune --config")
    fixed = run_description(replace(result, schedule="step_decay", rule=None), history)
    assert "learning rate: step decay, seed 0" in fixed

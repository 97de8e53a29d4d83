"""The Python interface: fine-tune, evaluate, attack, save and load in a few lines (docs/api.md)."""

from distributed_autolora.api.evaluations import Report, evaluate, pgd
from distributed_autolora.api.runs import Run, finetune, load_run
from distributed_autolora.data.preparation.own_dataset import write_dataset
from distributed_autolora.models.pretrained import load_model

__all__ = ["Report", "Run", "evaluate", "finetune", "load_model", "load_run", "pgd", "write_dataset"]

"""Another name of `distributed_autolora.orchestration.runs.train`."""

from distributed_autolora.orchestration.runs.train import train_run

__all__ = ["train_run"]

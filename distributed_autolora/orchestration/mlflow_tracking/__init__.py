"""The only package that knows MLflow. A tracking server may come and go; training does not depend on it.

Importing mlflow takes seconds, so every function imports it when it is first needed.
"""

from distributed_autolora.orchestration.mlflow_tracking.connection import default_tracking_uri, masked
from distributed_autolora.orchestration.mlflow_tracking.metrics import MetricWriter
from distributed_autolora.orchestration.mlflow_tracking.results import log_model, log_result
from distributed_autolora.orchestration.mlflow_tracking.runs import finish_run, open_run

__all__ = ["MetricWriter", "default_tracking_uri", "finish_run", "log_model", "log_result", "masked", "open_run"]

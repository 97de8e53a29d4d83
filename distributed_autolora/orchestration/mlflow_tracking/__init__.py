"""The only package that knows MLflow. A tracking server may come and go; training does not depend on it.

Importing mlflow takes seconds, so every function imports it when it is first needed.
"""

from distributed_autolora.orchestration.mlflow_tracking.connection import (
    TrackingError,
    connect,
    default_tracking_uri,
    is_sqlite,
)
from distributed_autolora.orchestration.mlflow_tracking.metrics import MetricWriter
from distributed_autolora.orchestration.mlflow_tracking.results import (
    PARENT,
    download_weights,
    log_evaluation,
    log_model,
    log_result,
    log_study,
    register_model,
)
from distributed_autolora.orchestration.mlflow_tracking.runs import (
    DataInput,
    end_run,
    finish_run,
    open_run,
    reach_store,
)
from distributed_autolora.orchestration.mlflow_tracking.system_metrics import system_metrics

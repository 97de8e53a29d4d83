"""The cluster that a study computes on: one that is there, or one of its own."""

import contextlib
import os
from collections.abc import Iterator

from distributed_autolora.config import ScalingConfig
from distributed_autolora.hardware import available_cpus
from distributed_autolora.orchestration.cluster.local_cluster import LocalCluster


@contextlib.contextmanager
def study_cluster(scaling: ScalingConfig) -> Iterator[int]:
    """Joins the cluster named by RAY_ADDRESS, or lends one of its own, and yields how many runs fit at a time.

    Ray Tune frees what a stopped trial held by asking the cluster's job server, which a Ray that this process alone
    starts does not have; and it asks the right one only where RAY_ADDRESS names it, in every process.

    Raises:
        UserError: when not even one run fits, or the cluster does not answer.
    """
    with contextlib.ExitStack() as stack:
        address = os.environ.get("RAY_ADDRESS")
        lent = None if address else stack.enter_context(LocalCluster(num_cpus=available_cpus()))
        if lent is not None:
            os.environ.update(lent.environment())
        # Ray reads the environment when it is imported.
        import ray

        from distributed_autolora.orchestration.cluster.connection import (
            check_local_cpus,
            check_local_gpus,
            concurrent_runs,
            initialize,
            wait_for_resources,
        )

        if lent is None:
            initialize(str(address), {})
        else:
            check_local_cpus(scaling)
            initialize(lent.address, {"runtime_env": {"env_vars": {"RAY_ADDRESS": lent.address}}})
            check_local_gpus(scaling)
        stack.callback(ray.shutdown)
        wait_for_resources(scaling)
        yield concurrent_runs(scaling, ray.cluster_resources())

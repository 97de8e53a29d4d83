"""All names of Ray that are not part of its public interface, and the version that they were tested with.

The format of Ray Train's checkpoint index is internal as well: `runs/ray_checkpoints.py` reads it.
"""

import contextlib
import os
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import ray
import ray.job_config

from distributed_autolora.errors import UserError

TESTED = "2.60"
_INSTALLED = ("site-packages", "dist-packages")
_ADVICE = "`pip install -c constraints.txt -e .` installs the tested version"

try:
    import ray._private.utils
    from ray._private import ray_constants
    from ray._private.authentication.authentication_utils import is_token_auth_enabled
    from ray._private.worker import get_dashboard_url
    from ray.train.torch.config import _set_torch_distributed_env_vars as set_torch_distributed_env_vars
    from ray.train.torch.config import _setup_torch_process_group as setup_torch_process_group
    from ray.train.torch.config import _TorchBackend as TorchBackend
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
except ImportError as error:
    raise UserError(f"Ray {ray.__version__} lacks what Ray {TESTED} has ({error}): {_ADVICE}.") from error

__all__ = [
    "TESTED",
    "DriverPath",
    "TorchBackend",
    "WorkerGroupStartupFailedError",
    "get_dashboard_url",
    "is_token_auth_enabled",
    "own_path",
    "ray_constants",
    "set_torch_distributed_env_vars",
    "setup_torch_process_group",
    "untested",
    "without_sigterm_handler",
]


class DriverPath(ray.job_config.JobConfig):  # type: ignore[misc]
    """The settings of a job whose workers import from where this program imports.

    Ray puts the current folder before all others in its workers' path: a `torch.py` or a clone of timm there would be
    what they import, and not this program. Jobs that bring a working folder of their own keep Ray's rule.
    """

    def _runtime_env_has_working_dir(self) -> bool:
        """Tells Ray to add no folder by itself; it asks when it knows the job's runtime environment."""
        if not super()._runtime_env_has_working_dir():
            self._py_driver_sys_path = own_path(sys.path)
        return True


def own_path(path: Sequence[str]) -> list[str]:
    """Returns the folders of an import path that are not Python's own, the last one first, as workers insert them."""
    base = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    places = [os.path.abspath(place) for place in path if not place.endswith(".zip")]
    own = [place for place in places if not place.startswith(base) and Path(place).name not in _INSTALLED]
    return own[::-1]


@contextlib.contextmanager
def without_sigterm_handler() -> Iterator[None]:
    """Keeps `ray.init` from its handler of SIGTERM, which ends the process at once with a meaningless status."""
    before = ray._private.utils.set_sigterm_handler
    ray._private.utils.set_sigterm_handler = lambda _handler: None
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler = before


def untested(version: str) -> str:
    """Returns a warning for a version of Ray whose internals were not tested; empty for the tested one."""
    if version == TESTED or version.startswith(f"{TESTED}."):
        return ""
    return f"Ray {version} is installed, but this package was tested with the internals of Ray {TESTED}: {_ADVICE}."


def submit_job(submit: Callable[..., object], timeout_s: float = 120.0, **job: object) -> None:
    """Submits a job by `JobSubmissionClient.submit_job`, as soon as the cluster's agent for jobs has started.

    Raises:
        RuntimeError: when the job is not taken.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            submit(**job)
            return
        except RuntimeError as error:
            # The server itself waits for the agent for 10 s.
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise

"""All names of Ray that are not part of its public interface, and the version that they were tested with.

The format of Ray Train's checkpoint index is internal as well: `runs/ray_checkpoints.py` reads it.
"""

import ray

from distributed_autolora.errors import UserError

TESTED = "2.60"
_ADVICE = "`pip install -c constraints.txt -e .` installs the tested version"

try:
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
    "TorchBackend",
    "WorkerGroupStartupFailedError",
    "get_dashboard_url",
    "is_token_auth_enabled",
    "ray_constants",
    "set_torch_distributed_env_vars",
    "setup_torch_process_group",
    "untested",
]


def untested(version: str) -> str:
    """Returns a warning for a version of Ray whose internals were not tested; empty for the tested one."""
    if version == TESTED or version.startswith(f"{TESTED}."):
        return ""
    return f"Ray {version} is installed, but this package was tested with the internals of Ray {TESTED}: {_ADVICE}."

"""Which Ray cluster a call uses."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from distributed_autolora.console import called_from_python


@contextlib.contextmanager
def ray_at(address: str | None) -> Iterator[None]:
    """Sets $RAY_ADDRESS within the block, None: leaves it; messages name arguments instead of flags."""
    before = os.environ.get("RAY_ADDRESS")
    if address is not None:
        os.environ["RAY_ADDRESS"] = address
    threads = torch.get_num_threads()
    try:
        with called_from_python():
            yield
    finally:
        torch.set_num_threads(threads)
        if address is not None:
            os.environ.pop("RAY_ADDRESS")
            os.environ |= {} if before is None else {"RAY_ADDRESS": before}

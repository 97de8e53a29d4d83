"""TWINS on several workers: the frozen half is the global batch's, whatever rows a worker holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distributed_autolora.core.twins import Twins
from distributed_autolora.data.sampler import worker_share
from distributed_autolora.training.distributed import batch_norm, collectives
from tests.reference.networks import BASIC, batch, build
from tests.training.gloo import run_workers

BATCHES = (7, 3, 2, 1)
"""With 2 workers: both hold both halves; one has no frozen row; one has no adaptive row; one has none."""


def trajectory(gamma: float) -> dict[str, Any]:
    """Takes SGD steps on this worker's share of fixed batches; returns gradients of every step and the last state."""
    twins = Twins(build(BASIC), twins_gamma=gamma)
    batch_norm.globalize_batch_norm(twins)
    wrapped = collectives.data_parallel(twins, torch.device("cpu"))
    optimizer = torch.optim.SGD(twins.parameters(), lr=0.05, momentum=0.9)
    rank, world_size = collectives.rank(), collectives.world_size()
    gradients, losses = [], []
    for step, n in enumerate(BATCHES):
        x, _, y = batch(n, seed=step)
        x_adv = batch(n, seed=step + 50)[0]
        rows = worker_share(torch.arange(n), rank, world_size)
        frozen_rows = int((rows < n // 2).sum())
        terms = wrapped(
            x[rows], x_adv[rows], y[rows], denominator=n / world_size, frozen_rows=frozen_rows, global_rows=n
        )
        optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        gradients.append({name: p.grad.clone() for name, p in twins.named_parameters() if p.grad is not None})
        losses.append((collectives.sum_over_workers(torch.stack(list(terms.parts.values()))) / world_size).tolist())
        optimizer.step()
    return {"gradients": gradients, "losses": losses, "state": dict(twins.state_dict())}


@pytest.mark.long  # the default tests hold the same law through the trainer: test_workers_equal_one
def test_two_workers_give_the_trajectory_of_one() -> None:
    alone = trajectory(3.0)
    start = Twins(build(BASIC)).state_dict()
    for worker in run_workers(trajectory, 2, 3.0):
        torch.testing.assert_close(worker["losses"], alone["losses"], rtol=1e-10, atol=1e-12)
        for ours, theirs in zip(alone["gradients"], worker["gradients"], strict=True):
            assert ours.keys() == theirs.keys()
            torch.testing.assert_close(theirs, ours, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(worker["state"], alone["state"], rtol=1e-8, atol=1e-10)
        for name, value in worker["state"].items():
            stays = name.startswith("frozen.") and "running" in name
            assert torch.equal(value, start[name]) == stays, name

"""What a run steers by, checked while it runs: a stronger and different attack on some validation images.

The learning rate follows one cheap attack, and under all rules but "paired" so do the restores and the choice of the
model. A model that masks its gradients from that attack looks robust to it and to nothing else (Athalye et al., 2018);
here the gap shows, and rule "paired" counts what fell.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distributed_autolora.core.attacks import eval_mode
from distributed_autolora.core.keyed_random import keyed_uniform
from distributed_autolora.core.paired_comparison import StrongerCheck
from distributed_autolora.data.splits import stratified_subset
from distributed_autolora.records import MaskingCheck
from distributed_autolora.training.distributed import collectives
from distributed_autolora.training.evaluation import own_batches
from distributed_autolora.training.methods.cost import masking_images
from distributed_autolora.training.methods.registry import build_attack, stronger_attack
from distributed_autolora.training.trainer import Trainer


def check_masking(trainer: Trainer, outcomes: tuple[bool, ...]) -> tuple[MaskingCheck | None, StrongerCheck | None]:
    """Attacks some validation images once more, and returns the counts and which images fell.

    (None, None) where no image is affordable.

    Args:
        trainer: whose model was validated just now, and not restored since.
        outcomes: what its `validate` returned by row.
    """
    rows = trainer.data.split.val.sort().values
    places = _places(trainer, rows)
    if len(places) == 0:
        return None, None
    with trainer.progress.timer.phase("masking"):
        broken = torch.zeros(len(rows), dtype=torch.bool)
        broken[_broken_places(trainer, rows, places)] = True
    withstood = torch.tensor(outcomes)
    fallen = withstood & broken
    images, count = len(places), int(fallen.sum())
    found = MaskingCheck(images=images, robust=int(withstood[places].sum()) - count, broken=count)
    return found, StrongerCheck(fallen, images)


def _places(trainer: Trainer, rows: Tensor) -> Tensor:
    """Returns where the images to check are among the ascending validation rows; the same in all epochs and seeds."""
    config, split = trainer.config, trainer.data.split
    count = masking_images(config, len(split.train), len(split.val))
    return stratified_subset(trainer.data.table.labels[rows], count, config.data.split_seed)


def _broken_places(trainer: Trainer, rows: Tensor, places: Tensor) -> Tensor:
    """Returns which of `places` among `rows` the stronger attack leaves wrong; the same on every worker."""
    config, data, model = trainer.config, trainer.data, trainer.deployed
    trainer.attack_network.refresh(model)
    attack = build_attack(config, stronger_attack(config.eval_attack))
    found = [torch.empty(0, dtype=torch.int64, device=trainer.device)]
    for own in own_batches(places, config.evaluation.batch_size_per_worker):
        x, y = data.plain_batch(rows[own])
        # Training never draws the starts of an epoch 0.
        noise = keyed_uniform(config.seed, "attack", 0, data.to_device(rows[own]), tuple(x.shape[1:]))
        with eval_mode(model), torch.no_grad():
            x_adv = attack(trainer.attack_network, x, y, noise=noise)
            found.append(own.to(trainer.device)[model(x_adv).argmax(1) != y])
    return collectives.gather_rows(torch.cat(found)).cpu()

"""What a run steers by, checked while it runs: a stronger and different attack on some validation images.

The learning rate, the restores and the choice of the model follow one cheap attack. A model that masks its gradients
from that attack looks robust to it and to nothing else (Athalye et al., 2018); here the gap shows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distributed_autolora.core.attacks import eval_mode
from distributed_autolora.core.metrics import AccuracyCount
from distributed_autolora.data.keyed import keyed_uniform
from distributed_autolora.data.splits import stratified_subset
from distributed_autolora.training.checkpoint import snapshot
from distributed_autolora.training.cost import masking_images
from distributed_autolora.training.evaluation import own_batches, sum_counts
from distributed_autolora.training.methods import build_attack, stronger_attack
from distributed_autolora.training.record_keys import MASKING_GAP, MASKING_IMAGES, MASKING_STRONGER
from distributed_autolora.training.trainer import Trainer


def check_masking(trainer: Trainer, outcomes: tuple[bool, ...], epoch: int, *, is_due: bool) -> dict[str, float]:
    """Returns the entries of an epoch's record: the accuracy under both attacks, the gap and the number of images.

    An image withstands both when the evaluation attack and the stronger one leave it right; the gap is the share of the
    images that only the evaluation attack leaves right, so it is never negative. Empty for an epoch without a check.

    Args:
        trainer: whose model was validated just now, and not restored since.
        outcomes: what its `validate` returned by row.
        epoch: from 1.
        is_due: it is checked whatever multiple `evaluation.masking_every` names: the run ends with it, or an older
            state is about to take its place.
    """
    every = trainer.config.evaluation.masking_every
    if every == 0 or (epoch % every and not is_due):
        return {}
    positions = _positions(trainer)
    if len(positions) == 0:
        return {}
    withstood = torch.tensor(outcomes)[positions]
    with trainer.progress.timer.phase("masking"):
        both = _withstand_both(trainer, _ascending(trainer)[positions], withstood)
    return {
        MASKING_STRONGER: both.accuracy,
        MASKING_GAP: (int(withstood.sum()) - both.correct) / both.total,
        MASKING_IMAGES: both.total,
    }


def kept_withstands_more(trainer: Trainer, present: dict[str, float]) -> bool:
    """Tells whether the kept state withstands both attacks on more images than the present one, which stays in place.

    Among many epochs the one that masks its gradients has the best accuracy under the attack that a run steers by.

    Args:
        trainer: whose model was validated just now; an earlier epoch's state is kept.
        present: what `check_masking` found on it, not empty.
    """
    positions = _positions(trainer)
    withstood = trainer.outcomes[trainer.history[-1]["best_epoch"] - 1][positions]
    state = snapshot(trainer.objective)
    trainer.objective.load_state_dict(trainer.best)
    with trainer.progress.timer.phase("masking"):
        kept = _withstand_both(trainer, _ascending(trainer)[positions], withstood)
    trainer.objective.load_state_dict(state)
    return kept.correct > round(present[MASKING_STRONGER] * present[MASKING_IMAGES])


def _ascending(trainer: Trainer) -> Tensor:
    """Returns the validation rows in the order of the outcomes."""
    return trainer.data.split.val.sort().values


def _positions(trainer: Trainer) -> Tensor:
    """Returns the positions of the images to check among the ascending rows; the same in all epochs and seeds."""
    config, split = trainer.config, trainer.data.split
    count = masking_images(config, len(split.train), len(split.val))
    return stratified_subset(trainer.data.table.labels[_ascending(trainer)], count, config.data.split_seed)


def _withstand_both(trainer: Trainer, rows: Tensor, withstood: Tensor) -> AccuracyCount:
    """Counts, over all workers, the rows that `withstood` the evaluation attack and withstand the stronger one."""
    config, data, model = trainer.config, trainer.data, trainer.deployed
    trainer.attack_network.refresh(model)
    attack = build_attack(config, stronger_attack(config.eval_attack))
    count = AccuracyCount()
    for places in own_batches(torch.arange(len(rows)), config.evaluation.batch_size_per_worker):
        x, y = data.plain_batch(rows[places])
        # Training never draws the starts of an epoch 0.
        noise = keyed_uniform(config.seed, "attack", 0, data.to_device(rows[places]), tuple(x.shape[1:]))
        with eval_mode(model), torch.no_grad():
            x_adv = attack(trainer.attack_network, x, y, noise=noise)
            right = (model(x_adv).argmax(1) == y).cpu()
        count += AccuracyCount(int((right & withstood[places]).sum()), len(places))
    return sum_counts(count, trainer.device)

"""Check of the evaluation attack by two stronger ones on some validation images, while a run trains.

The learning rate follows the evaluation attack, and so do restores and the choice of the model. A network that masks
its gradients looks robust to that attack only (Athalye et al., 2018). That shows in what larger and more steps from
another start find on the same loss; what another loss finds beyond that is no sign of masking. Rule "paired" counts
the images that break under either.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.core.attacks import eval_mode
from distributed_autolora.core.keyed_random import keyed_uniform
from distributed_autolora.core.paired_comparison import StrongerCheck
from distributed_autolora.data.splits import stratified_subset
from distributed_autolora.records import MaskingCheck
from distributed_autolora.training.attacks import Attacks
from distributed_autolora.training.distributed import collectives
from distributed_autolora.training.epoch import PhaseSeconds
from distributed_autolora.training.evaluation import own_batches
from distributed_autolora.training.methods.cost import masking_images
from distributed_autolora.training.task_data import TaskData

FOSC_LIMIT = 0.12
"""Mean first-order stationarity of an evaluation attack above which gradients may be masked, in nats.

From docs/results/masking-calibration: between the highest of a state that hides nothing and the lowest of another.
"""


@dataclass(frozen=True)
class CheckResult:
    """What the stronger attacks found: counts for the record, and outcomes by image for the schedule."""

    counts: MaskingCheck
    by_image: StrongerCheck


def check_masking(
    config: ExperimentConfig,
    model: nn.Module,
    attacks: Attacks,
    data: TaskData,
    outcomes: Tensor,
    timer: PhaseSeconds | None = None,
) -> CheckResult | None:
    """Attacks some validation images by both stronger attacks; None where no image is affordable."""
    rows = data.split.val.sort().values
    count = masking_images(config, len(data.split.train), len(rows))
    # The same images in all epochs and seeds.
    places = stratified_subset(data.table.labels[rows], count, config.data.split_seed)
    if len(places) == 0:
        return None
    broken, device = torch.zeros(2, len(rows), dtype=torch.bool), next(model.parameters()).device
    found = [torch.empty((0, 3), dtype=torch.int64, device=device)]
    with (timer or PhaseSeconds()).phase("masking"):
        shares = list(own_batches(places, config.evaluation.batch_size_per_worker))
        for own, (_, x, y) in zip(shares, data.plain_batches(rows[own] for own in shares), strict=True):
            # Training never draws the starts of an epoch 0.
            noise = keyed_uniform(config.seed, "attack", 0, data.to_device(rows[own]), tuple(x.shape[1:]))
            with eval_mode(model), torch.no_grad():
                adversarial = (attack(model, x, y, noise=noise) for attack in (attacks.same_loss, attacks.other_loss))
                wrong = [model(x_adv).argmax(1) != y for x_adv in adversarial]
            found.append(torch.stack([own.to(device), *wrong], 1))
        places, *wrong = collectives.gather_rows(torch.cat(found)).cpu().unbind(1)
        broken[:, places] = torch.stack(wrong).bool()
    same_loss, other_loss = outcomes & broken[0], outcomes & broken[1] & ~broken[0]
    images, masked, beyond = len(places), int(same_loss.sum()), int(other_loss.sum())
    counts = MaskingCheck(images, int(outcomes[places].sum()) - masked - beyond, masked, beyond)
    return CheckResult(counts, StrongerCheck(same_loss | other_loss, images))

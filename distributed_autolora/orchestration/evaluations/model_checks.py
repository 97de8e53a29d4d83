"""Checks of a model and an attack on real images, before any work starts."""

import torch

from distributed_autolora.data.augmentation import to_unit_interval
from distributed_autolora.data.images import ImageSource
from distributed_autolora.data.parquet.reader import ImageTable
from distributed_autolora.errors import UserError, first_line
from distributed_autolora.evaluation.attacks import CORRUPTIONS, SQUARE_TOO_SMALL, NamedAttack, takes_square
from distributed_autolora.evaluation.corruptions import Corruptions, find_corruptions
from distributed_autolora.orchestration.evaluations.model_source import FoundModel
from distributed_autolora.orchestration.evaluations.request import EvaluationRequest
from distributed_autolora.orchestration.evaluations.transfer import AdversarialFile, check_adversarial
from distributed_autolora.orchestration.evaluations.worker import EvaluationTask


def check_inputs(
    task: EvaluationTask, found: FoundModel, surrogate: FoundModel | AdversarialFile | None, images: ImageSource
) -> None:
    """Refuses models that do not take these images, adversarial images of others, and Square on too small ones.

    Raises:
        UserError: for those, and for a model with another number of classes or non-finite outputs.
    """
    for model in (found, surrogate):
        if isinstance(model, FoundModel):
            _check_model(model, images)
    if isinstance(surrogate, AdversarialFile):
        check_adversarial(surrogate, task.table_digest, task.threat_model)
    _check_square(task, images)


def find_corruptions_of(
    request: EvaluationRequest, attacks: tuple[NamedAttack, ...], table: ImageTable, images: ImageSource
) -> Corruptions | None:
    """Finds the corrupted images that a request asks for; None where it asks for none.

    Raises:
        UserError: for a superfluous --corruptions, else as `find_corruptions`.
    """
    if not any(attack.name == CORRUPTIONS for attack in attacks):
        if request.corruptions is not None:
            raise UserError(f"--corruptions is for the name {CORRUPTIONS}: add it to --attacks, or leave the flag out.")
        return None
    shape = tuple(images.images(torch.zeros(1, dtype=torch.int64)).shape[1:])
    return find_corruptions(request.corruptions, table.labels, shape, request.seed)


def _check_model(found: FoundModel, images: ImageSource) -> None:
    rows, num_classes = torch.tensor([0, len(images.table) - 1]), len(images.table.class_names)
    x = to_unit_interval(images.images(rows))
    shape = " x ".join(str(side) for side in x.shape[1:])
    try:
        with torch.no_grad():
            logits = found.model.build()(x)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"The model {found.name} does not take images of {shape} ({first_line(error)[:120]}). Give the "
            "--image-size that it takes, and for a state dict its --mean and --std, one entry a channel."
        ) from None
    if logits.shape != (2, num_classes):
        raise UserError(
            f"The model {found.name} gives outputs of shape {list(logits.shape[1:])}, but {images.table.where} has "
            f"{num_classes} classes: give the model that was trained for this data."
        )
    if not bool(logits.isfinite().all()):
        raise UserError(
            f"The model {found.name} gives outputs that are not finite: give weights from before training diverged."
        )


def _check_square(task: EvaluationTask, images: ImageSource) -> None:
    sides = images.images(torch.zeros(1, dtype=torch.int64)).shape[2:]
    for attack in task.attacks:
        if "square" in attack.parts and not takes_square(task.threat_model, sides):
            raise UserError(f'The attack "{attack.name}" cannot run: {SQUARE_TOO_SMALL}. Give apgd-ce,apgd-t,fab-t.')

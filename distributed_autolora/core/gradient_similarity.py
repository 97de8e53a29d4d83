"""Gradient similarity of the natural and the adversarial objective (Eq. 3 and 4).

It is the cosine between the gradient of the cross-entropy on a natural image and the gradient of the KL
divergence to its adversarial variant, over every parameter of the feature extractor; the head is left
out. TWINS adds gamma times the loss of its frozen path to both, and its feature extractor is that of
the adaptive network: the shared weights and the adaptive affine, without the frozen path's own affine.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distributed_autolora.core.attacks import eval_mode
from distributed_autolora.core.lora import is_parameter_of, layer_name
from distributed_autolora.core.losses import soft_label_kl
from distributed_autolora.core.objectives import Twins, VanillaRFT


def gradient_similarity(objective: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, *, head: str = "fc") -> Tensor:
    """Returns the cosine of the two gradients of each image, [n] in float64 and in [-1, 1] (Eq. 3 and 4).

    Batch norm is in eval mode, so that a row does not depend on the others. A row with a gradient of
    exactly zero (x_adv equal to x, or a loss of 0) has no direction to compare, and the similarity 0.
    The weights, gradients and modes of `objective` stay as they were, and no collective runs.

    Args:
        objective: `VanillaRFT` (Eq. 3) or `Twins` (Eq. 4); its soft labels are those of its KL part.
        head: name of the classification layer inside the objective's backbone.

    Raises:
        TypeError: for an objective that this is not defined for. AutoLoRa is one: its feature extractor
            never sees the natural objective.
        ValueError: when there is no such head.
    """
    # One row at a time: on CPUs, `vmap` took as long on a small ResNet and 1.5 to 3 times as long on ResNet-18.
    rows = [
        batch_gradient_similarity(objective, x[i : i + 1], x_adv[i : i + 1], y[i : i + 1], head=head)
        for i in range(len(y))
    ]
    return torch.stack(rows) if rows else x.new_zeros(0, dtype=torch.float64)


def batch_gradient_similarity(objective: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, *, head: str = "fc") -> Tensor:
    """Returns the cosine of the two gradients of a whole batch, a float64 scalar in [-1, 1].

    An approximation of the mean of `gradient_similarity` at the price of one row's two backward passes
    a batch. It need not be close: where the gradients of single images differ, they cancel in the sum.

    Args and Raises: as `gradient_similarity`; the similarity of no rows is 0.
    """
    paths = _paths(objective)
    head = layer_name(objective.get_submodule("backbone"), head)
    named = objective.get_submodule("backbone").named_parameters()
    extractor = [parameter for name, parameter in named if not is_parameter_of(name, head)]
    with eval_mode(objective), torch.enable_grad():
        natural_loss = kl_loss = x.new_zeros((), dtype=torch.float64)
        for weight, logits in paths:
            # KL is the small difference of large terms: in float32 its gradient would be full of rounding.
            natural, adversarial = logits(x).double(), logits(x_adv).double()
            natural_loss = natural_loss + weight * F.cross_entropy(natural, y, reduction="sum")
            kl = soft_label_kl(natural, adversarial, str(objective.soft_labels))
            # Where KL is 0 its gradient is too, but rounding would give it a direction; ReLU's is 0 there.
            kl_loss = kl_loss + weight * F.relu(kl).sum()
        return _unit_gradient(natural_loss, extractor) @ _unit_gradient(kl_loss, extractor)


def _paths(objective: nn.Module) -> list[tuple[float, Callable[[Tensor], Tensor]]]:
    if isinstance(objective, Twins):
        return [(1.0, objective.backbone), (objective.twins_gamma, objective.frozen_logits)]
    if isinstance(objective, VanillaRFT):
        return [(1.0, objective.backbone)]
    raise TypeError(
        f"the gradient similarity is defined for VanillaRFT and Twins, not for {type(objective).__name__}: "
        "both objectives must train the feature extractor"
    )


def _unit_gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Returns the gradient as one vector of length 1 in float64; zeros stay zeros."""
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    # In float64 the squares of small float32 gradients do not vanish.
    gradient = torch.cat([part.flatten().double() for part in found])
    return F.normalize(gradient, dim=0, eps=torch.finfo(gradient.dtype).tiny)

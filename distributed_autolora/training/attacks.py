"""A run's attacks, searched on the folded, low-precision copy of the attacked model (the attack network)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn

from distributed_autolora.config import AttackConfig, ExperimentConfig
from distributed_autolora.core.attacks import LOSSES, first_order_stationarity, halving_pgd, input_gradient, pgd
from distributed_autolora.core.fast_attack.attack_network import AttackNetwork
from distributed_autolora.core.fast_attack.cuda_graphs import Capture, CudaGraphAttack
from distributed_autolora.core.fast_attack.tf32 import allow_tf32
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.hardware import dtype_of
from distributed_autolora.records import pgd_name

Attack = Callable[..., Tensor]
"""attack(model, x, y, *, noise=None) -> x_adv."""


class FastAttack:
    """An attack on a model, searched on its attack network.

    Every call first copies the model's current weights into the network: an attack never meets stale ones.
    """

    def __init__(self, network: AttackNetwork, search: Attack) -> None:
        self._network, self._search = network, search

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, noise: Tensor | None = None) -> Tensor:
        """Returns adversarial variants of [n, C, H, W] images; n may be 0."""
        self._network.refresh(model)
        return self._search(self._network, x, y, noise=noise)


Stationarity = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""stationarity(model, x, x_adv, y) -> FOSC of every image, [n] (`core.attacks.first_order_stationarity`)."""


@dataclass(frozen=True)
class Attacks:
    """The attacks of a run on one attack network; the last two check `evaluation` for masked gradients."""

    network: AttackNetwork
    train: Attack
    evaluation: Attack
    same_loss: Attack
    """`evaluation` with another start, more steps and larger ones: what it alone finds, masked gradients hide."""
    other_loss: Attack
    """The same on the other loss of `LOSSES`: the margin, for a run whose attack maximises the cross-entropy."""
    stationarity: Stationarity
    """Of the results of `evaluation`."""


def build_attacks(
    config: ExperimentConfig, model: nn.Module, deployed: nn.Module, capture: Capture | None = None
) -> Attacks:
    """Returns the attacks on a model and on others of its structure.

    Args:
        model: what the training attack is captured on.
        deployed: what the evaluation attack is captured on: `model`, or its moving average.
        capture: such as `CudaGraphs`; None: every attack runs eagerly. Tensors of both models must stay where they
            are: a replay reads the current weights there.
    """
    network = AttackNetwork(model, dtype_of(config.compute.attack_precision))
    train, evaluation = (build_attack(config, attack) for attack in (config.train_attack, config.eval_attack))
    own = config.eval_attack.loss
    same_loss, other_loss = (_checking_attack(config, loss) for loss in sorted(LOSSES, key=own.__ne__))
    found = Attacks(
        network=network,
        train=FastAttack(network, train),
        evaluation=FastAttack(network, evaluation),
        same_loss=FastAttack(network, same_loss),
        other_loss=FastAttack(network, other_loss),
        stationarity=_stationarity(config, network),
    )
    if capture is None:
        return found
    captured = CudaGraphAttack(found.train, model, capture), CudaGraphAttack(found.evaluation, deployed, capture)
    return replace(found, train=captured[0], evaluation=captured[1])


def _stationarity(config: ExperimentConfig, network: AttackNetwork) -> Stationarity:
    threat_model = ThreatModel(config.threat_model.norm, config.threat_model.epsilon)

    def stationarity(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        network.refresh(model)
        gradient = input_gradient(network, x_adv, y, loss=config.eval_attack.loss)
        return first_order_stationarity(x, x_adv, gradient, threat_model)

    return stationarity


def build_attack(config: ExperimentConfig, attack: AttackConfig) -> Attack:
    """Returns the attack as a search on the very model that it is given."""
    threat_model = ThreatModel(config.threat_model.norm, config.threat_model.epsilon)

    def search(model: nn.Module, x: Tensor, y: Tensor, *, noise: Tensor | None = None) -> Tensor:
        with allow_tf32(x.device.type == "cuda"):
            return pgd(model, x, y, threat_model=threat_model, noise=noise, **vars(attack))

    return search


def attack_name(attack: AttackConfig) -> str:
    """Returns the name that accuracies under this attack are logged under."""
    return pgd_name(attack.num_steps, loss=attack.loss)


def checking_steps(attack: AttackConfig) -> int:
    """Returns the steps of each of the two attacks that check another: twice as many."""
    return 2 * attack.num_steps


def _checking_attack(config: ExperimentConfig, loss: str) -> Attack:
    threat_model = ThreatModel(config.threat_model.norm, config.threat_model.epsilon)
    search = partial(halving_pgd, threat_model=threat_model, num_steps=checking_steps(config.eval_attack), loss=loss)

    def attack(model: nn.Module, x: Tensor, y: Tensor, *, noise: Tensor | None = None) -> Tensor:
        with allow_tf32(x.device.type == "cuda"):
            return search(model, x, y, noise=noise)

    return attack

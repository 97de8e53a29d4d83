"""Another name of `distributed_autolora.core.fast_attack.attack_network`."""

from distributed_autolora.core.fast_attack.attack_network import AttackNetwork

__all__ = ["AttackNetwork"]

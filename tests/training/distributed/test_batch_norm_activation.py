"""timm's batch norms apply an activation themselves; over several workers they still do."""

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from distributed_autolora.core.fast_attack.attack_network import AttackNetwork
from distributed_autolora.training.distributed import batch_norm, collectives
from tests.training.gloo import run_workers

ROWS = 7


def network() -> nn.Sequential:
    torch.manual_seed(0)
    norm = BatchNormAct2d(4, act_layer=nn.SiLU)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten(), nn.Linear(36, 2)).double()


def images() -> Tensor:
    return torch.rand(ROWS, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def measured(model: nn.Sequential, rows: Tensor) -> dict[str, Tensor]:
    """Returns what the batch norm and the whole network give for rows in train and in eval mode, and the gradients."""
    x = images()[rows]
    found = {"norm": model[:2](x)}
    model(x).square().sum().backward()
    found |= {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    found |= dict(model.named_buffers())
    found["eval"] = model.eval()(x)
    attack_network = AttackNetwork(model)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in attack_network.modules())
    found["attacked"] = attack_network(x)
    return {name: value.detach() for name, value in found.items()}


def on_a_worker() -> dict[str, Tensor]:
    model = network()
    names = list(model.state_dict())
    batch_norm.globalize_batch_norm(model)
    assert isinstance(model[1], batch_norm.GlobalBatchNorm)
    assert list(model.state_dict()) == names
    return measured(model, torch.arange(ROWS)[collectives.rank() :: 2])


def test_two_workers_activate_as_one_does() -> None:
    one, workers = measured(network(), torch.arange(ROWS)), run_workers(on_a_worker, 2)
    assert one["norm"].min() > -0.3, "SiLU is never below -0.28, batch norm is"
    for name, expected in one.items():
        if name.startswith("gradient"):
            # Parameters see their own worker's rows; DistributedDataParallel adds these up.
            torch.testing.assert_close(workers[0][name] + workers[1][name], expected, msg=name)
            continue
        for worker, found in enumerate(workers):
            rows = expected[worker::2] if len(expected.shape) > 1 else expected
            torch.testing.assert_close(found[name], rows, msg=f"{name} of worker {worker}")

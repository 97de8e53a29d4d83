"""The low-rank branch, which the natural images go through (paper, section 4.1)."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def layer_name(backbone: nn.Module, name: str) -> str:
    """Returns the full name of the layer called `name`: that itself, or the one outermost name that ends so.

    Raises:
        ValueError: when there is none, or more than one.
    """
    if name in dict(backbone.named_modules()):
        return name
    found = [full for full, _ in backbone.named_modules() if full.endswith(f".{name}")]
    outermost = min((full.count(".") for full in found), default=0)
    found = [full for full in found if full.count(".") == outermost]
    if len(found) != 1:
        raise ValueError(f'the backbone has {len(found)} layers called "{name}": {found}')
    return str(found[0])


def dotless(name: str) -> str:
    """Returns a module's name as PyTorch's containers accept it as a key: without dots."""
    return name.replace(".", "/")


def dotted(key: str) -> str:
    """Returns the name that `dotless` made a key of."""
    return key.replace("/", ".")


def is_parameter_of(name: str, layer: str) -> bool:
    """Tells whether the parameter called `name` belongs to the layer called `layer`."""
    return name.startswith(f"{layer}.")


def _parameters_of(backbone: nn.Module, layer: str) -> set[str]:
    # By the names that the backbone lists them under: shared ones may have another layer's.
    own = {id(parameter) for parameter in backbone.get_submodule(layer).parameters()}
    return {name for name, parameter in backbone.named_parameters() if id(parameter) in own}


class LowRankBranch(nn.Module):
    """Owns factors A and B for each targeted layer and returns the natural branch's parameters.

    The natural forward is `torch.func.functional_call(backbone, branch.natural_parameters(backbone), (x,))`;
    the backbone itself is untouched, so there is nothing to remove for inference.

    Targeted are the weights of all convolutions and linear layers but the first (stem, patch
    embedding) and the head, each once where layers share it. For a convolution with kernel k: A is
    [r k, (Cin / groups) k], drawn from N(0, 1); B is [Cout k, r k], zero; the weight becomes
    W + reshape(B A) / r. A linear layer has k = 1.

    Args:
        lora_rank: r, at least 1.
        lora_scope: "all", or "last_block": the last block of each stage without its downsampling, which
            is what the released code trains.

    Raises:
        ValueError: for a rank below 1, an unknown scope, a head that does not exist, or no target.
    """

    def __init__(self, backbone: nn.Module, lora_rank: int = 8, lora_scope: str = "all", head: str = "fc") -> None:
        super().__init__()
        if lora_rank < 1:
            raise ValueError(f"lora_rank is {lora_rank}: it must be at least 1")
        self.lora_rank = lora_rank
        self.head = layer_name(backbone, head)
        self._targets = _targets(backbone, self.head, lora_scope)
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        for name in self._targets:
            weight = backbone.get_parameter(f"{name}.weight")
            rows, columns, inner = _factor_sizes(weight, lora_rank)
            self.a[dotless(name)] = nn.Parameter(torch.randn(inner, columns).to(weight))
            self.b[dotless(name)] = nn.Parameter(torch.zeros(rows, inner).to(weight))

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Returns {module name: (A, B)}."""
        return {name: (self.a[dotless(name)], self.b[dotless(name)]) for name in self._targets}

    def natural_parameters(self, backbone: nn.Module) -> dict[str, Tensor]:
        """Returns every parameter of the backbone that the branch was made for, as the natural branch sees it.

        Targeted weights carry the low-rank update; everything but the head and the factors is
        detached, so that the natural objective never moves the feature extractor.
        """
        shared = _parameters_of(backbone, self.head)
        parameters = {
            name: parameter if name in shared else parameter.detach() for name, parameter in backbone.named_parameters()
        }
        for name, (a, b) in self.factors().items():
            weight = parameters[f"{name}.weight"]
            parameters[f"{name}.weight"] = weight + (b @ a).reshape(weight.shape) / self.lora_rank
        return parameters


def _factor_sizes(weight: Tensor, lora_rank: int) -> tuple[int, int, int]:
    """Returns the rows of B, the columns of A, and the inner dimension."""
    height, width = weight.shape[2:] if weight.dim() == 4 else (1, 1)
    return weight.shape[0] * height, weight.shape[1] * width, lora_rank * max(height, width)


def _targets(backbone: nn.Module, head: str, lora_scope: str) -> list[str]:
    layers = [name for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    # A weight that two layers share is listed once; a computed one (weight norm) is no parameter.
    weights = {name for name, _ in backbone.named_parameters()} - _parameters_of(backbone, head)
    targets = [name for name in layers[1:] if f"{name}.weight" in weights]
    if lora_scope == "last_block":
        blocks = _last_blocks(backbone)
        targets = [name for name in targets if name.startswith(blocks) and "downsample" not in name.split(".")]
    elif lora_scope != "all":
        raise ValueError(f'lora_scope is "{lora_scope}": it must be "all" or "last_block"')
    if not targets:
        raise ValueError(f'the backbone has no layer for a low-rank update with lora_scope "{lora_scope}"')
    return targets


def _last_blocks(backbone: nn.Module) -> tuple[str, ...]:
    """Returns the name prefixes of the last child of every stage, a stage being an outermost Sequential."""
    stages: list[str] = []
    blocks = []
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Sequential) and not name.startswith(tuple(f"{stage}." for stage in stages)):
            stages.append(name)
            blocks += [f"{name}.{child}." for child in list(dict(module.named_children()))[-1:]]
    return tuple(blocks)


def _size(*parameters: Tensor) -> int:
    return sum(parameter.numel() for parameter in parameters)


def parameter_ratio(backbone: nn.Module, branch: LowRankBranch, head: str = "fc") -> float:
    """Returns the parameters of the branch over those of the feature extractor, head excluded."""
    head = layer_name(backbone, head)
    extractor = _size(*(p for name, p in backbone.named_parameters() if not is_parameter_of(name, head)))
    return _size(*branch.parameters()) / extractor


def table3_ratio(backbone: nn.Module, branch: LowRankBranch, head: str = "fc") -> float:
    """Returns the ratio as the paper's Table 3 counts it; the table's own numbers have a head of 10 classes.

    It counts the branch, the batch norms called "bn" and the head, over the whole classifier.
    """
    head = layer_name(backbone, head)
    named = dict(backbone.named_parameters())
    norms = [p for name, p in named.items() if "bn" in name]
    heads = [p for name, p in named.items() if is_parameter_of(name, head)]
    return _size(*branch.parameters(), *norms, *heads) / _size(*named.values())


_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class BranchStatistics(nn.Module):
    """Owns running statistics for every batch norm of a backbone, which start as copies of the backbone's.

    Natural images then move these, and adversarial images alone move the backbone's. The affine parameters stay
    shared.

    Raises:
        ValueError: for a backbone without batch-norm statistics.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        for name, module in backbone.named_modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                for buffer in _BUFFERS:
                    self.register_buffer(dotless(f"{name}.{buffer}"), module.get_buffer(buffer).detach().clone())
        if not self._buffers:
            raise ValueError(
                f'branch_batch_norm is "own", but {type(backbone).__name__} has no batch norm with running statistics: '
                'set method.branch_batch_norm to "shared"'
            )

    def by_name(self) -> dict[str, Tensor]:
        """Returns the statistics under the names of the backbone's own; a forward in train mode moves them in place."""
        return {dotted(key): buffer for key, buffer in self.named_buffers()}

"""The frozen, batch-norm-folded, low-precision view of a model that attacks run on.

While an attack runs the weights stand still and batch norm is in eval mode, so a batch norm behind a
convolution is one more linear map of its output and folds into the convolution's weight and bias.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distributed_autolora.core.attacks import eval_mode
from distributed_autolora.core.fast_attack.fused_convolution import FusedConvolution, is_available
from distributed_autolora.core.fast_attack.fusion import fuse, has_hooks

_UNTRACEABLE = (fx.proxy.TraceError, TypeError, RuntimeError, NameError, AttributeError)


def _recorded(operation: Callable[[Any, Any], Any]) -> Callable[[fx.Proxy, object], fx.Proxy]:
    return lambda value, other: value.tracer.create_proxy("call_function", operation, (value, other), {})


class _Value(fx.Proxy):
    """A traced value; torch.fx alone would trace `a += b` as `a = a + b`, which other readers of `a` do not see."""

    __iadd__, __isub__ = _recorded(operator.iadd), _recorded(operator.isub)
    __imul__, __itruediv__ = _recorded(operator.imul), _recorded(operator.itruediv)


class LayerTracer(fx.Tracer):
    """Follows a network as PyTorch runs it; keeps every batch norm whole, subclasses included, so that it can fold."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


def foldable_batch_norms(model: nn.Module) -> dict[str, str]:
    """Returns {convolution name: batch norm name} for each pair that can become one convolution.

    A pair folds when the batch norm is the only reader of the convolution, each is used once, and both compute
    what PyTorch's own do. A model that torch.fx cannot trace has no pairs: its attacks are slower, not different.
    """
    graph = _traced(model)
    nodes = [] if graph is None else list(graph.nodes)
    modules = dict(model.named_modules())
    calls = [node.target for node in nodes if node.op == "call_module"]
    pairs = {}
    for node in nodes:
        source = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(modules[node.target], _BatchNorm):
            continue
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        used_once = calls.count(node.target) == calls.count(source.target) == 1
        if used_once and _has_statistics(modules[node.target]) and _owns_weight(model, str(source.target)):
            pairs[str(source.target)] = str(node.target)
    return pairs


def _owns_weight(model: nn.Module, name: str) -> bool:
    """Tells whether the layer is a convolution whose weight no other layer shares."""
    layer = model.get_submodule(name)
    owners = [p for _, p in model.named_parameters(remove_duplicate=False) if p is getattr(layer, "weight", None)]
    # Subclasses that compute their weight, as weight standardisation does, cannot take a scale into it.
    plain = all(getattr(type(layer), one, 0) is getattr(nn.Conv2d, one) for one in ("forward", "_conv_forward"))
    return isinstance(layer, nn.Conv2d) and plain and len(owners) == 1 and not has_hooks(layer)


def _has_statistics(batch_norm: nn.Module) -> bool:
    return isinstance(batch_norm, _BatchNorm) and batch_norm.running_mean is not None and not has_hooks(batch_norm)


class AttackNetwork(nn.Module):
    """A copy of `model` in eval mode with its batch norms folded, for input gradients only.

    Its storage is made once; `refresh` copies the model's current weights into it in place, so what
    was compiled or captured over it stays valid. Call `refresh` after every change of the model.

    Args:
        precision: float32 or bfloat16; images and logits are float32 either way. float64 models stay float64.
    """

    def __init__(self, model: nn.Module, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        # A plain reference: as a submodule, the model's parameters would be counted and moved twice.
        self._source: tuple[nn.Module] = (model,)
        self._pairs = foldable_batch_norms(model)
        network = copy.deepcopy(model)
        for convolution_name, batch_norm_name in self._pairs.items():
            convolution = network.get_submodule(convolution_name)
            assert isinstance(convolution, nn.Conv2d)
            if convolution.bias is None:
                convolution.bias = nn.Parameter(convolution.weight.new_zeros(convolution.out_channels))
            network.set_submodule(batch_norm_name, _behind(network.get_submodule(batch_norm_name)))
        first = next(network.parameters(), None)
        self._input_dtype = torch.float32 if first is None else first.dtype
        self._dtype = self._input_dtype if self._input_dtype == torch.float64 else precision
        network = network.to(dtype=self._dtype).to(memory_format=torch.channels_last)
        self.network: nn.Module = _fused(network.eval().requires_grad_(False))
        self.refresh()

    @torch.no_grad()
    def refresh(self, source: nn.Module | None = None) -> None:
        """Copies the current weights into the attack network in place, batch norm folded; None: of its own model.

        Another model must have the structure and names of the one that this was made for.
        """
        model = self._source[0] if source is None else source
        weights = dict(model.named_parameters()) | dict(model.named_buffers())
        folded: dict[str, Tensor] = {}
        for convolution, batch_norm in self._pairs.items():
            weight, bias = _fold(model.get_submodule(convolution), model.get_submodule(batch_norm))
            folded[f"{convolution}.weight"], folded[f"{convolution}.bias"] = weight, bias
        targets = dict(self.network.named_parameters()) | dict(self.network.named_buffers())
        for name, target in targets.items():
            target.copy_(folded[name] if name in folded else weights[name])
        for layer in self.network.modules():
            if isinstance(layer, FusedConvolution):
                layer.refresh()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits."""
        x = x.to(dtype=self._dtype, memory_format=torch.channels_last)
        logits: Tensor = self.network(x)
        return logits.to(self._input_dtype)

    def train(self, mode: bool = True) -> AttackNetwork:
        """Stays in eval mode: its batch norms no longer exist."""
        return super().train(False)


def _fused(network: nn.Module) -> nn.Module:
    """Returns the network with fused convolutions where oneDNN computes and torch.fx can follow; else as it is."""
    if not all(is_available(parameter) for parameter in network.parameters()):
        return network
    graph = _traced(network)
    return network if graph is None else fuse(network, graph)


def _traced(model: nn.Module) -> fx.Graph | None:
    try:
        with eval_mode(model):
            return LayerTracer().trace(model)
    except _UNTRACEABLE:
        return None


def _behind(batch_norm: nn.Module) -> nn.Module:
    """Returns what a batch norm does after it normalised: timm's carry their activation as `act`."""
    activation = getattr(batch_norm, "act", None)
    return activation if isinstance(activation, nn.Module) else nn.Identity()


def _fold(convolution: nn.Module, batch_norm: nn.Module) -> tuple[Tensor, Tensor]:
    norm: Any = batch_norm
    layer: Any = convolution
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    bias = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
    bias = bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias
    return layer.weight * scale.view(-1, 1, 1, 1), bias

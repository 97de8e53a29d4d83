"""Convolutions of the attack network on a CPU: with the addition and the ReLU behind them in one oneDNN kernel.

An attack needs gradients of its input alone. For a convolution of stride 1 that gradient is a convolution too,
with the flipped and transposed weight, and oneDNN computes it faster than the backward kernel of the first.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

_kernel = torch.ops.mkldnn._convolution_pointwise
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")


class FusedConvolution(nn.Module):
    """A frozen convolution, the addition of a residual behind it if there is one, and a ReLU.

    Its weight and bias keep the convolution's names; `refresh` must follow every change of them.

    Args:
        convolution: of two dimensions, with a bias and padding by zeros.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        assert not isinstance(convolution.padding, str)
        self.stride, self.padding = list(convolution.stride), list(convolution.padding)
        self.dilation, self.groups = list(convolution.dilation), convolution.groups
        reach = [d * (k - 1) for d, k in zip(self.dilation, self.weight.shape[2:], strict=True)]
        self._flipped_padding = [r - p for r, p in zip(reach, self.padding, strict=True)]
        self.packed, self._packed_flipped = self._pack()

    @torch.no_grad()
    def refresh(self) -> None:
        """Brings the packed copies of the weight up to date, in place; packing spares each call the reordering."""
        packed, flipped = self._pack()
        self.packed.copy_(packed)
        if self._packed_flipped is not None and flipped is not None:
            self._packed_flipped.copy_(flipped)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Returns relu(convolution(x) + residual), [n, Cout, H', W'], differentiable in `x` and `residual` alone."""
        if residual is not None and residual.shape != self._shape(x):
            return F.relu(self._convolve(x) + residual)
        out: Tensor = _Fused.apply(x, residual, self)
        return out

    def input_gradient(self, gradient: Tensor, x: Tensor) -> Tensor:
        """Returns the gradient of `x` [n, Cin, H, W] for that of the convolution's output."""
        if self._packed_flipped is not None:
            geometry = (self._flipped_padding, self.stride, self.dilation, 1)
            return _kernel(gradient, self._packed_flipped, None, *geometry, "none", [], "")  # type: ignore[no-any-return]
        gradients = torch.ops.aten.convolution_backward(
            gradient,
            x,
            self.weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            [0, 0],
            self.groups,
            [True, False, False],
        )
        return gradients[0]  # type: ignore[no-any-return]

    @torch.no_grad()
    def _pack(self) -> tuple[Tensor, Tensor | None]:
        """Returns the weight, and the one of the input gradient where that is a convolution, in oneDNN's layout."""
        pack = torch.ops.mkldnn._reorder_convolution_weight
        packed = pack(self.weight, self.padding, self.stride, self.dilation, self.groups, None)
        if self.stride != [1, 1] or self.groups > 1 or min(self._flipped_padding) < 0:
            return packed, None
        flipped = self.weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
        return packed, pack(flipped, self._flipped_padding, self.stride, self.dilation, 1, None)

    def _convolve(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def _shape(self, x: Tensor) -> tuple[int, ...]:
        kernel = self.weight.shape[2:]
        sides = [
            (x.shape[2 + i] + 2 * self.padding[i] - self.dilation[i] * (kernel[i] - 1) - 1) // self.stride[i] + 1
            for i in range(2)
        ]
        return (x.shape[0], self.weight.shape[0], *sides)


class _Fused(torch.autograd.Function):
    """relu(convolution + residual) with the gradients of the input and of the residual."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, layer: FusedConvolution) -> Tensor:
        geometry = (layer.padding, layer.stride, layer.dilation, layer.groups)
        if residual is None:
            out = _kernel(x, layer.packed, layer.bias, *geometry, "relu", [], "")
        else:
            out = _kernel(x, residual, layer.packed, layer.bias, *geometry, "add", 1.0, "relu", [], "")
        ctx.save_for_backward(x, out)
        ctx.layer, ctx.has_residual = layer, residual is not None
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, out = ctx.saved_tensors
        gradient = torch.ops.aten.threshold_backward(gradients[0], out, 0)
        return ctx.layer.input_gradient(gradient, x), gradient if ctx.has_residual else None, None


def is_available(weight: Tensor) -> bool:
    """Tells whether oneDNN computes convolutions with weights of this kind: on a CPU, not in float64."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    bfloat16 = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 or bool(bfloat16)


def fuse(network: nn.Module, tracer: fx.Tracer) -> nn.Module:
    """Returns `network` with each convolution that only an (addition and a) ReLU reads replaced by a fused one.

    Args:
        network: frozen, in eval mode, without batch norms behind its convolutions; its layers are used, not copied.
        tracer: follows its forward.

    Raises:
        Exceptions of the tracer, for a network that it cannot follow.
    """
    graph = tracer.trace(network)
    modules = dict(network.named_modules())
    tensors = [*network.named_parameters(remove_duplicate=False)]
    is_tied = len(tensors) > len(list(network.parameters()))
    if is_tied or any(node.op == "get_attr" or (node.kwargs and node.op == "call_module") for node in graph.nodes):
        return network  # tracing would rename or bake in tensors that are refreshed by name
    for node in list(graph.nodes):
        if node.op == "call_module" and type(modules[node.target]) is nn.Identity:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    for node in list(graph.nodes):
        found = _fusible(node, modules, calls)
        if found is None:
            continue
        convolution, residual = found
        name = str(convolution.target)
        layer = modules[name]
        assert isinstance(layer, nn.Conv2d)
        network.set_submodule(name, FusedConvolution(layer))
        with graph.inserting_before(node):
            fused = graph.call_module(name, (convolution.args[0], *([] if residual is None else [residual])))
        node.replace_all_uses_with(fused)
        for replaced in (node, node.args[0], convolution):
            if replaced in graph.nodes:
                graph.erase_node(replaced)
    return fx.GraphModule(network, graph)


def _fusible(node: fx.Node, modules: dict[str, nn.Module], calls: list[Any]) -> tuple[fx.Node, fx.Node | None] | None:
    """Returns the convolution and the residual that this node is the ReLU of, or None."""
    if not node.args or not _is_relu(node, modules) or not isinstance(before := node.args[0], fx.Node) or len(before.users) > 1:
        return None
    if _is_plain_convolution(before, modules, calls):
        return before, None
    if before.target not in _ADDITIONS or before.kwargs or len(before.args) != 2:
        return None
    operands = [operand for operand in before.args if isinstance(operand, fx.Node)]
    for operand in operands if len(set(operands)) == 2 else []:
        if len(operand.users) == 1 and _is_plain_convolution(operand, modules, calls):
            return operand, operands[1 - operands.index(operand)]
    return None


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(modules[str(node.target)]) is nn.ReLU
    return node.op in ("call_function", "call_method") and node.target in _RELUS


def _is_plain_convolution(node: fx.Node, modules: dict[str, nn.Module], calls: list[Any]) -> bool:
    if node.op != "call_module" or calls.count(node.target) > 1:
        return False
    layer = modules[str(node.target)]
    return (
        type(layer) is nn.Conv2d
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.bias is not None
    )

"""Convolutions of the attack network on a CPU: with the addition and the ReLU behind them in one oneDNN kernel.

An attack needs gradients of its input alone. For a convolution of stride 1 that gradient is a convolution too,
with the flipped and transposed weight, and oneDNN computes it faster than the backward kernel of the first.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_kernel = torch.ops.mkldnn._convolution_pointwise


class FusedConvolution(nn.Module):
    """A frozen 2-d convolution with a bias and zero padding, the addition of a residual if there is one, and a ReLU.

    Its weight and bias keep the convolution's names; `refresh` must follow every change of them. It cannot be
    copied or pickled: oneDNN's packed weights have no storage of PyTorch's.
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
        layer = (self.stride, self.padding, self.dilation, False, [0, 0], self.groups)
        gradients = torch.ops.aten.convolution_backward(gradient, x, self.weight, None, *layer, [True, False, False])
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

"""Finds the convolutions of a traced network that one fused layer can compute with what follows them."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from distributed_autolora.core.fast_attack.fused_convolution import FusedConvolution

_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")


def fuse(network: nn.Module, graph: fx.Graph) -> nn.Module:
    """Returns `network` with each convolution that only an (addition and a) ReLU reads replaced by a fused one.

    Returns `network` itself where nothing can be fused, or where tracing renamed or baked in tensors that
    are refreshed by name.

    Args:
        network: frozen, in eval mode, without batch norms behind its convolutions; its layers are used, not copied.
        graph: its forward, as torch.fx traced it; it is rewritten.
    """
    modules = dict(network.named_modules())
    if _names_change(network, graph) or any(node.kwargs and node.op == "call_module" for node in graph.nodes):
        return network
    for node in list(graph.nodes):
        if node.op == "call_module" and type(modules[node.target]) is nn.Identity:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    nodes = list(graph.nodes)
    is_changed = False
    for node in nodes:
        if (pair := _fusible(node, nodes, modules)) is not None:
            _replace(network, graph, node, *pair)
            is_changed = True
    return fx.GraphModule(network, graph) if is_changed else network


def _names_change(network: nn.Module, graph: fx.Graph) -> bool:
    """Tells whether the rewritten network would hold a tensor that `network` does not hold under the same name."""
    is_tied = len(list(network.named_parameters(remove_duplicate=False))) > len(list(network.parameters()))
    names = dict(network.named_parameters()) | dict(network.named_buffers())
    return is_tied or any(node.op == "get_attr" and node.target not in names for node in graph.nodes)


def has_hooks(layer: nn.Module) -> bool:
    """Tells whether more than `forward` runs when the layer is called: a hook may compute its weight or its output."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def _replace(
    network: nn.Module, graph: fx.Graph, relu: fx.Node, convolution: fx.Node, residual: fx.Node | None
) -> None:
    """Puts one fused layer, under the convolution's name, in the place of `relu` and what it alone reads."""
    name = str(convolution.target)
    layer = network.get_submodule(name)
    assert isinstance(layer, nn.Conv2d)
    network.set_submodule(name, FusedConvolution(layer))
    with graph.inserting_before(relu):
        fused = graph.call_module(name, (convolution.args[0], *([] if residual is None else [residual])))
    before = relu.args[0]
    relu.replace_all_uses_with(fused)
    for replaced in dict.fromkeys((relu, before, convolution)):
        assert isinstance(replaced, fx.Node)
        graph.erase_node(replaced)


def _fusible(
    relu: fx.Node, nodes: list[fx.Node], modules: dict[str, nn.Module]
) -> tuple[fx.Node, fx.Node | None] | None:
    before = relu.args[0] if relu.args and _is_relu(relu, modules) else None
    if not isinstance(before, fx.Node) or len(before.users) > 1:
        return None
    pairs = [(before, None), *_summands(before)]
    for convolution, residual in pairs:
        if len(convolution.users) == 1 and _is_plain_convolution(convolution, nodes, modules):
            # The fused layer reads its inputs where the ReLU stands: nothing may change them on the way.
            way = nodes[nodes.index(convolution) + 1 : nodes.index(relu)]
            if not any(_changes_its_input(node, modules) for node in way if node is not before):
                return convolution, residual
    return None


def _summands(addition: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """Returns the two values that the node adds, in both orders; nothing for another node."""
    if addition.target not in _ADDITIONS or addition.kwargs or len(addition.args) != 2:
        return []
    first, second = addition.args
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node) or first is second:
        return []
    is_read_afterwards = addition.target in (operator.iadd, "add_") and len(first.users) > 1
    return [] if is_read_afterwards else [(first, second), (second, first)]


def _changes_its_input(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return any(getattr(layer, "inplace", False) for layer in modules[str(node.target)].modules())
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    writes = name.endswith("_") or name in ("setitem", "iadd", "isub", "imul", "itruediv")
    is_told_to = node.kwargs.get("inplace") or any(argument is True for argument in node.args)
    return writes or bool(is_told_to) or "out" in node.kwargs


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        layer = modules[str(node.target)]
        return type(layer) is nn.ReLU and not has_hooks(layer)
    return node.op in ("call_function", "call_method") and node.target in _RELUS


def _is_plain_convolution(node: fx.Node, nodes: list[fx.Node], modules: dict[str, nn.Module]) -> bool:
    if node.op != "call_module" or [other.target for other in nodes].count(node.target) > 1:
        return False
    layer: Any = modules[str(node.target)]
    return (
        type(layer) is nn.Conv2d
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.bias is not None
        and not has_hooks(layer)
    )

"""Extraction of a classifier's state dict from the layouts that training programs write.

Known are a plain state dict; one inside a dict with an optimiser and the like; names behind the prefixes of wrappers
(DataParallel, torch.compile, RobustBench); normalisers inside the model; and MadryLab's `AttackerModel`, which holds
the classifier twice. Every name is accounted for.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distributed_autolora.errors import UserError

State = dict[str, Tensor]

_WRAPPERS = ("module", "_orig_mod", "model", "net", "network", "backbone", "1")
"""Names of the wrapped network in wrappers; "1" is the second part of a Sequential."""
_MEANS = ("mean", "mu", "new_mean")
_STDS = ("std", "sigma", "new_std")
_ATTACKER = "attacker."


@dataclass(frozen=True)
class Checkpoint:
    """A classifier's weights under its own names, and the input normalisation that the file states, if any."""

    state: State
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The text fields of a safetensors file."""


def checkpoint_of(where: str, content: Any, metadata: Mapping[str, str]) -> Checkpoint:
    """Finds the classifier in what a file holds; floating-point weights become float32.

    Args:
        content: a state dict, or a dict that holds one beside other things.
        metadata: texts beside it; "mean" and "std" as JSON lists state the normalisation.

    Raises:
        UserError: when there is none or more than one, when the copies in it differ, or for NaN or infinite values.
    """
    tensors = {name: value.detach() for name, value in _only_state_dict(where, content).items()}
    _refuse_complex(where, tensors)
    state = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise UserError(
            f"Weights: {where} holds NaN or infinite values in {len(broken)} tensors, first {broken[0]}: "
            "use a checkpoint from before the run diverged."
        )
    state = _unwrapped(state, ("module", "_orig_mod"))
    if any(name.startswith(_ATTACKER) for name in state):
        state = _without_attacker(where, state)
    # A normaliser's mean and standard deviation: one value a channel, outside any layer.
    named = {
        name
        for name, value in state.items()
        if name.split(".")[-1] in (*_MEANS, *_STDS) and name.count(".") <= 1 and value.numel() in (1, 3)
    }
    mean = _agreed(where, "mean", [state[name] for name in named if name.split(".")[-1] in _MEANS])
    std = _agreed(where, "std", [state[name] for name in named if name.split(".")[-1] in _STDS])
    rest = {name: value for name, value in state.items() if name not in named}
    mean, std = mean or _floats(stated(metadata, "mean")), std or _floats(stated(metadata, "std"))
    return Checkpoint(_unwrapped(rest, _WRAPPERS), mean, std, metadata)


def _refuse_complex(where: str, tensors: State) -> None:
    found = [name for name, value in tensors.items() if value.is_complex()]
    if found:
        raise UserError(
            f"Weights: {where} holds complex numbers, first in {found[0]}: networks of this kind have none."
        )


def _only_state_dict(where: str, content: Any) -> State:
    if _is_state_dict(content):
        return dict(content)
    entries = content.items() if isinstance(content, Mapping) else ()
    inside = {key: value for key, value in entries if _is_state_dict(value)}
    if len(inside) == 1:
        return dict(next(iter(inside.values())))
    found = f"it holds {len(inside)}: {', '.join(map(str, inside))}" if inside else "it holds none"
    raise UserError(
        f"Weights: {where} does not hold a plain state dict of tensors, alone or as one entry of a dict ({found}). "
        "Save the network's state_dict() alone."
    )


def _is_state_dict(content: Any) -> bool:
    if not isinstance(content, Mapping) or not content:
        return False
    return all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())


def _unwrapped(state: State, wrappers: Iterable[str]) -> State:
    """Removes the first name part while all tensors share it and it is a wrapper's."""
    while state and all("." in name for name in state):
        first = {name.partition(".")[0] for name in state}
        if len(first) > 1 or not first <= set(wrappers):
            break
        state = {name.partition(".")[2]: value for name, value in state.items()}
    return state


def taken_out(where: str, state: State, names: Collection[str]) -> State:
    """Returns a network's tensors under its own names, out of a file that holds them behind a prefix and others beside.

    Such are a loss's weights in a Lightning checkpoint, counters of averaged models, and OpenMMLab's backbone and head.
    Tensors behind the prefix that are not among `names`, all that the network needs, are kept; others are dropped. A
    state dict without the network, or with nothing before its names, comes back as it is.

    Raises:
        UserError: when the network is there more than once.
    """
    anchor = max(names, key=len, default="")
    if not anchor or anchor in state:
        return state
    found = {}
    for prefix in sorted(key.removesuffix(anchor) for key in state if key.endswith(f".{anchor}")):
        absent = [name for name in names if prefix + name not in state]
        elsewhere = _head_elsewhere(state, absent) if absent else {}
        if elsewhere is not None:
            inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            found[prefix] = inside | elsewhere
    if len(found) > 1:
        raise UserError(
            f"Weights: {where} holds the network {len(found)} times, under {' and '.join(found)}. Save the "
            "state_dict() of one of them alone."
        )
    return next(iter(found.values()), state)


def _head_elsewhere(state: State, absent: Sequence[str]) -> State | None:
    """Returns the tensors of a head that has another prefix than the rest; None where there is no such one."""
    prefixes = {key.removesuffix(absent[0]) for key in state if key.endswith(f".{absent[0]}")}
    whole = [prefix for prefix in prefixes if all(prefix + name in state for name in absent)]
    if len(whole) != 1 or len({name.partition(".")[0] for name in absent}) > 1:
        return None
    return {name: state[whole[0] + name] for name in absent}


def _without_attacker(where: str, state: State) -> State:
    """Drops the second classifier and normaliser of an `AttackerModel` after comparing them with the first."""
    kept = {name: value for name, value in state.items() if not name.startswith(_ATTACKER)}
    copies = {
        name.removeprefix(_ATTACKER).replace("normalize.", "normalizer.", 1): value
        for name, value in state.items()
        if name not in kept
    }
    both = copies.keys() & kept.keys()
    differing = sorted(
        copies.keys() ^ kept.keys() | {name for name in both if not torch.equal(copies[name], kept[name])}
    )
    if differing:
        raise UserError(
            f"Weights: {where} holds the network twice, as model and as attacker.model, and {len(differing)} tensors "
            f"differ or lack their copy, first {differing[0]}. The file is damaged or edited: take the original."
        )
    return kept


def _agreed(where: str, what: str, values: list[Tensor]) -> tuple[float, ...] | None:
    found = {tuple(value.double().flatten().tolist()) for value in values}
    if len(found) > 1:
        raise UserError(
            f"Weights: {where} states more than one {what} for its input: {sorted(found)}. Leave the right one."
        )
    return next(iter(found), None)


def stated(metadata: Mapping[str, str], what: str) -> Any:
    """Returns a JSON value from the metadata of a file, None where it is absent or no JSON."""
    try:
        return json.loads(metadata.get(what, "null"))
    except ValueError:
        return None


def channels(value: Any) -> tuple[float, ...] | None:
    """Returns the numbers of a JSON list, None for anything else, an empty list, NaN and infinity."""
    numbers = value if isinstance(value, list) else []
    return tuple(numbers) if numbers and all(type(one) in (int, float) and abs(one) < 1e30 for one in numbers) else None


def _floats(value: Any) -> tuple[float, ...] | None:
    numbers = channels(value)
    return None if numbers is None else tuple(map(float, numbers))

"""Networks of timm with random weights as backbones."""

from typing import Any

from torch import nn

from distributed_autolora.errors import UserError
from distributed_autolora.records.reader import nearest

PREFIX = "timm/"


def timm_names() -> list[str]:
    """Returns every name of a timm network, such as "timm/vit_tiny_patch16_224"; the first call takes seconds."""
    import timm

    return [f"{PREFIX}{name}" for name in timm.list_models()]


def timm_backbone(
    name: str, num_classes: int, channels: int, size: int | None = None
) -> tuple[nn.Module, str, int | None]:
    """Builds a timm network without dropout and stochastic depth; nothing is downloaded.

    Returns the network, the name of its head in it, and the one size of images that it takes (None: any): `size` if
    that is given, else the published one.

    Raises:
        UserError: for an unknown name, or a network without exactly one linear head.
    """
    import timm

    short = name.removeprefix(PREFIX)
    # A name such as hf-hub:... would be fetched; only names of the installed package are known here.
    if not timm.is_model(short):
        raise UserError(
            f'There is no backbone "{name}".{nearest(name, timm_names())} '
            "timm.list_models() lists the names after timm/."
        )
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": channels}
    fixed: int | None = None
    published = timm.models.get_pretrained_cfg(short)
    if published is not None and published.fixed_input_size:
        fixed = options["img_size"] = size or int(published.input_size[-1])
    try:
        network: nn.Module = timm.create_model(short, pretrained=False, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        given = ", ".join(f"{key} {value}" for key, value in options.items())
        reason = str(error).partition("\n")[0]
        raise UserError(f"timm cannot build {name} with {given}: {reason}. Choose another backbone or size.") from None
    # Training draws random numbers from the keyed streams only: no dropout and no stochastic depth.
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for rate in ("drop_prob", "drop_rate", "drop_path_rate", "attn_drop_rate"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
    return network, _head_name(name, network), fixed


def _head_name(name: str, network: Any) -> str:
    head = network.get_classifier()
    names = [path for path, module in network.named_modules() if module is head]
    if not isinstance(head, nn.Linear) or len(names) != 1:
        raise UserError(
            f"{name} ends in a {type(head).__name__}: only backbones with one linear head can be used. Choose another."
        )
    return str(names[0])

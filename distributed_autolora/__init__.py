"""Parameter-free adversarially robust fine-tuning of vision models, distributed with Ray.

The names below are imported when they are first used: importing the package itself loads no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed_autolora.api import (
        Report,
        Run,
        evaluate,
        finetune,
        load_model,
        load_run,
        pgd,
        write_dataset,
    )

__version__ = "0.2.0"
__all__ = ["Report", "Run", "evaluate", "finetune", "load_model", "load_run", "pgd", "write_dataset"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("distributed_autolora.api"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]

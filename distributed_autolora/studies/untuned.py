"""What makes fine-tuning without tuning win: studies beyond the paper, of switches and of sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.studies.definition import Arm, Study, with_settings
from distributed_autolora.studies.tables import AUTOLORA, TWINS, VANILLA, autolora, baseline

_IMAGES = 1000
_VALIDATION = 250
_SIZES = ((500, 25), (500, 125), (1000, 50), (2500, 125), (2500, 625))
"""Training images, and those of them that validate: 5 % or a quarter; a quarter of 1,000 is in `untuned`."""

_RELEASED: dict[str, object] = {
    "schedule.rule": "released",
    "method.soft_labels": "joint",
    "method.kl_weight_max": 6.0,
    "method.branch_batch_norm": "shared",
    "method.weight_average": "none",
}
"""Where all arms start, whatever the defaults for other runs are."""
_PAIRED = {"schedule.rule": "paired"}
_STEP_DECAY = {"schedule.name": "step_decay"}
_DETACHED = {"method.soft_labels": "detached"}
_OWN_STATISTICS = {"method.branch_batch_norm": "own"}
_STRONGER = {"eval_attack.loss": "margin", "eval_attack.num_steps": 20}
_BY_SIZE: dict[str, Mapping[str, object]] = {
    "released": {},
    "paired": _PAIRED,
    "step decay": _STEP_DECAY,
    "paired, detached": _PAIRED | _DETACHED,
}


def untuned(base: ExperimentConfig) -> Study:
    """One switch at a time: the schedule's rule, the soft labels, the teacher, what the run steers by."""
    base = with_settings(base, _images(_IMAGES, _VALIDATION))
    ours: dict[str, Mapping[str, object]] = {
        AUTOLORA: {},
        f"{AUTOLORA}, paired": _PAIRED,
        f"{AUTOLORA}, step decay": _STEP_DECAY,
        f"{AUTOLORA}, paired, detached": _PAIRED | _DETACHED,
        f"{AUTOLORA}, paired, own BN": _PAIRED | _OWN_STATISTICS,
        f"{AUTOLORA}, paired, detached, own BN": _PAIRED | _DETACHED | _OWN_STATISTICS,
        f"{AUTOLORA}, paired, average deployed": _PAIRED | {"method.weight_average": "deployed"},
        f"{AUTOLORA}, paired, average deployed and teaching": _PAIRED | {"method.weight_average": "both"},
        f"{AUTOLORA}, paired, KL weight at most 3": _PAIRED | {"method.kl_weight_max": 3.0},
        f"{AUTOLORA}, paired, steered by the stronger attack": _PAIRED | _STRONGER,
    }
    automatic_vanilla = {"schedule.name": "automatic"} | _PAIRED | _DETACHED
    theirs: dict[str, Mapping[str, object]] = {
        VANILLA: {},
        f"{VANILLA}, detached": _DETACHED,
        f"{VANILLA}, paired, detached": automatic_vanilla,
        TWINS: {},
        f"{TWINS}, detached": _DETACHED,
    }
    starts = {AUTOLORA: autolora(base), VANILLA: baseline(base, "vanilla"), TWINS: baseline(base, "twins")}
    arms = [
        Arm(name=name, config=with_settings(starts[name.partition(",")[0]], {**_RELEASED, **settings}))
        for name, settings in {**ours, **theirs}.items()
    ]
    return Study(
        name="untuned",
        title="What makes untuned robust fine-tuning win",
        paper_tables=(),
        arms=tuple(arms),
        reference=AUTOLORA,
    )


def untuned_sizes(base: ExperimentConfig) -> Study:
    """Learning-rate rules and detached labels, by the number of images and the share of them that validates."""
    arms = []
    for images, validation in _SIZES:
        config = with_settings(autolora(base), _RELEASED | _images(images, validation))
        where = f"{images:,} of which {validation} validate"
        for rule, settings in _BY_SIZE.items():
            reference = f"released, {where}"
            arms.append(Arm(name=f"{rule}, {where}", config=with_settings(config, settings), reference=reference))
    return Study(
        name="untuned_sizes",
        title="What makes untuned robust fine-tuning win: by the number of images",
        paper_tables=(),
        arms=tuple(arms),
        reference=arms[0].name,
    )


def _images(images: int, validation: int) -> dict[str, object]:
    return {"data.train_images": images, "data.val_fraction": validation / images, "data.val_images_min": 0}


UNTUNED: dict[str, Callable[[ExperimentConfig], Study]] = {
    function.__name__: function for function in (untuned, untuned_sizes)
}
"""Both studies by name; each takes the config that its arms share."""

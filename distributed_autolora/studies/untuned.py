"""Studies beyond the paper: switches of untuned robust fine-tuning, batch norm over shards, numbers of images."""

from dataclasses import replace

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.studies.definition import Arm, Study, with_settings
from distributed_autolora.studies.tables import AUTOLORA, TWINS, VANILLA, arm, autolora, baseline, tuned_baselines

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
    "method.head_init": "random",
}
"""Settings of the authors' code, whatever the defaults for other runs are."""
_SWITCHES: dict[str, dict[str, object]] = {
    "paired": {"schedule.name": "automatic", "schedule.rule": "paired"},
    "step decay": {"schedule.name": "step_decay"},
    "detached": {"method.soft_labels": "detached"},
    "own BN": {"method.branch_batch_norm": "own"},
    "average deployed": {"method.weight_average": "deployed"},
    "average deployed and teaching": {"method.weight_average": "both"},
    "KL weight at most 3": {"method.kl_weight_max": 3.0},
    "probed head": {"method.head_init": "probing"},
    "steered by the stronger attack": {"eval_attack.loss": "margin", "eval_attack.num_steps": 20},
}
"""Each changes one thing; an arm is named by those that it has on."""
_UNTUNED = {
    AUTOLORA: (
        "",
        "paired",
        "step decay",
        "paired, detached",
        "paired, detached, probed head",
        "paired, own BN",
        "paired, detached, own BN",
        "paired, average deployed",
        "paired, average deployed and teaching",
        "paired, KL weight at most 3",
        "paired, steered by the stronger attack",
    ),
    VANILLA: ("", "detached", "paired, detached", "paired, detached, probed head"),
    TWINS: ("", "detached"),
}
_SHARDS = (2, 4, 8)
_FINALIST = "paired, detached, probed head"
_BY_SIZE = ("", "paired", "step decay", "paired, detached")


def untuned(base: ExperimentConfig) -> Study:
    """One switch at a time: the schedule's rule, the soft labels, the teacher, the attack that the schedule follows."""
    base = with_settings(base, _images(_IMAGES, _VALIDATION))
    starts = {AUTOLORA: autolora(base), VANILLA: baseline(base, "vanilla"), TWINS: baseline(base, "twins")}
    return Study(
        name="untuned",
        title="Untuned robust fine-tuning: one switch at a time",
        paper_tables=(),
        arms=tuple(
            arm(method, _switched(starts[method], on), _id(on), on)
            for method, every in _UNTUNED.items()
            for on in every
        ),
        reference=AUTOLORA,
    )


def untuned_finalists(base: ExperimentConfig) -> Study:
    """The best switches on all three methods, and once a search of both baselines: at the length of the base."""
    methods = {AUTOLORA: autolora(base), VANILLA: baseline(base, "vanilla"), TWINS: baseline(base, "twins")}
    switched = [arm(method, _switched(config, _FINALIST), "switches", _FINALIST) for method, config in methods.items()]
    searched = [
        replace(each, id=f"{each.id}-searched", label=f"{each.label}, detached, probed head, searched")
        for each in tuned_baselines(with_settings(base, _SWITCHES["detached"] | _SWITCHES["probed head"])).arms
        if each.grid
    ]
    return Study(
        name="untuned_finalists",
        title="AutoLoRa without a search, baselines with the same switches, and searched baselines",
        paper_tables=(),
        arms=(*switched, *searched),
        reference=switched[0].id,
    )


def batch_norm_shards(base: ExperimentConfig) -> Study:
    """Batch norm over the whole batch, and over 2, 4 and 8 shards of it, in AutoLoRa as for one's own data."""
    start = _switched(autolora(base), "paired, detached")
    arms = [arm(AUTOLORA, with_settings(start, {"optimization.batch_norm": "global"}), "global", "global batch norm")]
    for shards in _SHARDS:
        settings = {"optimization.batch_norm": "shards", "optimization.batch_norm_shards": shards}
        arms.append(arm(AUTOLORA, with_settings(start, settings), f"shards-{shards}", f"{shards} shards"))
    return Study(
        name="batch_norm_shards",
        title="AutoLoRa: batch norm over shards of the batch",
        paper_tables=(),
        arms=tuple(arms),
        reference=arms[0].id,
    )


def untuned_sizes(base: ExperimentConfig) -> Study:
    """Learning-rate rules and detached labels, by the number of images and the share of them that validates."""
    arms = []
    for images, validation in _SIZES:
        config = with_settings(autolora(base), _images(images, validation))
        size, where = f"{images}-{validation}", f"{images:,} of which {validation} validate"
        for on in _BY_SIZE:
            name, label = f"{_id(on) or 'released'}-{size}", f"{on or 'released'}, {where}"
            arms.append(Arm(id=name, label=label, config=_switched(config, on), reference=f"released-{size}"))
    return Study(
        name="untuned_sizes",
        title="Untuned robust fine-tuning by the number of images",
        paper_tables=(),
        arms=tuple(arms),
        reference=arms[0].id,
    )


def _switched(config: ExperimentConfig, on: str) -> ExperimentConfig:
    settings = dict(_RELEASED)
    for switch in filter(None, on.split(", ")):
        settings |= _SWITCHES[switch]
    return with_settings(config, settings)


def _id(on: str) -> str:
    return on.replace(",", "").replace(" ", "-").lower()


def _images(images: int, validation: int) -> dict[str, object]:
    return {"data.train_images": images, "data.val_fraction": validation / images, "data.val_images_min": 0}

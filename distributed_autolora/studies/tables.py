"""The paper's tables as studies, one function each."""

from collections.abc import Mapping
from dataclasses import replace

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.config.recipes import demo
from distributed_autolora.errors import UserError
from distributed_autolora.studies.definition import Arm, Study, with_settings
from distributed_autolora.studies.hyperparameters import tuned

EMBEDDED_TASK = demo().data.task
"""The task whose images are shipped with the package; studies on it are small."""

AUTOLORA, VANILLA, TWINS = "autolora", "vanilla-rft", "twins"
"""Ids of the three methods' arms; those of their variants begin with them."""
LABELS = {AUTOLORA: "AutoLoRa", VANILLA: "Vanilla RFT", TWINS: "TWINS"}
EPSILON_FIELD = "{epsilon}"
"""Placeholder of the pre-training budget in the weights of `pretraining_epsilon`."""

GRID: dict[str, tuple[float, ...]] = {
    "optimization.lr": (1e-2, 3e-3, 1e-3),
    "optimization.weight_decay": (1e-4, 1e-5),
    "method.twins_gamma": (0.4, 1.0, 3.0),
}
"""Values of the appendix and of the released scripts; the authors' own grid is not published."""

_EMBEDDED_LRS = (3e-2, 1e-2, 3e-3)
_PRETRAINING = (("0", "0"), ("1.0", "1/255"), ("2.0", "2/255"), ("4.0", "4/255"), ("8.0", "8/255"))
_EMBEDDED_PRETRAINING = (("0", "0"), ("0.05", "0.05"), ("0.1", "0.1"))


def tuned_baselines(base: ExperimentConfig) -> Study:
    """Tables 1, 2 and 8: AutoLoRa without a search against searched TWINS and vanilla RFT."""
    return _searched(base, "tuned_baselines", "AutoLoRa without a search and searched baselines", ("1", "2", "8"))


def custom(base: ExperimentConfig) -> Study:
    """The comparison of `tuned_baselines` on one's own data."""
    return _searched(base, "custom", "AutoLoRa without a search and searched baselines, own data", ())


def _searched(base: ExperimentConfig, name: str, title: str, paper_tables: tuple[str, ...]) -> Study:
    twins = vanilla = GRID
    if base.data.task == EMBEDDED_TASK:  # few steps need larger ones; small enough for an hour on two cores
        vanilla = GRID | {"optimization.lr": _EMBEDDED_LRS}
        twins = {"optimization.lr": _EMBEDDED_LRS, "method.twins_gamma": (1.0, 3.0)}
    vanilla = {key: values for key, values in vanilla.items() if key != "method.twins_gamma"}
    arms = (
        arm(AUTOLORA, autolora(base)),
        arm(TWINS, baseline(base, "twins"), grid=twins),
        arm(VANILLA, baseline(base, "vanilla"), grid=vanilla),
    )
    return Study(name=name, title=title, paper_tables=paper_tables, arms=arms, reference=AUTOLORA)


def lora_rank(base: ExperimentConfig) -> Study:
    """Table 3: the rank of the low-rank branch."""
    arms = _swept(base, "method.lora_rank", {f"rank-{rank}": rank for rank in (2, 4, 8, 16)})
    title, reference = "AutoLoRa: rank of the low-rank branch", f"{AUTOLORA}-rank-8"
    return Study(name="lora_rank", title=title, paper_tables=("3",), arms=arms, reference=reference)


def pretraining_epsilon(base: ExperimentConfig) -> Study:
    """Table 4: the budget that the backbone was adversarially pre-trained with, for three methods.

    Raises:
        UserError: when the weights do not name the place of the budget.
    """
    embedded = base.data.task == EMBEDDED_TASK
    budgets = _EMBEDDED_PRETRAINING if embedded else _PRETRAINING
    weights = base.model.weights or ""
    if EPSILON_FIELD not in weights:
        files = ", ".join(number for number, _ in budgets)
        raise UserError(
            f"pretraining_epsilon compares backbones by their pre-training budget: give --weights with {EPSILON_FIELD} "
            f"where the file name has the budget ({files}), as in backbone_eps{EPSILON_FIELD}.safetensors. "
            "docs/comparing.md says how to get them."
        )
    methods = {VANILLA: paper_baseline(base, "vanilla"), TWINS: paper_baseline(base, "twins"), AUTOLORA: autolora(base)}
    arms = [
        arm(
            method,
            with_settings(config, {"model.weights": weights.replace(EPSILON_FIELD, number)}),
            budget.replace("/", "-"),
            budget,
            reference=f"{AUTOLORA}-{budget.replace('/', '-')}",
        )
        for method, config in methods.items()
        for number, budget in budgets
    ]
    return Study(
        name="pretraining_epsilon",
        title="Three methods: budget of the adversarial pre-training",
        paper_tables=("4",),
        arms=tuple(arms),
        reference=f"{AUTOLORA}-{'0.1' if embedded else '4-255'}",
    )


def automatic_lr(base: ExperimentConfig) -> Study:
    """Table 5, the automatic learning rate on TWINS; and on vanilla RFT, and AutoLoRa without its automatisms."""
    twins, vanilla = paper_baseline(base, "twins"), paper_baseline(base, "vanilla")
    decaying = replace(autolora(base), schedule=replace(base.schedule, name="step_decay"))
    # What the schedule of Eq. 6 and 7 sets at a natural-branch accuracy of one half.
    fixed = with_settings(autolora(base), {"method.natural_weight": 0.5, "method.kl_weight": 3.0})
    arms = [
        arm(TWINS, twins),
        arm(TWINS, _automatic(twins), "automatic-lr", "automatic LR", reference=TWINS),
        arm(VANILLA, vanilla, reference=VANILLA),
        arm(VANILLA, _automatic(vanilla), "automatic-lr", "automatic LR", reference=VANILLA),
        arm(AUTOLORA, autolora(base), reference=AUTOLORA),
        arm(AUTOLORA, decaying, "step-decay", reference=AUTOLORA),
        arm(AUTOLORA, fixed, "fixed-loss-weights", reference=AUTOLORA),
    ]
    return Study(
        name="automatic_lr",
        title="Automatic and fixed schedules",
        paper_tables=("5",),
        arms=tuple(arms),
        reference=TWINS,
    )


def _automatic(config: ExperimentConfig) -> ExperimentConfig:
    automatic = replace(config, schedule=replace(config.schedule, name="automatic"))
    return with_settings(automatic, {"optimization.lr": 0.01, "optimization.weight_decay": 1e-4})


def sharpening(base: ExperimentConfig) -> Study:
    """Table 6: the exponent of the natural-branch accuracy in the loss weights."""
    values = {f"sharpening-{value:g}": value for value in (0.2, 0.5, 0.8, 1.0, 2.0, 3.0, 5.0)}
    arms = _swept(base, "method.sharpening", values)
    title, reference = "AutoLoRa: sharpening of the loss weights", f"{AUTOLORA}-sharpening-1"
    return Study(name="sharpening", title=title, paper_tables=("6",), arms=arms, reference=reference)


def _swept(base: ExperimentConfig, key: str, values: Mapping[str, float]) -> tuple[Arm, ...]:
    """Returns an arm of AutoLoRa for each value of a setting, named by its variant."""
    return tuple(
        arm(AUTOLORA, with_settings(autolora(base), {key: value}), variant) for variant, value in values.items()
    )


def gradient_similarity(base: ExperimentConfig) -> Study:
    """Figures 1a, 1b and 2: how alike the natural and the adversarial gradient of the baselines are."""
    measured = {"evaluation.gradient_similarity_images": 256}
    return Study(
        name="gradient_similarity",
        title="Similarity of the natural and the adversarial gradient",
        paper_tables=("Figure 1", "Figure 2"),
        arms=(
            arm(VANILLA, with_settings(paper_baseline(base, "vanilla"), measured)),
            arm(TWINS, with_settings(paper_baseline(base, "twins"), measured)),
        ),
        reference=TWINS,
    )


def arm(
    method: str,
    config: ExperimentConfig,
    variant: str = "",
    label: str = "",
    *,
    grid: Mapping[str, tuple[float, ...]] | None = None,
    reference: str | None = None,
) -> Arm:
    """Returns an arm of a method, such as "autolora", or of a variant, such as "autolora-rank-8" (AutoLoRa, rank 8)."""
    return Arm(
        id=f"{method}-{variant}" if variant else method,
        label=f"{LABELS[method]}, {label or variant.replace('-', ' ')}" if variant else LABELS[method],
        config=config,
        grid=grid or {},
        reference=reference,
    )


def autolora(base: ExperimentConfig) -> ExperimentConfig:
    """Returns AutoLoRa with its automatic schedules, the learning rate's rule as the base has it."""
    schedule = replace(base.schedule, name="automatic")
    return replace(base, method=replace(base.method, name="autolora"), schedule=schedule)


def baseline(base: ExperimentConfig, method: str) -> ExperimentConfig:
    """Returns a registered method with its fixed decay of the learning rate."""
    return replace(base, method=replace(base.method, name=method), schedule=replace(base.schedule, name="step_decay"))


def paper_baseline(base: ExperimentConfig, method: str) -> ExperimentConfig:
    """Returns a baseline with the values of the paper's appendix for the task."""
    return with_settings(baseline(base, method), tuned(method, base.data.task))

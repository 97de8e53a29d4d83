"""A model for others: its card in Markdown (what it is, how it was evaluated, how to load it) and leaderboard entry."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distributed_autolora.records import Evaluation, RunResult
from distributed_autolora.reporting.corruptions import corruption_section
from distributed_autolora.reporting.evaluation import broken_text
from distributed_autolora.reporting.format import duration, pixel_fraction, threat_text
from distributed_autolora.reporting.masking import masking_sentences
from distributed_autolora.reporting.statistics import wilson_interval

_AUTOLORA = {
    "link": "https://arxiv.org/abs/2310.01818",
    "name": "AutoLoRa: A Parameter-Free Automated Robust Fine-Tuning Framework",
    "authors": "Xilie Xu, Jingfeng Zhang, Mohan Kankanhalli",
    "venue": "ICLR 2024",
}


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a card says about a model beside its evaluation.

    Attributes:
        pretrained: whether training began from weights learnt on other data.
        training: None: the model came from elsewhere.
        export_differences: largest difference of a logit by exported file.
    """

    architecture: str
    parameters: int
    pretrained: bool
    method: str | None
    training: RunResult | None
    data_licence: str
    data_provenance: str
    export_differences: Mapping[str, float]


def model_card(evaluation: Evaluation, facts: ModelFacts) -> str:
    """Returns the text of the card."""
    parts = (
        f"# {evaluation.model}",
        _summary(evaluation, facts),
        _loading(evaluation, facts),
        _data(evaluation, facts),
        _protocol(evaluation),
        _accuracies(evaluation),
        *corruption_section(evaluation),
        _sanity(evaluation, facts),
        _cost(evaluation, facts),
        _licences(facts),
    )
    return "\n\n".join(parts) + "\n"


def robustbench_entry(evaluation: Evaluation, facts: ModelFacts) -> dict[str, Any] | None:
    """Returns the entry, or None for an evaluation that RobustBench would not list.

    It lists AutoAttack on the whole test set. Accuracies are texts in per cent, as in their files. Empty texts of the
    paper are for its author to fill in; "autoattack_acc" is empty for less than standard AutoAttack.
    """
    autoattack = evaluation.attack("autoattack")
    if autoattack is None or evaluation.is_subset:
        return None
    is_standard = autoattack.label.startswith("AutoAttack (standard")
    unpublished = {"link": "", "name": evaluation.model, "authors": "", "venue": "Unpublished"}
    failed = [check.name for check in evaluation.sanity if check.status == "FAIL"]
    remarks = [f"{autoattack.label} on {evaluation.test_images:,} test images."]
    if not evaluation.sanity:
        remarks.append("No sanity checks were made.")
    if failed:
        remarks.append(f"Failed sanity checks: {', '.join(failed)}.")
    return {
        **(_AUTOLORA if facts.method == "autolora" else unpublished),
        "additional_data": facts.pretrained,
        "number_forward_passes": 1,
        "dataset": evaluation.task,
        "architecture": facts.architecture,
        "eps": pixel_fraction(evaluation.epsilon),
        "clean_acc": f"{100 * evaluation.natural.accuracy:.2f}",
        "reported": f"{100 * autoattack.robust.accuracy:.2f}",
        "autoattack_acc": f"{100 * autoattack.robust.accuracy:.2f}" if is_standard else "",
        "footnote": " ".join(remarks),
        "unreliable": bool(failed),
    }


def _summary(evaluation: Evaluation, facts: ModelFacts) -> str:
    method = f" fine-tuned with the method `{facts.method}`" if facts.method else ""
    start = " from pre-trained weights" if facts.method and facts.pretrained else ""
    names = evaluation.class_names
    return (
        f"A classifier of {len(names)} classes ({', '.join(names[:12])}{', ...' if len(names) > 12 else ''}): "
        f"{facts.architecture} with {facts.parameters:,} "
        f"parameters{method}{start}. It takes images in [0, 1] and normalises inside."
    )


def _loading(evaluation: Evaluation, facts: ModelFacts) -> str:
    checked = ", ".join(f"`{name}` {value:.1g}" for name, value in facts.export_differences.items())
    shape = ", ".join(map(str, evaluation.image_shape))
    return (
        '## Loading\n\n```python\nimport torch\nmodel = torch.export.load("model.pt2").module()\n'
        f"images = torch.rand(8, {shape})  # float32 in [0, 1], any number of them\n"
        f"print(model(images).argmax(1))\n```\n\n{_reading(evaluation)}"
        "`model.safetensors` holds the weights of backbone and head; its metadata state the network, the number and "
        "names of the classes, and the mean and standard deviation that images are normalised with.\n\n"
        "Largest difference of a logit between the evaluated model and its reloaded files, over the evaluated images: "
        f"{checked}. No low-rank branch is left in them."
    )


def _reading(evaluation: Evaluation) -> str:
    channels, height, width = evaluation.image_shape
    size = evaluation.image_size
    cut = ""
    if size is not None:
        cut = f"image = functional.center_crop(functional.resize(image, [{round(size * 256 / 224)}]), [{size}])\n"
    file = "an image file" if cut else f"a file of {width} x {height} pixels"
    return (
        f"A printed number is a place in `classes`. From {file} to the name of its class, upright as the evaluated "
        "images were; transparent and 16-bit files need converting first:\n\n```python\n"
        "from PIL import Image, ImageOps\nfrom torchvision.transforms import functional\n\n"
        f"classes = {json.dumps(evaluation.class_names, ensure_ascii=False)}\n"
        f'image = ImageOps.exif_transpose(Image.open("image.jpg")).convert("{"L" if channels == 1 else "RGB"}")\n'
        f"{cut}images = functional.to_tensor(image)[None]\nprint(classes[model(images).argmax(1)])\n```\n\n"
    )


def _data(evaluation: Evaluation, facts: ModelFacts) -> str:
    lines = [f"Task {evaluation.task or 'without a name'}. {_sentence(facts.data_provenance)}"]
    if (training := facts.training) is not None:
        apart = "the test images took part in neither"
        if evaluation.protocol == "released":
            apart = (
                "the splits are the released ones, faults included, and may have test images among the training images"
            )
        lines.append(
            f"Trained on {training.train_images:,} images and chosen on {training.val_images:,} others "
            f"(epoch {training.best_epoch} of {training.stopped_epoch}); {apart}."
        )
    subset = f", a stratified subset of {evaluation.test_images_available:,}" if evaluation.is_subset else ""
    lines.append(
        f"Evaluated on {evaluation.test_images:,} test images{subset}. "
        f"SHA-256 of the files: `{evaluation.data_digest}`."
    )
    return "## Data\n\n" + "\n".join(lines)


def _protocol(evaluation: Evaluation) -> str:
    shape = " x ".join(str(side) for side in evaluation.image_shape)
    versions = ", ".join(f"{name} {version}" for name, version in evaluation.package_versions.items())
    return (
        "## Threat model and protocol\n\n"
        f"Perturbations of {threat_text(evaluation.norm, evaluation.epsilon)}, on images "
        f"of {shape} in [0, 1], with full knowledge of the model. An image counts as robust when it is "
        "classified correctly before and after the attack. float32 throughout.\n"
        f"Chunks of {evaluation.chunk_size} images, each with a seed of its own derived from seed {evaluation.seed}; "
        f"{versions}."
    )


def _accuracies(evaluation: Evaluation) -> str:
    rows = ["| | accuracy | 95 % Wilson interval | images |", "| --- | --- | --- | --- |"]
    attacks = ((attack.label, attack.robust) for attack in evaluation.results())
    for label, count in (("natural images", evaluation.natural), *attacks):
        low, high = wilson_interval(count.correct, count.total)
        rows.append(
            f"| {label} | {100 * count.accuracy:.1f} % | {100 * low:.1f} to {100 * high:.1f} % | "
            f"{count.correct:,} of {count.total:,} |"
        )
    return "\n\n".join(filter(None, ("## Accuracies", "\n".join(rows), broken_text(evaluation))))


def _sanity(evaluation: Evaluation, facts: ModelFacts) -> str:
    found = " ".join(masking_sentences(facts.training)) if facts.training else ""
    training = f"\n\nWhile it was trained: {found}" if found else ""
    if not evaluation.sanity:
        return f"## Sanity of the attacks\n\nNot checked.{training}"
    rows = ["| | check | finding |", "| --- | --- | --- |"]
    rows += [f"| {check.status} | {check.name} | {check.detail} |" for check in evaluation.sanity]
    return "## Sanity of the attacks\n\n" + "\n".join(rows) + training


def _cost(evaluation: Evaluation, facts: ModelFacts) -> str:
    device = "GPU" if evaluation.use_gpu else "CPU"
    lines = [
        f"Evaluation: {duration(evaluation.chunk_seconds)} of {device} workers' time, asked for on "
        f"{evaluation.num_workers} of them."
    ]
    if (training := facts.training) is not None:
        cost = training.cost
        lines += [
            f"Training: {duration(cost.seconds)}, {duration(cost.worker_seconds)} of workers' time; "
            f"{cost.forward_passes:,} forward and {cost.backward_passes:,} backward passes (images).",
            f"Config digest `{training.config_digest}`, seed {training.seed}.",
        ]
    return "## Cost\n\n" + "\n".join(lines)


def _licences(facts: ModelFacts) -> str:
    text = f"## Licences\n\nImages: {_sentence(facts.data_licence or 'not stated')}"
    if facts.pretrained:
        text += " The terms of the pre-trained weights that it began from apply to the model as well."
    return text


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."

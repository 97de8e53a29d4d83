"""A model card in Markdown: what the model is, how it was judged, and how to load it without this package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distributed_autolora.records import RunResult
from distributed_autolora.reporting.format import duration, pixel_fraction
from distributed_autolora.reporting.masking import masking_sentences
from distributed_autolora.reporting.statistics import wilson_interval


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a card says about a model beside its evaluation.

    Attributes:
        architecture: name of the backbone.
        parameters: number of parameters.
        pretrained: whether training began from weights learnt on other data.
        method: name of the training objective; None: not known.
        training: result of the run; None: the model came from elsewhere.
        data_licence: terms that the images may be used under.
        data_provenance: where they came from.
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


def model_card(result: Mapping[str, Any], facts: ModelFacts) -> str:
    """Returns the card.

    Args:
        result: of `evaluation.json`.
        facts: about the model.
    """
    parts = (
        f"# {result['model']}",
        _summary(result, facts),
        _loading(result, facts),
        _data(result, facts),
        _protocol(result),
        _accuracies(result),
        _sanity(result, facts),
        _cost(result, facts),
        _licences(facts),
    )
    return "\n\n".join(parts) + "\n"


def loading_lines(image_shape: list[int]) -> str:
    """Returns the four lines of plain torch that load the exported model and classify images.

    Args:
        image_shape: [C, H, W].
    """
    shape = ", ".join(str(side) for side in image_shape)
    return (
        "import torch\n"
        'model = torch.export.load("model.pt2").module()\n'
        f"images = torch.rand(8, {shape})  # float32 in [0, 1], any number of them\n"
        "print(model(images).argmax(1))"
    )


def _summary(result: Mapping[str, Any], facts: ModelFacts) -> str:
    method = f" fine-tuned with the method `{facts.method}`" if facts.method else ""
    start = " from pre-trained weights" if facts.method and facts.pretrained else ""
    return (
        f"A classifier of {result['num_classes']} classes ({', '.join(result['class_names'][:12])}"
        f"{', ...' if result['num_classes'] > 12 else ''}): {facts.architecture} with {facts.parameters:,} "
        f"parameters{method}{start}. It takes images in [0, 1] and normalises inside."
    )


def _loading(result: Mapping[str, Any], facts: ModelFacts) -> str:
    checked = ", ".join(f"`{name}` {value:.1g}" for name, value in facts.export_differences.items())
    weights = (
        "`model.safetensors` holds the weights of backbone and head; its metadata say which network, how many classes, "
        "and the mean and standard deviation that images are normalised with.\n\n"
        if "model.safetensors" in facts.export_differences
        else ""
    )
    return (
        f"## Loading\n\n```python\n{loading_lines(result['image_shape'])}\n```\n\n{_reading(result)}{weights}"
        f"Largest difference of a logit between the judged model and its reloaded files, over the judged images: "
        f"{checked}. No low-rank branch is left in them."
    )


def _reading(result: Mapping[str, Any]) -> str:
    """Returns how a file becomes an image as those that were judged, and the model's number the name of a class."""
    channels, height, width = result["image_shape"]
    size = result.get("image_size")
    cut = (
        f"image = functional.center_crop(functional.resize(image, [{round(size * 256 / 224)}]), [{size}])\n"
        if size is not None
        else ""
    )
    file = "an image file" if cut else f"a file of {width} x {height} pixels"
    return (
        f"A printed number is a place in `classes`. From {file} to the name of its class, upright as the judged images "
        "were; transparent and 16-bit files need converting first:\n\n```python\n"
        "from PIL import Image, ImageOps\nfrom torchvision.transforms import functional\n\n"
        f"classes = {json.dumps(list(result['class_names']), ensure_ascii=False)}\n"
        f'image = ImageOps.exif_transpose(Image.open("image.jpg")).convert("{"L" if channels == 1 else "RGB"}")\n'
        f"{cut}images = functional.to_tensor(image)[None]\nprint(classes[model(images).argmax(1)])\n```\n\n"
    )


def _data(result: Mapping[str, Any], facts: ModelFacts) -> str:
    training = facts.training
    lines = [f"Task {result['task'] or 'without a name'}. {_sentence(facts.data_provenance)}"]
    if training is not None:
        lines.append(
            f"Trained on {training.train_images:,} images and chosen on {training.val_images:,} others "
            f"(epoch {training.best_epoch} of {training.stopped_epoch}); {_apart(result)}."
        )
    images, available = result["test_images"], result["test_images_available"]
    subset = "" if images == available else f", a stratified subset of {available:,}"
    lines.append(f"Judged on {images:,} test images{subset}. SHA-256 of the files: `{result['data_digest']}`.")
    return "## Data\n\n" + "\n".join(lines)


def _apart(result: Mapping[str, Any]) -> str:
    if result.get("protocol") == "released":
        return "the splits are the released ones, faults included, and may have test images among the training images"
    return "the test images took part in neither"


def _protocol(result: Mapping[str, Any]) -> str:
    shape = " x ".join(str(side) for side in result["image_shape"])
    versions = ", ".join(f"{name} {version}" for name, version in result["package_versions"].items())
    return (
        "## Threat model and protocol\n\n"
        f"L-infinity perturbations of at most {pixel_fraction(result['threat_model']['epsilon'])} a pixel, on images "
        f"of {shape} in [0, 1], with full knowledge of the model. An image counts as robust when it is "
        "classified rightly before and after the attack. float32 throughout.\n"
        f"Chunks of {result['chunk_size']} images, each with a seed of its own derived from seed {result['seed']}; "
        f"{versions}."
    )


def _accuracies(result: Mapping[str, Any]) -> str:
    rows = ["| | accuracy | 95 % Wilson interval | images |", "| --- | --- | --- | --- |"]
    for name, count in result["accuracies"].items():
        label = "natural images" if name == "natural_accuracy" else result["labels"].get(name, name)
        low, high = wilson_interval(count["correct"], count["total"])
        rows.append(
            f"| {label} | {100 * count['correct'] / count['total']:.1f} % | {100 * low:.1f} to {100 * high:.1f} % | "
            f"{count['correct']:,} of {count['total']:,} |"
        )
    table = "\n".join(rows)
    broken = [f"{count} by {name}" for name, count in result["broken_by"].items() if name != "natural"]
    first = f"\n\nRightly classified images were first broken: {', '.join(broken)}." if broken else ""
    return f"## Accuracies\n\n{table}{first}"


def _sanity(result: Mapping[str, Any], facts: ModelFacts) -> str:
    found = " ".join(masking_sentences(facts.training)) if facts.training else ""
    training = f"\n\nWhile it was trained: {found}" if found else ""
    if not result["sanity"]:
        return f"## Sanity of the attacks\n\nNot checked.{training}"
    rows = ["| | check | finding |", "| --- | --- | --- |"]
    rows += [f"| {check['status']} | {check['name']} | {check['detail']} |" for check in result["sanity"]]
    return "## Sanity of the attacks\n\n" + "\n".join(rows) + training


def _cost(result: Mapping[str, Any], facts: ModelFacts) -> str:
    device = "GPU" if result["use_gpu"] else "CPU"
    lines = [
        f"Evaluation: {duration(result['seconds']['chunks'])} of {device} workers' time, asked for on "
        f"{result['num_workers']} of them."
    ]
    training = facts.training
    if training is not None:
        cost = training.cost
        lines += [
            f"Training: {duration(cost.seconds)}, {duration(cost.worker_seconds)} of workers' time; "
            f"{cost.forward_passes:,} forward and {cost.backward_passes:,} backward passes (images).",
            f"Config digest `{training.config_digest}`, seed {training.seed}.",
        ]
    return "## Cost\n\n" + "\n".join(lines)


def _licences(facts: ModelFacts) -> str:
    weights = (
        " The terms of the pre-trained weights that it began from apply to the model as well."
        if facts.pretrained
        else ""
    )
    return f"## Licences\n\nImages: {_sentence(facts.data_licence or 'not stated')}{weights}"


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."

"""One object, however it is given; one digest for everything that determines the numbers."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from distributed_autolora.cli import parse_training_flags
from distributed_autolora.config import ExperimentConfig
from distributed_autolora.config.experiment import config_text, read_config
from distributed_autolora.config.file import read_config_file
from distributed_autolora.config.recipes import RECIPES, recipe
from distributed_autolora.errors import UserError


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_and_survives_its_yaml(name: str, tmp_path: Path) -> None:
    config = recipe(name)
    config.validate()
    (tmp_path / "config.yaml").write_text(config_text(config))
    assert read_config(tmp_path / "config.yaml") == config
    assert config.recipe == name


def test_a_recipe_a_file_and_flags_give_the_same_object(tmp_path: Path) -> None:
    flags = ["--optimization.lr", "0.02", "--threat-model.epsilon", "8/255", "--data.image-size", "32"]
    by_flags = parse_training_flags("", "demo", flags).experiment
    (tmp_path / "config.yaml").write_text(config_text(by_flags))
    by_file = parse_training_flags("", "demo", ["--config", str(tmp_path / "config.yaml")]).experiment
    expected = recipe("demo")
    expected = replace(
        expected,
        optimization=replace(expected.optimization, lr=0.02),
        threat_model=replace(expected.threat_model, epsilon=8 / 255),
        data=replace(expected.data, image_size=32),
    )
    assert by_flags == by_file == expected


def test_a_number_without_a_default_takes_a_fraction_too() -> None:
    flags = ["--method.kl-weight", "1/8", "--compute.attack-precision=float32"]
    assert parse_training_flags("", "demo", flags).experiment.method.kl_weight == 0.125


def test_a_file_is_laid_over_the_recipe_that_it_names(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("recipe: cifar10\nthreat_model: {epsilon: 4/255}\nmodel: {mean: [0.5, 0.5, 0.5]}\n")
    base = recipe("cifar10")
    assert base.model.input_size == 224  # which no dataclass default says
    expected = replace(
        base,
        threat_model=replace(base.threat_model, epsilon=4 / 255),
        model=replace(base.model, mean=(0.5, 0.5, 0.5)),
    )
    assert read_config_file(path) == parse_training_flags("", "demo", ["--config", str(path)]).experiment == expected


def test_a_complete_file_is_taken_as_it_is_and_an_incomplete_one_without_a_recipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    config = replace(recipe("custom"), recipe="mine", method=replace(recipe("custom").method, lora_rank=3))
    path.write_text(config_text(config))
    assert read_config_file(path) == config
    path.write_text(config_text(config).replace("  lora_rank: 3\n", ""))
    with pytest.raises(UserError, match='no recipe "mine"'):
        read_config_file(path)
    path.write_text(config_text(config).replace("  lora_rank: 3\n", "").replace("recipe: mine\n", ""))
    with pytest.raises(
        UserError, match=r"names no recipe and lacks recipe, method\.lora_rank\. Add .*`recipe: custom`"
    ):
        read_config_file(path)
    path.write_text("optimization: {lr: 1}")
    with pytest.raises(UserError, match=r"lacks recipe, seed, data\.task, data\.path and \d+ more"):
        read_config_file(path)


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("data", "path", "/elsewhere"),
        ("model", "weights", "/elsewhere.safetensors"),
        ("scaling", "num_workers", 7),
        ("scaling", "max_workers", 9),
        ("run", "name", "other"),
        ("run", "mlflow_uri", "http://host"),
    ],
)
def test_the_digest_ignores_places_names_and_workers(group: str, key: str, value: object) -> None:
    values = recipe("demo").to_dict()
    values[group][key] = value
    assert ExperimentConfig.from_dict(values).digest() == recipe("demo").digest()


OTHER_WORDS = """joint detached, all last_block, autolora vanilla, automatic step_decay, released apgd, none crop_flip,
small_resnet resnet18, auto float32, float32 bfloat16, cross_entropy margin, paired released, detached joint,
shared own, method.weight_average teacher, linf l2, global shards, random probing"""


def test_the_digest_covers_every_other_value() -> None:
    base = recipe("demo")
    ignored = {"recipe", "seed", "data.path", "data.task", "model.weights", "model.allow_pickle"}
    for name, value in base.flat().items():
        if name in ignored or name.startswith(("run.", "scaling.")):
            continue
        values = base.to_dict()
        group, key = name.split(".")
        values[group][key] = _another(name, value)
        assert ExperimentConfig.from_dict(values).digest() != base.digest(), name


def test_keys_that_came_later_left_every_digest_as_it_was() -> None:
    """The digest of the values that version 0.1 had."""
    values = recipe("demo").to_dict()
    for key in ("batch_norm", "batch_norm_shards"):
        del values["optimization"][key]
    del values["schedule"]["decay_at"], values["method"]["head_init"]
    assert ExperimentConfig.from_dict(values).digest() == recipe("demo").digest()
    kept = {group: content for group, content in values.items() if group not in ("recipe", "seed", "scaling", "run")}
    for group, name in (("data", "path"), ("data", "task"), ("model", "weights"), ("model", "allow_pickle")):
        del kept[group][name]
    old = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    assert recipe("demo").digest() == old


@pytest.mark.parametrize(
    ("batch_norm", "shards", "workers", "words"),
    [
        ("global", 4, 2, 'batch_norm_shards is 4, but optimization.batch_norm is "global"'),
        ("shards", None, 2, "also give optimization.batch_norm_shards, a multiple of the number of workers"),
        ("shards", 3, 4, "each of 4 workers needs a shard of its own: give at most 3 workers, or a multiple of 4"),
        ("shards", 128, 2, "is 128, but a global batch has 64 images"),
        ("shards", 0, 2, "batch_norm_shards is 0: it must be at least 1"),
    ],
)
def test_shards_that_workers_cannot_own_are_refused(
    batch_norm: str, shards: int | None, workers: int, words: str
) -> None:
    values = recipe("demo").to_dict()
    values["optimization"] |= {"batch_norm": batch_norm, "batch_norm_shards": shards}
    values["scaling"]["num_workers"] = workers
    with pytest.raises(UserError, match=words):
        ExperimentConfig.from_dict(values).validate()
    values["optimization"] |= {"batch_norm": "shards", "batch_norm_shards": 2 * workers}
    ExperimentConfig.from_dict(values).validate()


def test_shares_of_the_epochs_are_flags_and_stay_within_the_run() -> None:
    flags = ["--schedule.decay-at", "3/4", "0.9"]
    assert parse_training_flags("", "demo", flags).experiment.schedule.decay_at == (0.75, 0.9)
    values = recipe("demo").to_dict()
    values["schedule"]["decay_at"] = [0.5, 1.5]
    with pytest.raises(UserError, match=r"schedule\.decay_at is 1\.5: it must be from 0 to 1\."):
        ExperimentConfig.from_dict(values).validate()


def test_a_number_of_workers_that_changes_needs_shards_for_the_most_of_them() -> None:
    values = recipe("demo").to_dict()

    def refused(words: str, most: int = 4, **optimization: object) -> None:
        values["scaling"] |= {"num_workers": 2, "max_workers": most}
        values["optimization"] |= optimization
        with pytest.raises(UserError, match=words):
            ExperimentConfig.from_dict(values).validate()

    refused("max_workers is 1: it must be at least num_workers", most=1)
    refused("that changes .2 to 4. needs .*--optimization.batch-norm shards --optimization.batch-norm-shards 8")
    refused("each of 4 workers needs a shard", batch_norm="shards", batch_norm_shards=3)
    values["optimization"]["batch_norm_shards"] = 4
    ExperimentConfig.from_dict(values).validate()


def test_an_l2_epsilon_may_be_larger_than_a_pixel_and_one_of_l_infinity_may_not() -> None:
    recipe("cub-l2").validate()
    assert recipe("cub-l2").threat_model.epsilon == 3
    for key in ("threat_model.epsilon", "train_attack.step_size", "eval_attack.step_size"):
        values = recipe("demo").to_dict()
        group, name = key.split(".")
        values[group][name] = 1.5
        with pytest.raises(UserError, match=f"{key} is 1.5: it must be from 0 to 1"):
            ExperimentConfig.from_dict(values).validate()


def _another(name: str, value: object) -> object:
    if value is None:
        return "digest" if name.endswith("digest") else 3
    if isinstance(value, list):
        return [item + 1 for item in value]
    if isinstance(value, str):
        words = dict(pair.split() for pair in OTHER_WORDS.split(","))
        return words.get(name, words[value])
    return not value if isinstance(value, bool) else value + 1  # type: ignore[operator]


def test_unknown_and_mistyped_values_are_named() -> None:
    for values, fragment in (
        ({"optimisation": {}}, '"optimisation".*"optimization"'),
        ({"optimization": {"lr": "fast"}}, '"optimization.lr".*number'),
        ({"optimization": {"epochs": 2.5}}, '"optimization.epochs".*whole number'),
        ({"method": {"soft_labels": "joined"}}, '"method.soft_labels".*joint'),
        ({"data": []}, '"data" must be a mapping'),
        ({"train_attack": {"random_start": 1}}, '"train_attack.random_start".*true or false'),
    ):
        with pytest.raises(UserError, match=fragment):
            ExperimentConfig.from_dict(values)

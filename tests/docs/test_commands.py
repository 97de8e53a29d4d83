"""Every command in the documents is one that its program takes, and every flag, key and file they name exists."""

import re
import subprocess
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

from distributed_autolora.cli import COMMON_FLAGS, TrainingFlags
from distributed_autolora.config import ExperimentConfig
from distributed_autolora.config.flags import SHORT
from distributed_autolora.data.preparation import flags as prepare_flags
from distributed_autolora.orchestration.evaluations.request import EvaluationRequest
from distributed_autolora.orchestration.studies.request import CompareFlags
from tests.docs.checking import ROOT, TO_BE_MADE, problem
from tests.docs.collecting import commands, shell_blocks, spans

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
DOCUMENTS += (ROOT / "distributed_autolora").rglob("*.md")
NAMES = sorted(str(document.relative_to(ROOT)) for document in DOCUMENTS)
OTHERS = {
    "--node-ip-address": "ray start",
    "--temp-dir": "ray start",
    "--working-dir": "ray job submit",
    "--host": "mlflow server",
    "--exclusive": "sbatch",
}
"""Flags of other programs that sentences name without the program."""
GROUPS = ("compute", "eval_attack", "method", "model", "optimization", "scaling", "threat_model", "train_attack")
"""Groups of config keys whose names sentences use for nothing else but files."""
PREPARED = (prepare_flags.Caltech256, prepare_flags.Cifar10, prepare_flags.Folder, prepare_flags.FashionMnist)

MADE_UP = """
Type `make tset`, `jobs/nothing.py`, `--no-such-flag` or `ray job submit --adress X`; `make test` is fine.

    python jobs/finetune.py --recipe custom --data.paht DATA   # a comment
    python jobs/finetune.py --recipe nosuch
    python jobs/finetune.py --threat-model.epsilon 2
    python jobs/compare.py --study nosuch
    python jobs/evaluate.py --attacks pgd10
    autolora data check DATA
    autolora data prepare folder --source X
    autolora fintune
    ray job submit --address http://HEAD:8265 --working-dir . \\
        -- python jobs/finetune.py --run.nmae x

    this is what it prints: python jobs/finetune.py --not-read

```sh
python benchmarks/attack.py --ruonds 3
python -m tests.chaos --kills many
for eps in 0.1 0.2; do python jobs/nothing.py --epsilon $eps "two words"; done
make mlflow POTR=1
kubectl apply -f docs/nothing.yaml
```

```console
$ python jobs/finetune.py --recipe demo \\
    --sed 1
it prints: python jobs/finetune.py --not-read
```
"""


@cache
def known_flags() -> set[str]:
    kinds = (TrainingFlags, EvaluationRequest, CompareFlags, *PREPARED)
    names = [*ExperimentConfig().flat(), *(item.name for kind in kinds for item in fields(kind))]
    flags = {name.replace("_", "-") for name in names}
    return {f"--{flag}" for flag in flags | {re.sub(r"([^.]+)$", r"no-\1", flag) for flag in flags}} | {
        "--help",
        "--gpus",
        *SHORT,
        *COMMON_FLAGS,
    }


def unknown_names(text: str) -> list[str]:
    """Returns the flags, config keys and paths of programs that sentences name and that do not exist."""
    unknown = []
    for line, span in spans(text):
        flag = re.match(r"--[a-z][\w.-]*", span)
        key = re.fullmatch(r"([a-z_]+)\.(?!safetensors$|pt$|pt2$)([a-z_]+)", span)
        if flag and flag[0] not in known_flags() and flag[0] not in OTHERS:
            unknown.append(f"{line}: {span}")
        if key and key[1] in GROUPS and span not in ExperimentConfig().flat():
            unknown.append(f"{line}: {span}")
        path = re.match(r"[\w-]+(/[\w-]+)*/[\w-]+\.py\b", span)
        places = (ROOT, ROOT / "distributed_autolora", ROOT / "tests")
        if path and not any((place / path[0]).exists() for place in places) and path[0] not in TO_BE_MADE:
            unknown.append(f"{line}: {span}")
    return unknown


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_of_a_document_are_taken_by_their_programs(name: str, tmp_path: Path) -> None:
    (tmp_path / "shell").mkdir()
    found = commands((ROOT / name).read_text(), name, tmp_path / "shell", sys.executable)
    assert [said for command in found if (said := problem(command, tmp_path / "home"))] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_flags_keys_and_programs_that_a_document_names_exist(name: str) -> None:
    assert unknown_names((ROOT / name).read_text()) == []


def test_a_wrong_command_in_a_document_is_found(tmp_path: Path) -> None:
    found = commands(MADE_UP, "X.md", tmp_path, sys.executable)
    problems = [said for command in found if (said := problem(command, tmp_path / "home"))]
    expected = [
        ("X.md:2: make tset", "No rule to make target"),
        ("X.md:2: ray job submit --adress X", "--adress"),
        ("X.md:4: python jobs/finetune.py --recipe custom --data.paht DATA", "--data.path"),
        ("X.md:4: python jobs/finetune.py --recipe nosuch", "nosuch"),
        ("X.md:4: python jobs/finetune.py --threat-model.epsilon 2", "epsilon"),
        ("X.md:4: python jobs/compare.py --study nosuch", "nosuch"),
        ("X.md:4: python jobs/evaluate.py --attacks pgd10", "--model"),
        ("X.md:4: autolora data prepare folder --source X", "--output"),
        ("X.md:4: autolora fintune", "no program fintune"),
        ("X.md:4: ray job submit", "--run.name"),
        ("X.md:18: python benchmarks/attack.py --ruonds 3", "--ruonds"),
        ("X.md:18: python -m tests.chaos --kills many", "many"),
        ("X.md:18: python jobs/nothing.py --epsilon 0.1 two words", "there is no file jobs/nothing.py"),
        ("X.md:18: python jobs/nothing.py --epsilon 0.2 two words", "there is no file jobs/nothing.py"),
        ("X.md:18: make mlflow POTR=1", "no variable POTR"),
        ("X.md:18: kubectl apply -f docs/nothing.yaml", "there is no file docs/nothing.yaml"),
        ("X.md:26: python jobs/finetune.py --recipe demo --sed 1", "--seed"),
    ]
    assert len(problems) == len(expected), problems
    for said, (command, reason) in zip(problems, expected, strict=True):
        assert said.startswith(command)
        assert reason in said.removeprefix(command)
    assert unknown_names(MADE_UP) == ["2: jobs/nothing.py", "2: --no-such-flag"]


@pytest.mark.parametrize("block", ["frobnicate --hard", "python 'jobs/finetune.py", "/bin/true", "rm -r x"])
def test_what_the_shell_does_not_know_in_a_block_is_refused(block: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"X\.md"):
        commands(f"```sh\n{block}\n```\n", "X.md", tmp_path, sys.executable)


def test_the_readme_has_the_commands_that_people_start_with(tmp_path: Path) -> None:
    found = commands((ROOT / "README.md").read_text(), "README.md", tmp_path, sys.executable)
    words = [command.words for command in found if command.is_whole]
    assert [("make", target) in words for target in ("install", "demo", "test")] == [True] * 3
    assert words[1] == ("autolora", "--version")
    # One command a line; two of the lines activate the environment and export a variable.
    blocks = [block.replace("\\\n", " ") for _, block in shell_blocks((ROOT / "README.md").read_text())]
    assert len(words) == len(set(words)) == sum(block.count("\n") + 1 for block in blocks) - 2
    assert (ROOT / "README.md").read_text().count("\n") <= 150


def test_the_site_lists_every_page() -> None:
    listed = re.findall(r": ([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(pages)


def test_make_help_lists_every_target_that_people_may_make() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert sorted(line.split()[1] for line in done.stdout.splitlines()) == sorted(phony[1].split())

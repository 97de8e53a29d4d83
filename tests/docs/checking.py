"""Says what is wrong with a command of a document, by the parser of the program that it calls; starts none of them."""

import ast
import contextlib
import io
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import tyro

from distributed_autolora.cli import COMMON_FLAGS, TrainingFlags, parse_flags, parse_one_of, parse_training_flags
from distributed_autolora.errors import UserError
from distributed_autolora.evaluation.attacks import parse
from distributed_autolora.orchestration.evaluations.post_training import check_attacks
from distributed_autolora.orchestration.evaluations.request import EvaluationRequest
from distributed_autolora.orchestration.studies.dry_run import dry_run
from distributed_autolora.orchestration.studies.request import CompareFlags, study_request
from distributed_autolora.programs import PROGRAMS
from tests.docs.collecting import Command

ROOT = Path(__file__).resolve().parents[2]
NOT_READ = {
    "wget": "needs the network",
    "dmesg": "needs root",
    "grep": "reads the logs of a run",
    "pip": "installs",
    "uv": "as pip",
    "kubectl": "needs Kubernetes",
    "sbatch": "needs SLURM",
}
NOT_READ |= dict.fromkeys(("tar", "cp", "git", "ruff", "mypy"), "a program that people know")
"""Programs whose arguments are not read, but for the names of files, and why."""
ONLY_PARSED = {"ray": "needs a cluster or a cloud", "sudo": "needs root", "make": "takes minutes"}
ONLY_PARSED |= dict.fromkeys(("python", "autolora"), "as make")
"""Programs whose arguments are read by their own parsers, and why nothing is started.

Done for real are --help, --dry-run and, by other tests, `make help` and the README's lines for one's own images.
"""
EXAMPLES = {"TASK": "cub", "mart": "vanilla"}
"""What is read in the place of a capital word that stands for one of a few, and of a method that a tutorial adds."""
TO_BE_MADE = ("distributed_autolora/core/plain_adversarial.py", "core/mart.py", "tests/core/test_mart.py")
"""Files that the reader of a page writes."""

Parser = Callable[[Sequence[str]], Any]


def problem(command: Command, home: Path) -> str | None:
    """Returns what is wrong with a command, beginning with its place; `home`: empty output folder of dry runs."""
    try:
        _check(command.words, command.is_whole, home)
    except (UserError, click.UsageError, ValueError) as error:
        said = error.format_message() if isinstance(error, click.UsageError) else str(error)
        return f"{command.where}: {' '.join(command.words)}: {' '.join(said.split())}"
    return None


def _check(words: tuple[str, ...], is_whole: bool, home: Path) -> None:
    program, arguments = words[0], words[1:]
    if program not in NOT_READ | ONLY_PARSED:
        raise ValueError("an unknown program")
    if program == "sudo":
        _check(arguments, is_whole, home)
    elif program == "python":
        _check_python(arguments, is_whole, home)
    elif program == "autolora":
        _check_autolora(arguments, is_whole, home)
    elif program == "make":
        _check_make(arguments)
    elif program == "ray":
        _check_ray(arguments, is_whole, home)
    elif program == "pip" and "-c" in words and not (ROOT / words[words.index("-c") + 1]).is_file():
        raise ValueError("there is no such file of constraints")
    elif program == "sbatch" and not any((ROOT / word).is_file() for word in arguments):
        raise ValueError("there is no such file")
    elif program == "kubectl" and arguments[:2] == ("apply", "-f") and not (ROOT / arguments[2]).is_file():
        raise ValueError(f"there is no file {arguments[2]}")


def _check_python(arguments: tuple[str, ...], is_whole: bool, home: Path) -> None:
    match arguments:
        case ("-c", code, *_):
            compile(code, "-c", "exec")
        case ("-m", "pytest", *paths):
            for path in paths[: next((n for n, word in enumerate(paths) if word.startswith("-")), None)]:
                if not (ROOT / path).exists() and path not in TO_BE_MADE:
                    raise ValueError(f"there is no file {path}")
        case ("-m", module, *rest) if (ROOT / module.replace(".", "/") / "__main__.py").is_file():
            _check_flags(parser_of(f"{module.replace('.', '/')}/__main__.py"), rest, is_whole, home)
        case ("-m", module, *_):
            if find_spec(module) is None:
                raise ValueError(f"there is no module {module}")
        case (path, *rest):
            shared = COMMON_FLAGS if path.startswith("jobs/") else ()
            own = [EXAMPLES.get(word, word) for word in rest if word not in shared]
            _check_flags(parser_of(path), own, is_whole, home)


def _check_autolora(words: tuple[str, ...], is_whole: bool, home: Path) -> None:
    for name in (" ".join(words[:2]), *words[:1]):
        if name in PROGRAMS:
            rest = words[len(name.split()) :]
            own = [EXAMPLES.get(word, word) for word in rest if word not in COMMON_FLAGS]
            _check_flags(parser_of(_program_file(name)), own, is_whole, home)
            return
    if words not in (("--version",), ("--help",), ()):
        raise ValueError(f"there is no program {' '.join(words)}")


def _program_file(name: str) -> str:
    return f"distributed_autolora/programs/{name.replace(' ', '_')}.py"


def _check_flags(parser: Parser, arguments: Sequence[str], is_whole: bool, home: Path) -> None:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            flags = parser(arguments)
    except SystemExit as end:
        if end.code and (is_whole or "Missing subcommand" not in said.getvalue()):
            raise ValueError(said.getvalue()) from None
        return
    except UserError as error:
        if is_whole or not any(words in str(error) for words in ("are required", "Missing from", "Expected one of")):
            raise
        return
    _check_values(flags, home)


def _check_values(flags: Any, home: Path) -> None:
    """Checks what a program checks before it looks at files and machines; makes the dry run that is asked for."""
    if isinstance(flags, TrainingFlags):
        flags.experiment.validate()
        check_attacks(flags.evaluate)
    elif isinstance(flags, EvaluationRequest):
        flags.validate()
        parse(flags.attacks)
    elif isinstance(flags, CompareFlags):
        # The pages' images are placeholders, which a dry run refuses.
        request = study_request(replace(flags, output=str(home), data=None if flags.dry_run else flags.data), "")
        if flags.dry_run and "\nIn all" not in dry_run(request):
            raise ValueError("the dry run prints no sum")


@cache
def parser_of(path: str) -> Parser:
    """Returns what reads the command line in a program of this repository: a function of the arguments."""
    if not (ROOT / path).is_file():
        raise ValueError(f"there is no file {path}")
    if path.startswith("jobs/"):
        (run,) = (node for node in _calls(ROOT / path) if ast.unparse(node.func) == "run")
        path = _program_file(ast.literal_eval(run.args[0]))
    module = import_module(path.removesuffix(".py").replace("/", "."))
    for node in _calls(ROOT / path):
        match ast.unparse(node.func):
            case "parse_training_flags":
                recipe = next(ast.literal_eval(word.value) for word in node.keywords if word.arg == "default_recipe")
                return lambda words: parse_training_flags("", recipe, words)
            case "parse_flags":
                kind = getattr(module, ast.unparse(node.args[0]))
                return lambda words: parse_flags(kind, "", words)
            case "parse_one_of":
                kinds = getattr(module, ast.unparse(node.args[0]))
                return lambda words: parse_one_of(kinds, "", words)
            case "tyro.cli" | "run_benchmark":
                return lambda words: tyro.cli(module.Flags, args=words)
            case "_parse":
                parse_arguments: Parser = module._parse
                return parse_arguments
            case "argparse.ArgumentParser":
                return _no_flags
    raise ValueError(f"{path} reads no command line")


def _calls(file: Path) -> Iterator[ast.Call]:
    """Yields the calls of a program's main() and of its `if __name__ == "__main__"`, outermost first."""
    for top in ast.parse(file.read_text()).body:
        if getattr(top, "name", "") == "main" or isinstance(top, ast.If):
            yield from (node for node in ast.walk(top) if isinstance(node, ast.Call))


def _no_flags(words: Sequence[str]) -> None:
    if set(words) - {"--help"}:
        raise ValueError("it takes no flags")


def _check_make(arguments: tuple[str, ...]) -> None:
    for name in (word.partition("=")[0] for word in arguments if "=" in word):
        if f"\n{name} ?= " not in (ROOT / "Makefile").read_text():
            raise ValueError(f"the Makefile has no variable {name}")
    targets = [word for word in arguments if "=" not in word]
    done = subprocess.run(
        ["make", "--dry-run", "--directory", str(ROOT), "--", *targets], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(done.stderr)


def _check_ray(arguments: tuple[str, ...], is_whole: bool, home: Path) -> None:
    from ray.scripts.scripts import cli

    split = arguments.index("--") if "--" in arguments else len(arguments)
    own, entrypoint = list(arguments[:split]), arguments[split + 1 :]
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group):
        name, found, own = command.resolve_command(context, own)
        assert found is not None
        command, context = found, click.Context(found, context, name)
    try:
        command.make_context(context.info_name, [*own, *(["--", *entrypoint] if entrypoint else [])])
    except click.MissingParameter:
        if is_whole:
            raise
    if entrypoint:
        _check(entrypoint, is_whole, home)

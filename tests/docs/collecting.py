"""Finds the commands in a Markdown text, and has a shell split them into words."""

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = (
    "autolora",
    "python",
    "make",
    "ray",
    "kubectl",
    "sbatch",
    "pip",
    "uv",
    "sudo",
    "wget",
    "grep",
    "tar",
    "cp",
    "git",
    "ruff",
    "mypy",
)
"""What documents may tell people to type; another first word is an unknown command."""

_SHELL_WORDS = (".", "(", "for", "while", "export", "unset", "echo")
_FENCE = re.compile(r" {0,3}(```+|~~~+)\s*(\w*)")
_SHELLS = ("sh", "bash", "shell")
_TRANSCRIPT = "console"
_TYPED = re.compile(r"(?m)^\$ ((?:.*\\\n)*.*)")
_SPAN = re.compile(r"(?<!`)`((?:[^`\n]|\n(?!\n))+)`(?!`)")
_RECORD = """#!/bin/bash -p
printf '%s\\0' "$WHERE" "${0##*/}" "$@" > "$RECORD/$EPOCHREALTIME.$$"
case "$1" in -c) exec "$PYTHON" "$@" 2> /dev/null ;; esac
exit 0
"""


@dataclass(frozen=True)
class Command:
    """One command as a shell would start it."""

    words: tuple[str, ...]
    """The program, and its arguments without their quotes."""
    where: str
    """Document and line."""
    is_whole: bool
    """A line to type; False: a mention in a sentence, which may leave out what it needs."""


def shell_blocks(text: str) -> Iterator[tuple[int, str]]:
    """Yields line number and text of shell blocks, of what transcripts show as typed, and of indented commands."""
    block: list[str] = []
    start, fence, language = 0, "", ""
    for number, line in enumerate([*text.splitlines(), ""], 1):
        match = _FENCE.match(line)
        if match and (not fence or line.strip() == fence):
            if fence and language in _SHELLS:
                yield start, "\n".join(block)
            elif fence and language == _TRANSCRIPT:
                yield start, "\n".join(_TYPED.findall("\n".join(block)))
            fence, language = ("", "") if fence else (match[1], match[2])
            block, start = [], number + 1
        elif fence:
            block.append(line)
        elif line.startswith("    "):
            start = start if block else number
            block.append(line[4:])
        else:
            if block and _first_word("\n".join(block)) in (*PROGRAMS, *_SHELL_WORDS):
                yield start, "\n".join(block)
            block = []


def spans(text: str) -> Iterator[tuple[int, str]]:
    """Yields line number and text of every piece of code inside a sentence or a table."""
    prose, fence = [], ""
    for line in text.splitlines():
        match = _FENCE.match(line)
        if match and (not fence or line.strip() == fence):
            fence = "" if fence else match[1]
            prose.append("")
        else:
            prose.append("" if fence or line.startswith("    ") else line)
    text = "\n".join(prose)
    for match in _SPAN.finditer(text):
        yield text.count("\n", 0, match.start()) + 1, match[1].replace("\n", " ")


def commands(text: str, name: str, folder: Path, python: str) -> list[Command]:
    """Returns the commands of a document, in their order; loops are played once, or until a command succeeds.

    A restricted shell that knows nothing but stand-ins for `PROGRAMS` reads the blocks. A stand-in writes one file
    with how it was called into the empty `folder`, and does nothing else; only code given to `python` by -c is run.

    Raises:
        ValueError: when the shell does not understand a block or does not know a command.
    """
    said = [(line, block, "block") for line, block in shell_blocks(text)]
    said += [(line, span, "span") for line, span in spans(text) if _first_word(span) in PROGRAMS and " " in span]
    script = "".join(f"export WHERE='{kind} {name}:{line}'\n{_typed(code)}\n" for line, code, kind in sorted(said))
    (folder / "bin").mkdir()
    for program in PROGRAMS:
        stand_in = folder / "bin" / program
        stand_in.write_text(_RECORD)
        stand_in.chmod(0o755)
    record = folder / "record"
    record.mkdir()
    environment = {"PATH": str(folder / "bin"), "RECORD": str(record), "PYTHON": python, "HOME": str(folder)}
    shell = ["/bin/bash", "--norc", "--noprofile", "--restricted", "-s"]
    done = subprocess.run(
        shell, input=script, env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    if done.stderr:
        raise ValueError(f"{name}: {done.stderr}in{os.linesep}{script}")
    return [_command(call.read_text().removesuffix("\0").split("\0")) for call in sorted(record.iterdir())]


def _typed(code: str) -> str:
    code = re.sub(r"(?m)^\. \.venv/bin/activate\b", ":", code)
    return code.replace(".venv/bin/python", "python")


def _first_word(code: str) -> str:
    words = re.findall(r"\(|[^\s()]+", code.replace(".venv/bin/python", "python"))
    return words[0] if words else ""


def _command(entry: list[str]) -> Command:
    where, *words = entry
    kind, _, place = where.partition(" ")
    # [--data DATA] may be left out
    words = [re.sub(r"^\[(?=-)|(?<=\w)\]$", "", word) for word in words if word != "..."]
    return Command(tuple(words), place, kind == "block")

"""Encodings and warnings of a program, as people meet them."""

import os
import subprocess
from pathlib import Path

import pytest

from distributed_autolora.reporting.drawn_text import class_label, drawable
from tests.programs import program

SHOW = """
import sys, warnings
from distributed_autolora.cli import run_program

def main():
    warnings.warn("a library's remark\\nin two lines", UserWarning)
    with open(sys.argv[1], "w") as file:
        file.write("K\\u00e4se")
    print(sys.flags.utf8_mode, ascii(sys.argv[1:]))

run_program(main)
"""


@pytest.fixture(scope="module")
def latin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a German Latin-1 locale."""
    folder = tmp_path_factory.mktemp("locales")
    command = ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(folder / "de_DE.ISO-8859-1")]
    try:
        subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("this system has no localedef")
    if not (folder / "de_DE.ISO-8859-1").is_dir():
        pytest.skip("this system has no sources of locales")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    return kept | {"LOCPATH": str(folder), "LC_ALL": "de_DE.ISO-8859-1"}


def test_a_program_is_in_utf_8_whatever_the_locale(tmp_path: Path, latin: dict[str, str]) -> None:
    done = program("-c", SHOW, tmp_path / "\u00fc", base=latin)
    assert done.stdout == f"1 {[str(tmp_path / chr(0xFC))]!a}\n", done.stderr
    assert (tmp_path / "\u00fc").read_bytes() == "K\u00e4se".encode()


def test_warnings_of_libraries_are_one_line(tmp_path: Path) -> None:
    assert program("-c", SHOW, tmp_path / "x").stderr == "warning: a library's remark\n"


def test_names_that_the_font_lacks_are_numbers_in_figures() -> None:
    assert class_label("K\u00e4se", 3) == "K\u00e4se"
    assert class_label("\u732b", 3) == "class 3"
    assert class_label("5$ or 6$", 3) == r"5\$ or 6\$"
    assert drawable("a\u732b") == "a\u25a1"

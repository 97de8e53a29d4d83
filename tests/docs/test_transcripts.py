"""`make transcripts` writes what commands print into a page, and the tutorials' changes still fit the code."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.docs.checking import ROOT
from tests.docs.transcripts import ADDRESS, Place, remade

PAGE = """
```python
# made.py
print("a line")
```

```diff
--- a/made.py
+++ b/made.py
@@ -1,1 +1,1 @@
-print("a line")
+print("another line")
```

```console
$ python made.py; \\
    pwd
old
$ for i in 1 2 3; do echo slow $i; sleep 0.3; done
old
$ seq 9
x
...
y
z
$ echo 12:34; echo "  8  0:05 left"; echo ADDRESS; python -c "import time; print('1/9 x'); time.sleep(60)"
0
0
0
1/9 y
^C
```

```sh
not run
```
"""


def test_commands_run_in_order_and_their_output_replaces_the_page_s(tmp_path: Path) -> None:
    place = Place(tmp_path, "http://127.0.0.1:1")
    place.folder.mkdir()
    expected = (
        PAGE.replace("old\n", "another line\n/home/you/autolora\n", 1)
        .replace("old\n", "slow 1\nslow 2\nslow 3\n")
        .replace("x\n...\ny\nz\n", "1\n...\n8\n9\n")
        .replace("0\n0\n0\n1/9 y\n", f"M:SS\n  N  M:SS left\n{ADDRESS}\n1/9 x\n")
        .replace("ADDRESS", ADDRESS)
    )
    made = remade(PAGE.replace("ADDRESS", ADDRESS), place)
    before, interrupted, after = made.partition("^C\n")
    assert before + interrupted + after[after.index("```") :] == expected


@pytest.mark.parametrize(
    "block", ["```python\nraise ValueError\n```", "```diff\n--- a/x\n```", "```console\n$ echo\nx\ny\n...\n```"]
)
def test_a_block_that_fails_and_a_command_that_prints_too_little_end_it(block: str, tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.folder.mkdir()
    with pytest.raises(ValueError, match=r"."):
        remade(f"{block}\n", place)


def test_the_changes_of_the_tutorials_fit_the_code() -> None:
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "tutorials").glob("*.md"))
    changes = re.findall(r"^```diff\n(.*?)^```", pages, re.MULTILINE | re.DOTALL)
    assert len(changes) >= 3
    command = ["patch", "-p1", "--dry-run", "--force", "--directory", str(ROOT)]
    done = subprocess.run(command, input="".join(changes), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout

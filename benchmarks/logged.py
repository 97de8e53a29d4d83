"""Runs a program and writes what the package says meanwhile: `python benchmarks/logged.py LOG PROGRAM [flags]`.

One JSON object a line, as Ray Train's own logs are: "asctime" and "message".
"""

from __future__ import annotations

import logging
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Runs the program in this process as if it had been called itself."""
    log, *sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    handler = logging.FileHandler(log)
    handler.setFormatter(logging.Formatter('{"asctime": "%(asctime)s", "message": "%(message)s"}'))
    logger = logging.getLogger("distributed_autolora")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.info("Python begins.")
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()

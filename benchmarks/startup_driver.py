"""Runs a program with the package's log in a file: `python benchmarks/startup_driver.py LOG PROGRAM [flags]`.

One JSON object a line, "asctime" and "message", as in Ray Train's own logs.
"""

import logging
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    log, *sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    handler = logging.FileHandler(log)
    handler.setFormatter(logging.Formatter('{"asctime": "%(asctime)s", "message": "%(message)s"}'))
    logger = logging.getLogger("distributed_autolora")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.info("Python begins.")
    runpy.run_path(sys.argv[0], run_name="__main__")

"""The same as `autolora evaluate`, as `ray job submit -- python jobs/evaluate.py` runs it."""

from distributed_autolora.programs import run

if __name__ == "__main__":
    run("evaluate")

"""The same as `autolora compare`, as `ray job submit -- python jobs/compare.py` runs it."""

from distributed_autolora.programs import run

if __name__ == "__main__":
    run("compare")

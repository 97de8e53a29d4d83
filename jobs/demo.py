"""The same as `autolora demo`, as `ray job submit -- python jobs/demo.py` runs it."""

from distributed_autolora.programs import run

if __name__ == "__main__":
    run("demo")

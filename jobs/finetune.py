"""The same as `autolora finetune`, as `ray job submit -- python jobs/finetune.py` runs it."""

from distributed_autolora.programs import run

if __name__ == "__main__":
    run("finetune")

"""The same as `autolora pretrain`, as `ray job submit -- python jobs/pretrain.py` runs it."""

from distributed_autolora.programs import run

if __name__ == "__main__":
    run("pretrain")

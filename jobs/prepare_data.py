"""The same as `autolora data prepare`, as `ray job submit -- python jobs/prepare_data.py` runs it."""

from distributed_autolora.programs import run

if __name__ == "__main__":
    run("data prepare")

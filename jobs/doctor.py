"""The same as `autolora doctor`, as `ray job submit -- python jobs/doctor.py` runs it."""

from distributed_autolora.programs import run

if __name__ == "__main__":
    run("doctor")

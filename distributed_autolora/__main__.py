"""`python -m distributed_autolora`: the same as the command `autolora`."""

from distributed_autolora.programs import main

if __name__ == "__main__":
    main()

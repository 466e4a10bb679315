"""`python -m glitchrun`, the same as the command `glitchrun`."""

from glitchrun.cli import main

if __name__ == "__main__":
    main(prog_name="glitchrun")

"""`python -m tq3` is the same as `tq3`."""

from tq3.cli.app import main

if __name__ == "__main__":
    main()

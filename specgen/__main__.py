"""`python -m specgen` runs the command line."""

from specgen.cli.app import main

if __name__ == "__main__":
    main()

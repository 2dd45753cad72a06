"""`python -m specgen` runs the command line."""

from specgen.cli.app import start

if __name__ == "__main__":
    start()

"""specgen: speculative text generation on your own machine, shown as it happens."""

__version__ = "0.1.0"

"""What everything else builds on, with the standard library only; and the version of this package."""

__version__ = "0.1.0"

"""Holds the version, and what all other folders build on, with the standard library only."""

__version__ = "0.1.0"

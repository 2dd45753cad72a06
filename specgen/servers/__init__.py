"""Speaks to inference servers."""

KEY_VARIABLE = "SPECGEN_API_KEY"
"""Environment variable with the key for a server."""

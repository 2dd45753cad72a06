"""Processes for tests: a fork server with the libraries imported, its clients, and real interpreters."""

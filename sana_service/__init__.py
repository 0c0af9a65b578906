"""Sana and SANA-Sprint behind a typed HTTP interface."""

__version__ = "0.1.0"

"""Servers to compare with: the stock pipelines, served as one does it on the first day."""

"""Overnight: experiment grids that are still there in the morning."""

__version__ = "0.1.0"

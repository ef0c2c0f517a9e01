"""Strategies: one file each, imported as ``clplat.strategies``."""

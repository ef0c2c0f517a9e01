"""Scenarios: one file per family, imported as ``clplat.scenarios``."""

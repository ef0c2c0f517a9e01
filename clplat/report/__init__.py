"""What runs have in common and where they differ: tables, figures and a page of both, read from run directories.

Nothing here imports torch, and nothing trusts what a run directory holds: names and values are text, never markup.
"""

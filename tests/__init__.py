"""Tests kill processes, of whose files the kernel loses nothing; so none of their many runs waits for a disk."""

import functools
import os

import lightning_fabric.utilities.registry as lightning_registry

os.fsync = lambda _descriptor: None

# Each Trainer looks through all installed packages for callbacks, which is most of the time that making one takes.
lightning_registry.entry_points = functools.cache(lightning_registry.entry_points)

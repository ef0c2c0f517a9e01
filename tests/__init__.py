"""Tests kill processes, of whose files the kernel loses nothing; so none of their many runs waits for a disk."""

import os

os.fsync = lambda _descriptor: None

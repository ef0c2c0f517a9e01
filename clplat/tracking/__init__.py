"""The record of a run: its directory, and mirrors of it elsewhere."""

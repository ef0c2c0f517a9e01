"""Mirrors of a run. The run directory is the truth; these only show it.

All of them show the same numbers under the same names (:mod:`clplat.tracking.names`), and all are given what the record
holds when the run starts or goes on: it was cut to the checkpoint by then, so what a mirror has beyond it belongs to
steps that will come again.
"""

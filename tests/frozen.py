"""Imported last by the fork server: what it has imported is garbage to nobody. A collection in a forked process would
otherwise touch, and so copy, all of it: more than half a second each."""

import gc

gc.collect()
gc.freeze()

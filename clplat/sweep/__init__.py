"""Many runs from one command: which ones, how they are run on this machine, and which options are best.

Nothing here imports torch; the processes that train do.
"""

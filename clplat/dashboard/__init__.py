"""``clplat dashboard``: runs in a browser while they go on. Standard library and plotly; no torch, nothing is written.

:mod:`~clplat.dashboard.index` knows the runs, :mod:`~clplat.dashboard.data` answers questions about them,
:mod:`~clplat.dashboard.server` decides who may ask, and ``static`` is the page.
"""

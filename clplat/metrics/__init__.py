"""Metrics: accumulators per experience and what is derived from the accuracy matrix."""

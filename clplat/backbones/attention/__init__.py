"""Softmax attention: keys and values as state."""

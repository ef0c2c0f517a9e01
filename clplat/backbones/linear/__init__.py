"""Linear attention: a matrix per head as state."""

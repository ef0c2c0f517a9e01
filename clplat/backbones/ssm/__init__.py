"""State spaces: a linear system per channel as memory, with fixed or input-dependent coefficients."""

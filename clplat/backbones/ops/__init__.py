"""Pure functions: a naive loop reference beside each parallel or chunked form."""

"""clplat: continual learning on sequences."""

__version__ = "0.1.0"

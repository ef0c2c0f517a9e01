"""Sequence backbones: encoders, blocks, mixers by family and the pure functions under them."""

"""Probes: what a trained network has become, measured from outside. One file for each; ``conf/probe`` names them."""

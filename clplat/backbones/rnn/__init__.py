"""Recurrent networks that must be run step by step."""

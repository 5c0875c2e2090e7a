"""Pairs that runs learn from."""

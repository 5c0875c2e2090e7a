"""Offline training and distillation; it imports the package, and nothing imports it."""

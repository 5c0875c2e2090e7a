"""Scores against ground truth, and what a recorded run achieved."""

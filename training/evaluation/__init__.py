"""Scores of pointmaps against the truth: the tables of the paper."""

"""Errors raised at the package's borders.

Each message names the value seen, the value wanted, and where.
"""


class ReconError(Exception):
    """Base of every error that a caller of this package may want to catch."""


class CalibrationError(ReconError):
    """A calibration is missing, inconsistent with its images, or physically impossible."""


class InputError(ReconError):
    """An image, bag, file or message cannot be used as it is."""


class ModelError(ReconError):
    """A model file is missing, corrupted, or not of a form this package runs."""

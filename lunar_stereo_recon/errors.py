"""Errors raised at the package's borders.

Each message names the value seen, the value wanted, and where.
"""

# Of a text from outside, as much as a message quotes, characters.
MAX_QUOTED = 80


class ReconError(Exception):
    """Base of every error that a caller of this package may want to catch."""


class CalibrationError(ReconError):
    """A calibration is missing, inconsistent with its images, or physically impossible."""


class InputError(ReconError):
    """An image, bag, file or message cannot be used as it is."""


class ModelError(ReconError):
    """A model file is missing, corrupted, or not of a form this package runs."""


def quoted(text: str) -> str:
    """Return a text from outside as a message quotes it: escaped, and cut off where it is long."""
    if len(text) <= MAX_QUOTED:
        return repr(text)
    return f'{text[:MAX_QUOTED]!r} (the first {MAX_QUOTED} of {len(text)} characters)'

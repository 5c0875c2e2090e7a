"""Metric point clouds and calibrated confidence from a lunar rover's stereo camera."""

__version__ = '0.1.0'

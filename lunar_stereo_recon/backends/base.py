"""Interface between the pipeline and a matcher, learned or classical. Arrays are NumPy's."""

from __future__ import annotations

from typing import Any, Protocol

from lunar_stereo_recon.datatypes import DisparityPrediction, FloatImage


class Backend(Protocol):
    """A matcher for one rectified pair.

    Attributes:
        name: Model or algorithm, for logs and diagnostics.
        provider: What it runs on, as the runtime reports it, e.g. 'CPUExecutionProvider'.
        provider_fallback: Why that is not the provider asked for; '' where it is.
        size_multiple: Height and width of the images must be multiples of this, pixels.
        max_width_px: Images wider than this are scaled down first; None takes any size. Fixed:
            a narrower width is the affair of who uses the backend.
        max_disparity_px: Largest column difference that can be found at the given image size.
        confidence_calibration: How to turn confidence features into a probability, as stored
            with the model (see `geometry.confidence`); None where the model has none.
        choice: Why it was chosen, where 'auto' was asked for; else ''.
        metadata: Texts stored with the model: recipe, version, hash; empty where there is none.
    """

    name: str
    provider: str
    provider_fallback: str
    size_multiple: int
    max_width_px: int | None
    max_disparity_px: float
    confidence_calibration: dict[str, Any] | None
    choice: str
    metadata: dict[str, str]

    def predict(self, left: FloatImage, right: FloatImage) -> DisparityPrediction:
        """Match two images (H, W) float32 in [0, 1], H and W multiples of `size_multiple`."""
        ...

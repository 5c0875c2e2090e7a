"""What each method makes of a drive with known poses: its map of the ground, its flicker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lunar_stereo_recon.benchmark.methods import Estimate
from lunar_stereo_recon.datatypes import StereoPair
from lunar_stereo_recon.evaluation.flicker import Flicker
from lunar_stereo_recon.evaluation.scores import GroundTruth
from lunar_stereo_recon.evaluation.terrain_drive import TerrainDrive
from lunar_stereo_recon.geometry.disparity import depth_from_disparity
from lunar_stereo_recon.geometry.pose_track import Pose
from lunar_stereo_recon.geometry.sigma import depth_sigma
from lunar_stereo_recon.report.results import shown
from lunar_stereo_recon.report.sources import SourcePair
from lunar_stereo_recon.visualize import RgbImage


class MappedDrives:
    """One map for each method, as `terrain_node` would make it; see `TerrainDrive`."""

    def __init__(self, methods: Sequence[str]) -> None:
        """Begin with empty maps."""
        self._drives = {method: TerrainDrive() for method in methods}

    def add(
        self,
        item: SourcePair,
        images: StereoPair,
        truth: GroundTruth | None,
        estimates: Mapping[str, Estimate],
    ) -> None:
        """Add what users get of a pair; one without pose is left out."""
        true_depth = None
        if truth is not None:
            true_depth = np.where(truth.valid, truth.depth, np.float32(np.nan))
        for method, drive in self._drives.items():
            estimate = estimates[method]
            given = shown(estimate)
            disparity = np.where(given, estimate.disparity, np.float32(np.nan))
            depth = depth_from_disparity(disparity, images.calibration)
            confidence, sigma_m = estimate.confidence, None
            if confidence is None:
                confidence = given.astype(np.float32)
            if estimate.sigma_px is not None:
                sigma_m = depth_sigma(estimate.sigma_px, depth, images.calibration)
            drive.add(
                depth,
                confidence,
                sigma_m,
                images.calibration,
                None if item.pose is None else item.pose.matrix,
                item.stamp_ns,
                true_depth,
            )

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return the figures of each method's map; those without a map are left out."""
        found = {method: drive.figures() for method, drive in self._drives.items()}
        return {method: figures for method, figures in found.items() if figures}

    def picture(self) -> RgbImage | None:
        """Return the picture of the first method's map; None where there is none."""
        return next((drive.picture() for drive in self._drives.values()), None)


class FlickeringDrives:
    """The flicker of what users get of each method; see `Flicker`."""

    def __init__(self, methods: Sequence[str]) -> None:
        """Begin without frames."""
        self._drives = {method: Flicker() for method in methods}

    def add(self, item: SourcePair, images: StereoPair, estimates: Mapping[str, Estimate]) -> None:
        """Add a pair; one without pose is left out."""
        if item.pose is None:
            return
        pose = Pose(item.pose.matrix[:3, :3], item.pose.matrix[:3, 3])
        for method, drive in self._drives.items():
            estimate = estimates[method]
            disparity = np.where(shown(estimate), estimate.disparity, np.float32(np.nan))
            drive.add(disparity, images.calibration, pose)

    def figures(self) -> dict[str, dict[str, float]]:
        """Return the figures of each method; those without common points are left out."""
        found = {method: drive.figures() for method, drive in self._drives.items()}
        return {method: figures for method, figures in found.items() if figures}

"""What a recorded run achieved: scores, a fused cloud and pictures from the clouds it published.

Reads the source bag and the bag of results side by side, frame by frame, so that memory does not
grow with their length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.highlevel import AnyReader
from rosbags.typesys import get_typestore, Stores

from lunar_stereo_recon.backends import load_backend
from lunar_stereo_recon.backends.base import Backend
from lunar_stereo_recon.bags.reader import BagFrame, StereoBagReader
from lunar_stereo_recon.datatypes import FloatImage, Reconstruction, StereoCalibration, StereoPair
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.evaluation.fusion import FusedCloud, VoxelFusion
from lunar_stereo_recon.evaluation.scores import GroundTruth, PairScore, score_pair, summarise
from lunar_stereo_recon.evaluation.terrain_drive import TerrainDrive
from lunar_stereo_recon.files.results import write_ply_points, write_png
from lunar_stereo_recon.geometry.disparity import (
    disparity_from_columns,
    disparity_from_depth,
    fill_from_background,
)
from lunar_stereo_recon.geometry.terrain import TerrainOptions
from lunar_stereo_recon.messages import stamp_ns, StereoTopics
from lunar_stereo_recon.result_messages import CLOUD_FIELDS, SIGMA_FIELD
from lunar_stereo_recon.visualize import (
    contact_sheet,
    draw_text,
    height_scale,
    render_cloud,
    SheetRow,
)

CLOUD_TYPE = 'sensor_msgs/msg/PointCloud2'
# Farther ground truth does not count, as in the published baselines.
MAX_TRUE_DEPTH_M = 40.0
SHEET_ROWS = 6
# Frames whose pictures are held in memory until the rows are chosen.
MOST_ROWS_KEPT = 40


@dataclass(frozen=True)
class ReportSettings:
    """Settings of a report.

    Attributes:
        voxel_m: Edge of the fused cloud's voxels, metres.
        min_confidence: Points below this stay out of the fused cloud.
        max_range_m: Points deeper than this stay out of the fused cloud, metres.
        topics: Topics of the rig; found where None.
        calibration: Two camera_info files in place of the source's camera_infos; or empty.
        tolerance_s: Largest difference of left and right stamps, seconds.
        baseline_m: Overrides the baseline of the source's camera_info where positive.
        white_level: Image value that becomes 1.0; the encoding's maximum where None.
        rectify: The images of the source are raw; None looks at names and distortion.
    """

    voxel_m: float = 0.01
    min_confidence: float = 0.8
    max_range_m: float = 12.0
    topics: StereoTopics | None = None
    calibration: tuple[Path, ...] = ()
    tolerance_s: float = 0.0
    baseline_m: float = 0.0
    white_level: float | None = None
    rectify: bool | None = None


@dataclass
class Scores:
    """Scores of the published clouds and, on the same frames, of OpenCV's StereoSGBM.

    Attributes:
        published: One a frame with ground truth.
        sgbm: The same for SGBM as it answers.
        sgbm_filled: The same with SGBM's holes filled from the background.
        density: Share of all pixels with a published point, one a frame.
        sgbm_ms: Milliseconds that SGBM took, one a frame.
    """

    published: list[PairScore] = field(default_factory=list)
    sgbm: list[PairScore] = field(default_factory=list)
    sgbm_filled: list[PairScore] = field(default_factory=list)
    density: list[float] = field(default_factory=list)
    sgbm_ms: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """Return the pooled figures for a summary; those against ground truth only with it."""
        figures: dict[str, Any] = {'image_density': float(np.mean(self.density or [0.0]))}
        for name in ('published', 'sgbm', 'sgbm_filled'):
            scores = getattr(self, name)
            if scores:
                pooled = summarise(scores)['overall']
                figures[name] = {**pooled['all'], 'ause': pooled['ause']}
        if self.sgbm_ms:
            figures['sgbm_ms_median'] = float(np.median(self.sgbm_ms))
        return figures


def write_report(
    source: Path,
    results: Path,
    directory: Path,
    settings: ReportSettings | None = None,
    progress: Callable[[int], object] | None = None,
    show: Callable[[StereoPair, Reconstruction, NDArray[np.float64] | None], object] | None = None,
) -> dict[str, Any]:
    """Write the fused PLY, the contact sheet and views of the cloud; return the figures.

    Args:
        source: Bag with the stereo images, and ground truth where it has any.
        results: Bag with the clouds that were published for them.
        directory: Where `fused.ply`, `contact_sheet.png`, `cloud.png` and, for posed frames,
            `map.png` go.
        settings: Settings of the fused cloud.
        progress: Called with 1 after each frame.
        show: Called with each frame that has a result, and the (4, 4) matrix of its pose.

    Returns:
        Figures, ready for JSON: frames with a result, accuracy, fused cloud, files.

    Raises:
        InputError: A bag cannot be read, or no frame of the source has a result.
    """
    settings = settings or ReportSettings()
    scores = Scores()
    rows: list[SheetRow] = []
    with_truth: list[SheetRow] = []
    sgbm = load_backend('sgbm')
    with StereoBagReader(
        source,
        settings.topics,
        tolerance_s=settings.tolerance_s,
        calibration=settings.calibration,
    ) as reader:
        cloud = _FusedFrames(settings, posed=bool(reader.pose_topic))
        terrain = TerrainDrive(TerrainOptions(max_range_m=min(settings.max_range_m, 10.0)))
        count = reader.frame_count
        # A row with an error picture says more: the others serve where there is no truth.
        stride = max(count // MOST_ROWS_KEPT, 1)
        shown = set(np.linspace(0, count - 1, min(SHEET_ROWS, count)).round().astype(int))
        for frame, pair, result in _matched_frames(reader, results, settings):
            truth = ground_truth_of(frame, pair.calibration)
            _score(scores, result, pair, truth, sgbm)
            cloud.add(result, frame)
            terrain.add_result(result, frame)
            if truth is not None and frame.index % stride == 0:
                with_truth.append(_sheet_row(frame, result, truth))
            elif frame.index in shown or not rows:
                rows.append(_sheet_row(frame, result, truth))
            if show is not None:
                show(pair, result, None if frame.pose is None else frame.pose.matrix)
            if progress is not None:
                progress(1)
    if not scores.density:
        raise InputError(f'{results}: no cloud with the stamp of a stereo frame of {source}')
    sheet = _evenly(with_truth or rows, SHEET_ROWS)
    write_png(directory / 'contact_sheet.png', contact_sheet(source.stem, sheet))
    fused = cloud.write(directory)
    return {
        'frames_with_cloud': len(scores.density),
        'accuracy': scores.figures(),
        'cloud': fused,
        **terrain.write(directory),
    }


def _evenly(rows: list[SheetRow], count: int) -> list[SheetRow]:
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return [rows[place] for place in places]


def published_clouds(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (stamp in nanoseconds, PointCloud2) of the bag's first cloud topic, in order.

    Raises:
        InputError: The bag has no cloud.
    """
    with AnyReader([path], default_typestore=get_typestore(Stores.ROS2_JAZZY)) as reader:
        connections = [c for c in reader.connections if c.msgtype == CLOUD_TYPE]
        if not connections:
            topics = ', '.join(sorted(c.topic for c in reader.connections)) or 'none'
            raise InputError(f'{path}: no topic of type {CLOUD_TYPE}; topics are {topics}')
        for connection, _, raw in reader.messages(connections=connections[:1]):
            message: Any = reader.deserialize(raw, connection.msgtype)
            yield stamp_ns(message), message


def reconstruction_of_cloud(message: Any, calibration: StereoCalibration) -> Reconstruction:
    """Return the reconstruction that an organised cloud of this package shows.

    Args:
        message: PointCloud2 with the float32 fields x, y, z, rgb, confidence and, possibly, sigma.
        calibration: Calibration of the left image that the cloud belongs to.

    Raises:
        InputError: The cloud has other fields or another size.
    """
    names = tuple(field.name for field in message.fields)
    if names not in (CLOUD_FIELDS, (*CLOUD_FIELDS, SIGMA_FIELD)):
        raise InputError(f'cloud has the fields {names}; {CLOUD_FIELDS} are needed')
    if (message.width, message.height) != (calibration.width, calibration.height):
        raise InputError(
            f'cloud is {message.width}x{message.height} but the images are '
            f'{calibration.width}x{calibration.height}'
        )
    shape = (message.height, message.width, len(names))
    values = np.frombuffer(message.data, '<f4').reshape(shape)
    blue_green_red = np.ascontiguousarray(values[..., 3]).view(np.uint8).reshape(*shape[:2], 4)
    depth = np.ascontiguousarray(values[..., 2])
    sigma = np.ascontiguousarray(values[..., 5]) if SIGMA_FIELD in names else None
    # A backend that cannot tell sigma leaves it NaN in the whole cloud.
    known = sigma is not None and bool(np.isfinite(sigma).any())
    return Reconstruction(
        disparity=disparity_from_depth(depth, calibration),
        depth=depth,
        confidence=np.ascontiguousarray(values[..., 4]),
        points=np.ascontiguousarray(values[..., :3]),
        color=np.ascontiguousarray(blue_green_red[..., 2::-1]),
        calibration=calibration,
        stamp_ns=stamp_ns(message),
        frame_id=message.header.frame_id,
        depth_sigma_m=sigma if known else None,
    )


def ground_truth_of(frame: BagFrame, calibration: StereoCalibration) -> GroundTruth | None:
    """Return the ground truth of a frame, None where the bag has none for it.

    A bag tells neither shadow nor occlusion, so only the subset 'all' means something.

    Raises:
        CalibrationError: The depth image has another size than the camera images.
    """
    depth = frame.depth()
    if depth is None:
        return None
    valid = np.isfinite(depth) & (depth <= MAX_TRUE_DEPTH_M)
    return GroundTruth(disparity_from_depth(depth, calibration), depth, valid)


def _matched_frames(
    reader: StereoBagReader, results: Path, settings: ReportSettings
) -> Iterator[tuple[BagFrame, StereoPair, Reconstruction]]:
    """Yield the frames that have a cloud with their stamp; both bags are in order of stamps."""
    clouds = published_clouds(results)
    stamp, message = next(clouds, (None, None))
    for frame in reader.frames():
        while stamp is not None and stamp < frame.stamp_ns:
            stamp, message = next(clouds, (None, None))
        if stamp == frame.stamp_ns:
            pair = frame.pair(
                baseline_m=settings.baseline_m,
                white_level=settings.white_level,
                rectify=settings.rectify,
            )
            yield frame, pair, reconstruction_of_cloud(message, pair.calibration)


def _score(
    scores: Scores,
    result: Reconstruction,
    pair: StereoPair,
    truth: GroundTruth | None,
    sgbm: Backend,
) -> None:
    scores.density.append(float(result.valid_mask.mean()))
    if truth is None:
        return
    factor = pair.calibration.fx * pair.calibration.baseline_m
    start = time.perf_counter()
    columns = sgbm.predict(pair.left, pair.right).disparity
    scores.sgbm_ms.append(1e3 * (time.perf_counter() - start))
    rival = disparity_from_columns(columns, pair.calibration)
    scores.published.append(score_pair(result.disparity, truth, factor, result.confidence))
    scores.sgbm.append(score_pair(rival, truth, factor))
    scores.sgbm_filled.append(score_pair(fill_from_background(rival), truth, factor))


def _sheet_row(frame: BagFrame, result: Reconstruction, truth: GroundTruth | None) -> SheetRow:
    caption = f'frame {frame.index}   points on {100 * result.valid_mask.mean():.1f} % of pixels'
    error: FloatImage | None = None
    if truth is not None:
        error = np.abs(result.disparity - truth.disparity)
        error[~truth.valid] = np.nan
        known = error[np.isfinite(error)]
        if known.size:
            caption += (
                f'   error: median {np.median(known):.2f} px, '
                f'above 1 px {100 * np.mean(known > 1):.1f} %'
            )
    return SheetRow(caption, result.color, result.depth, result.confidence, error)


class _FusedFrames:
    """The fused cloud of all frames with a pose; of the first frame alone in a bag without."""

    def __init__(self, settings: ReportSettings, posed: bool) -> None:
        self._settings = settings
        self._posed = posed
        self._fusion = VoxelFusion(settings.voxel_m, settings.min_confidence, settings.max_range_m)
        self._first_pose: NDArray[np.float64] | None = None
        self._frame_id = ''
        self._frames = 0

    def add(self, result: Reconstruction, frame: BagFrame) -> None:
        if self._posed and frame.pose is not None:
            self._add(result, frame.pose.matrix, frame.pose.frame_id)
        elif not self._posed and self._frames == 0:
            self._add(result, np.eye(4), result.frame_id)

    def _add(self, result: Reconstruction, pose: NDArray[np.float64], frame_id: str) -> None:
        self._fusion.add(result, pose)
        if self._frames == 0:
            self._first_pose, self._frame_id = pose, frame_id
        self._frames += 1

    def write(self, directory: Path) -> dict[str, Any]:
        cloud = self._fusion.cloud()
        axes = 'z up' if self._posed else 'x right, y down, z forward'
        frame = f'frame {self._frame_id}: {axes}, metres'
        count = write_ply_points(
            directory / 'fused.ply', cloud.points, cloud.colors, cloud.confidence, frame
        )
        if self._first_pose is not None and count:
            picture = cloud_picture(cloud, self._first_pose, z_up=self._posed)
            write_png(directory / 'cloud.png', picture)
        return {
            'points': count,
            'frames': self._frames,
            'posed': self._posed,
            'frame_id': self._frame_id,
            'voxel_m': self._settings.voxel_m,
            'min_confidence': self._settings.min_confidence,
            'max_range_m': self._settings.max_range_m,
        }


def cloud_picture(
    cloud: FusedCloud, map_from_camera: NDArray[np.float64], *, z_up: bool
) -> NDArray[np.uint8]:
    """Return two views of a cloud, one above the other: in its colours, and by height.

    Args:
        cloud: The cloud.
        map_from_camera: Pose of a camera in the cloud's frame; the view is from behind it.
        z_up: Whether z of the cloud's frame points up (REP 103); else -y does (optical frame).
    """
    pose = map_from_camera
    up = np.array([0.0, 0.0, 1.0]) if z_up else np.array([0.0, -1.0, 0.0])
    # If the camera looks straight up or down, the top of its image is ahead.
    axis = pose[:3, 2] if abs(pose[:3, 2] @ up) < 0.999 else -pose[:3, 1]
    forward = axis - up * (axis @ up)
    forward /= np.linalg.norm(forward)
    heights = cloud.points @ up
    ground = float(np.median(heights))
    camera = pose[:3, 3]
    eye = camera - 1.5 * forward + 0.6 * up
    target = camera + 4.0 * forward
    target += up * (ground - target @ up)
    scale = height_scale(heights)
    colors = (cloud.colors, scale.colors(heights[:, None])[:, 0])
    views = [render_cloud(cloud.points, c, eye, target, up=up, size=(1280, 640)) for c in colors]
    legend = scale.bar(views[0].shape[1])
    title = np.full((30, views[0].shape[1], 3), 250, np.uint8)
    draw_text(title, f'{len(cloud.points):,} points', (14, 20), 0.55)
    return np.concatenate([title, *views, legend])

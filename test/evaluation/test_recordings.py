"""The report on a recorded run: a plane whose true cloud is known, scored, fused and drawn."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.bags.reader import Pose, StereoBagReader
from lunar_stereo_recon.bags.writer import BagWriter, make_message, pose_message
from lunar_stereo_recon.commands.demo import (
    frame_counts,
    latencies,
    received_rate_hz,
)
from lunar_stereo_recon.datatypes import Reconstruction, StereoCalibration
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.evaluation.fusion import FusedCloud
from lunar_stereo_recon.evaluation.recordings import (
    cloud_picture,
    published_clouds,
    reconstruction_of_cloud,
    ReportSettings,
    write_report,
)
from lunar_stereo_recon.evaluation.summary_table import format_summary
from lunar_stereo_recon.geometry.camera import points_from_depth
from lunar_stereo_recon.geometry.disparity import disparity_from_depth
from lunar_stereo_recon.result_messages import (
    camera_info_message,
    image_message,
    point_cloud_message,
)

WIDTH, HEIGHT = 96, 64
PLANE_DEPTH_M = 2.0
STEP_M = 0.1
SECOND_NS = 1_000_000_000


@pytest.fixture
def calibration():
    return StereoCalibration(80.0, 80.0, 47.5, 31.5, 47.5, 0.2, WIDTH, HEIGHT)


@pytest.fixture
def texture():
    noise = np.random.default_rng(3).integers(0, 255, (HEIGHT, WIDTH + 8)).astype(np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.0)


def write_source(path: Path, calibration, texture, count: int, ground_truth: bool = True) -> None:
    """Write frames of a plane at PLANE_DEPTH_M, seen by a camera that moves to its right."""
    disparity = round(calibration.fx * calibration.baseline_m / PLANE_DEPTH_M)
    left, right = texture[:, :WIDTH], texture[:, disparity : WIDTH + disparity]
    depth = np.full((HEIGHT, WIDTH), PLANE_DEPTH_M, np.float32)
    with BagWriter(path) as bag:
        for index in range(count):
            at = index * SECOND_NS
            for side, image in (('left', left), ('right', right)):
                message = image_message(make_message, image, 'mono8', at, 'camera')
                bag.write(f'/{side}/image_rect', message, at)
                info = camera_info_message(
                    make_message, calibration, at, 'camera', right=side == 'right'
                )
                bag.write(f'/{side}/camera_info', info, at)
            if ground_truth:
                message = image_message(make_message, depth, '32FC1', at, 'camera')
                bag.write('/ground_truth/depth', message, at)
                # Optical axis along the map's x axis, image x along -y.
                pose = pose_message(
                    np.array([0.0, -STEP_M * index, 1.0]), np.array([-0.5, 0.5, -0.5, 0.5]), at
                )
                bag.write('/ground_truth/pose', pose, at)


def write_results(path: Path, calibration, indices, disparity_error_px: float = 0.0) -> None:
    true = disparity_from_depth(np.full((HEIGHT, WIDTH), PLANE_DEPTH_M, np.float32), calibration)
    disparity = true + np.float32(disparity_error_px)
    disparity[:, :16] = np.nan
    depth = np.float32(calibration.fx * calibration.baseline_m) / disparity
    result = Reconstruction(
        disparity=disparity,
        depth=depth,
        confidence=np.full((HEIGHT, WIDTH), 0.9, np.float32),
        points=points_from_depth(depth, calibration),
        color=np.full((HEIGHT, WIDTH, 3), (200, 100, 50), np.uint8),
        calibration=calibration,
        frame_id='camera',
    )
    with BagWriter(path) as bag:
        for index in indices:
            stamped = dataclasses.replace(result, stamp_ns=index * SECOND_NS)
            cloud = point_cloud_message(make_message, stamped)
            bag.write('/points2', cloud, index * SECOND_NS)


def test_a_cloud_message_gives_back_what_it_was_made_of(tmp_path, calibration):
    write_results(tmp_path / 'r', calibration, [4])
    ((stamp, message),) = published_clouds(tmp_path / 'r')
    result = reconstruction_of_cloud(message, calibration)
    assert stamp == result.stamp_ns == 4 * SECOND_NS
    assert np.isnan(result.depth[:, :16]).all()
    np.testing.assert_allclose(result.depth[:, 16:], PLANE_DEPTH_M, rtol=1e-6)
    np.testing.assert_allclose(result.disparity[:, 16:], 8.0, rtol=1e-6)
    assert (result.color == (200, 100, 50)).all()
    assert result.confidence == pytest.approx(0.9)
    with pytest.raises(InputError, match='96x64 but the images are 48x32'):
        reconstruction_of_cloud(message, calibration.resized(48, 32))


def test_report_scores_fuses_and_draws(tmp_path, calibration, texture):
    write_source(tmp_path / 's', calibration, texture, count=4)
    write_results(tmp_path / 'r', calibration, [0, 1, 3], disparity_error_px=0.75)
    seen = []
    figures = write_report(
        tmp_path / 's', tmp_path / 'r', tmp_path, ReportSettings(voxel_m=0.05), seen.append
    )
    assert figures['frames_with_cloud'] == len(seen) == 3
    published = figures['accuracy']['published']
    assert published['density'] == pytest.approx(80 / 96, abs=1e-5)
    assert published['epe_px'] == pytest.approx(0.75, abs=1e-4)
    assert (published['bad05'], published['bad1']) == (1.0, 0.0)
    assert published['bad2_all'] == pytest.approx(16 / 96, abs=1e-5)
    # OpenCV's matcher on a textured plane with a whole disparity, in the interior at least.
    assert figures['accuracy']['sgbm']['epe_px'] < 0.3
    assert figures['accuracy']['sgbm_filled']['density'] == 1.0
    picture = cv2.imread(str(tmp_path / 'contact_sheet.png'))
    assert picture.shape[1] == 4 * 400 + 5 * 8, 'four columns: the error is among them'
    assert cv2.imread(str(tmp_path / 'cloud.png')) is not None
    points = ply_points(tmp_path / 'fused.ply')
    assert len(points) == figures['cloud']['points'] > 100
    # A plane at the depth that the wrong disparity gives, across the map's x axis.
    np.testing.assert_allclose(points['x'], 16.0 / 8.75, atol=1e-5)
    assert points['y'].min() < -3 * STEP_M - 0.9
    assert (points['red'] == 200).all()


def test_report_shows_what_there_is_where_the_frames_to_show_were_dropped(
    tmp_path, calibration, texture
):
    write_source(tmp_path / 's', calibration, texture, count=20, ground_truth=False)
    write_results(tmp_path / 'r', calibration, [2])
    assert write_report(tmp_path / 's', tmp_path / 'r', tmp_path)['frames_with_cloud'] == 1
    rows = cv2.imread(str(tmp_path / 'contact_sheet.png')).shape[0]
    assert rows > 250, 'a row of pictures between title and legends'


def test_report_without_ground_truth_keeps_the_first_frame(tmp_path, calibration, texture):
    write_source(tmp_path / 's', calibration, texture, count=2, ground_truth=False)
    write_results(tmp_path / 'r', calibration, [0, 1])
    figures = write_report(tmp_path / 's', tmp_path / 'r', tmp_path)
    assert 'published' not in figures['accuracy']
    assert figures['cloud']['frames'] == 1
    assert figures['cloud']['frame_id'] == 'camera'
    assert cv2.imread(str(tmp_path / 'contact_sheet.png')).shape[1] == 3 * 400 + 4 * 8
    np.testing.assert_allclose(ply_points(tmp_path / 'fused.ply')['z'], PLANE_DEPTH_M, rtol=1e-6)


def test_report_refuses_bags_that_do_not_belong_together(tmp_path, calibration, texture):
    write_source(tmp_path / 's', calibration, texture, count=2)
    write_results(tmp_path / 'r', calibration, [7])
    with pytest.raises(InputError, match='no cloud with the stamp'):
        write_report(tmp_path / 's', tmp_path / 'r', tmp_path)
    with pytest.raises(InputError, match='no topic of type sensor_msgs/msg/PointCloud2'):
        write_report(tmp_path / 's', tmp_path / 's', tmp_path)


def test_ground_truth_pose_reaches_the_report(tmp_path, calibration, texture):
    write_source(tmp_path / 's', calibration, texture, count=2)
    with StereoBagReader(tmp_path / 's') as reader:
        poses = [frame.pose for frame in reader.frames()]
    assert all(isinstance(pose, Pose) for pose in poses)
    forward = poses[1].matrix @ [0.0, 0.0, 1.0, 1.0]
    np.testing.assert_allclose(forward, [1.0, -STEP_M, 1.0, 1.0], atol=1e-9)


def test_cloud_of_a_camera_that_looks_straight_down_is_drawn():
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 60), np.linspace(-1, 1, 60)), -1)
    points = np.dstack([grid, 0.05 * np.sin(5 * grid[..., 0])]).reshape(-1, 3)
    colors = np.full((len(points), 3), 120, np.uint8)
    pose = np.eye(4)
    pose[:3, :3] = [[1, 0, 0], [0, -1, 0], [0, 0, -1]]
    pose[2, 3] = 2.0
    seen = np.ones(len(points))
    cloud = FusedCloud(points, colors, seen.astype(np.float32), seen.astype(np.int64))
    picture = cloud_picture(cloud, pose, z_up=True)
    # Ground is drawn: grey points on the light background of the first view.
    assert (picture[30:670] < 200).all(axis=2).mean() > 0.01


def test_every_missing_frame_is_counted_with_a_reason():
    recorded = {'outcomes': {'published': 16, 'superseded': 2}}
    assert frame_counts(recorded, 20, 15) == {
        'in': 20,
        'out': 15,
        'dropped': 5,
        'reasons': {'superseded': 2, 'lost on the way': 3},
    }


def test_rate_counts_the_gaps_between_clouds_in_any_order():
    frames = [{'received_ns': t} for t in (3_000_000_000, None, 1_000_000_000, 2_500_000_000)]
    assert received_rate_hz({'frames': frames}) == pytest.approx(1.0)
    assert received_rate_hz({'frames': frames[:2]}) == 0.0


def test_latencies_and_table_say_what_was_recorded():
    frames = [
        {
            'outcome': 'published',
            'latency_ms': ms,
            'inference [ms]': ms / 2,
            'latency [ms]': ms - 1,
        }
        for ms in (100.0, 110.0, 200.0)
    ]
    frames.append({'outcome': 'superseded', 'latency_ms': None})
    figures = latencies({'frames': frames})
    assert figures['latency_ms'] == pytest.approx({'p50': 110.0, 'p95': 191.0})
    assert figures['stages_ms_median']['inference'] == 55.0
    summary = {
        'backend': 'onnx',
        'frames': {'in': 4, 'out': 3, 'dropped': 1, 'reasons': {'superseded': 1}},
        'rate_hz': 7.5,
        'accuracy': {'image_density': 0.5},
        'cloud': {'points': 1234, 'frames': 3, 'posed': True, 'voxel_m': 0.01},
        'machine': {'processor': 'a processor', 'cores': 2},
        **figures,
    }
    table = format_summary(summary)
    assert '4 in, 3 out, 1 dropped (1 superseded)' in table
    assert 'p50 110 ms, p95 191 ms' in table
    assert '7.5 Hz' in table
    assert 'no ground truth' in table
    assert '1,234 points of 3 frames, voxels of 1 cm' in table


def ply_points(path: Path) -> np.ndarray:
    """Return the vertices of a PLY of this package by name, read by its own header."""
    header, _, body = path.read_bytes().partition(b'end_header\n')
    types = {'float': '<f4', 'uchar': 'u1'}
    fields = [
        (words[2], types[words[1]])
        for words in (line.split() for line in header.decode().splitlines())
        if words[0] == 'property'
    ]
    return np.frombuffer(body, np.dtype(fields))

"""Each fault of the cameras is seen in the pair, and none of them in its ground truth."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from rosbags.highlevel import AnyReader

torch = pytest.importorskip('torch')

from lunar_stereo_recon.cli import main  # noqa: E402
from lunar_stereo_recon.errors import InputError  # noqa: E402
from lunar_stereo_recon.simulation import dataset  # noqa: E402
from lunar_stereo_recon.simulation.camera import Motion, RigError  # noqa: E402
from lunar_stereo_recon.simulation.camera_faults import (  # noqa: E402
    CameraFaults,
    read_camera_faults,
)

SIZE = (96, 64)


@pytest.fixture(scope='module')
def pair():
    """Return a function that renders one pair of a small terrain with faults."""
    stratum, config = dataset._group_config(3, 'train', 0)
    config = dataclasses.replace(config, cells=(512, 256, 128), cell_sizes_m=(0.04, 0.16, 1.28))
    ground = dataset.make_terrain(config)

    def make(**faults) -> dataset.Sample:
        options = dataset.DatasetOptions(3, size=SIZE, samples=1, faults=CameraFaults(**faults))
        return dataset._sample_on(ground, stratum, options, 5)

    return make


@pytest.fixture(scope='module')
def ideal(pair) -> dataset.Sample:
    return pair()


FAULTS = {
    'bloom_px': {'bloom_px': 5.0},
    'dead_pixels': {'dead_pixels': 0.02},
    'hot_pixels': {'hot_pixels': 0.02},
    'motion blur': {'motion': Motion((0.0, 0.0, 2.0), (0.0, 30.0, 0.0)), 'exposure_s': 0.05},
    'ground light': {'ground_light_rays': 2},
    'lamps': {'lamp_strength': 5.0},
}


@pytest.mark.parametrize('name', sorted(FAULTS))
def test_fault_changes_the_images_and_not_the_truth(pair, ideal, name):
    sample = pair(**FAULTS[name])
    if name == 'bloom_px':
        # Only where something is saturated; this pair is not, and stays as it was.
        assert (ideal.left < 255).all() == np.array_equal(sample.left, ideal.left)
    else:
        assert not np.array_equal(sample.left, ideal.left)
    np.testing.assert_array_equal(sample.disparity, ideal.disparity)
    np.testing.assert_array_equal(sample.shadow, ideal.shadow)
    np.testing.assert_array_equal(sample.intrinsics, ideal.intrinsics)
    assert 'faults' not in ideal.meta and sample.meta['faults']


def test_motion_blurs(pair, ideal):
    moving = Motion((0.0, 0.0, 0.0), (0.0, 60.0, 0.0))
    still = pair(motion=moving)
    assert np.array_equal(still.left, ideal.left)
    blurred = pair(motion=moving, exposure_s=0.05)
    contrast = [np.abs(np.diff(s.left.astype(float), axis=1)).mean() for s in (ideal, blurred)]
    assert contrast[1] < 0.8 * contrast[0]


def test_faults_of_the_right_camera_leave_the_left_one(pair, ideal):
    late = pair(motion=Motion((0.0, 0.0, 0.5)), time_offset_s=0.2)
    bent = pair(right_error=RigError(yaw_deg=0.3, focal=0.01))
    for sample in (late, bent):
        assert np.array_equal(sample.left, ideal.left)
        assert not np.array_equal(sample.right, ideal.right)
        np.testing.assert_array_equal(sample.disparity, ideal.disparity)
    moved = late.poses[1][:3, 3] - ideal.poses[1][:3, 3]
    np.testing.assert_allclose(moved, 0.1 * ideal.poses[1][:3, 2], atol=1e-6)
    assert bent.intrinsics_right[0, 0] == pytest.approx(1.01 * ideal.intrinsics[0, 0])


def test_more_bits_and_colour(pair, ideal):
    deep = pair(stored_bits=12)
    assert deep.left.dtype == np.uint16 and deep.left.max() > 255
    np.testing.assert_allclose(deep.left / 4095 * 255, ideal.left, atol=2.0)
    assert pair(colour='rgb').left.shape == (64, 96, 3)


def test_raw_images_go_into_bags(tmp_path, monkeypatch):
    real = dataset.make_terrain
    grids = {'cells': (512, 256, 128), 'cell_sizes_m': (0.04, 0.16, 1.28)}
    monkeypatch.setattr(
        dataset, 'make_terrain', lambda config: real(dataclasses.replace(config, **grids))
    )
    path = tmp_path / 'faults.yaml'
    path.write_text('distortion: [-0.2, 0.05, 0.001, 0.0, 0.0]\nstored_bits: 12\n')
    arguments = ['dataset', '--count', '8', '--size', '64x48', '--faults', str(path)]
    assert main([*arguments, '--form', 'bags', '--out', str(tmp_path / 'bags')]) == 0
    with AnyReader([tmp_path / 'bags' / '00000_nominal']) as bag:
        first = {}
        for connection, _, raw in bag.messages():
            first.setdefault(connection.topic, bag.deserialize(raw, connection.msgtype))
    assert '/stereo/left/image_rect' not in first
    assert first['/stereo/left/image_raw'].encoding == 'mono16'
    np.testing.assert_allclose(first['/stereo/right/camera_info'].d, [-0.2, 0.05, 0.001, 0.0, 0.0])
    assert main([*arguments, '--out', str(tmp_path / 'pairs')]) == 2


def test_faults_file(tmp_path):
    path = tmp_path / 'faults.yaml'
    path.write_text(
        'exposure_s: 0.02\nmotion: {velocity_m_s: [0, 0, 0.3]}\nright_error: {yaw_deg: 0.1}\n'
    )
    faults = read_camera_faults(path)
    assert faults.motion == Motion((0, 0, 0.3)) and faults.right_error.yaw_deg == 0.1
    for text, message in (
        ('blur: 3\n', "'blur' is not known; there are distortion"),
        ('motion: {speed: 3}\n', "'speed' is not known; there are velocity_m_s"),
        ('stored_bits: 40\n', '40 bits'),
        ('exposure_s: -1\n', 'exposure is -1 s'),
        ('exposure_s: soon\n', 'faults.yaml: '),
        ('[', 'is not YAML'),
        ('motion: 0.1\n', '0.1 is no mapping; there are velocity_m_s'),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_camera_faults(path)
    with pytest.raises(InputError, match='cannot read'):
        read_camera_faults(tmp_path / 'none.yaml')

"""Static transforms along a tree of frames."""

from __future__ import annotations

import numpy as np
import pytest

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry import frame_tree
from lunar_stereo_recon.geometry.frame_tree import FrameTree
from lunar_stereo_recon.geometry.rotation import quaternion_from_rotation, rotation_from_rpy

UPRIGHT = np.array([0.0, 0, 0, 1])


@pytest.fixture
def mast() -> FrameTree:
    """Return a mast with two cameras that look down, 0.3 m apart along y of the mast."""
    tree = FrameTree()
    down = quaternion_from_rotation(rotation_from_rpy(0.0, 0.4, 0.1))
    tree.add('base_link', 'mast', np.array([0.2, 0.0, 1.0]), down)
    tree.add('mast', 'left', np.array([0.05, 0.15, 0.0]), UPRIGHT)
    tree.add('/mast', '/right', np.array([0.05, -0.15, 0.0]), UPRIGHT)
    return tree


def test_siblings_are_found_over_their_parent(mast):
    np.testing.assert_allclose(mast.lookup('left', 'right')[:3, 3], [0, -0.3, 0], atol=1e-12)
    np.testing.assert_allclose(mast.lookup('left', 'right')[:3, :3], np.eye(3), atol=1e-12)


def test_lookups_are_inverses_of_one_another(mast):
    there, back = mast.lookup('base_link', 'left'), mast.lookup('left', 'base_link')
    np.testing.assert_allclose(there @ back, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(mast.lookup('left', 'left'), np.eye(4))


def test_newest_transform_of_a_frame_holds(mast):
    mast.add('mast', 'right', np.array([0.05, -0.25, 0.0]), UPRIGHT)
    assert np.linalg.norm(mast.lookup('left', 'right')[:3, 3]) == pytest.approx(0.4)


def test_what_is_not_connected_is_said_by_name(mast):
    with pytest.raises(InputError, match="from 'arm' to 'left'"):
        mast.lookup('left', 'arm')


def test_a_circle_ends(mast):
    mast.add('left', 'base_link', np.zeros(3), UPRIGHT)
    assert np.linalg.norm(mast.lookup('left', 'right')[:3, 3]) == pytest.approx(0.3)


def test_a_quaternion_of_zeros_is_refused(mast):
    with pytest.raises(InputError, match='quaternion'):
        mast.add('mast', 'lamp', np.zeros(3), np.zeros(4))


@pytest.mark.parametrize('xyz', [[np.nan, 0, 0], [0, np.inf, 0], [0, 0, 1e300]])
def test_frames_that_are_nowhere_are_refused(mast, xyz):
    with pytest.raises(InputError, match='numbers within'):
        mast.add('mast', 'right', np.array(xyz), UPRIGHT)
    assert np.linalg.norm(mast.lookup('left', 'right')[:3, 3]) == pytest.approx(0.3)


def test_frames_are_limited_in_number_and_length_of_name(mast, monkeypatch):
    with pytest.raises(InputError, match=r'first 80 of 1000000 characters'):
        mast.add('mast', 'x' * 1_000_000, np.zeros(3), UPRIGHT)
    monkeypatch.setattr(frame_tree, 'MAX_FRAMES', 3)
    with pytest.raises(InputError, match='no room for more'):
        mast.add('mast', 'another', np.zeros(3), UPRIGHT)
    mast.add('mast', 'right', np.zeros(3), UPRIGHT)  # known ones may change

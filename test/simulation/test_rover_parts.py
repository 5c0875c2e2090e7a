"""Parts of a rover in view: closed bodies ahead of the cameras."""

import numpy as np
import pytest

pytest.importorskip('torch')

from lunar_stereo_recon.simulation import rover_parts  # noqa: E402
from lunar_stereo_recon.simulation.rock_mesh import joined  # noqa: E402


@pytest.mark.parametrize(
    'mesh, volume, area',
    [
        (rover_parts._box(0.1, 0.2, 0.3), 8 * 0.006, 8 * (0.02 + 0.03 + 0.06)),
        (
            rover_parts._cylinder(0.1, 0.25),
            np.pi * 0.01 * 0.5,
            2 * np.pi * 0.01 + 2 * np.pi * 0.1 * 0.5,
        ),
    ],
)
def test_bodies_are_closed_and_face_outwards(mesh, volume, area):
    vertices, normals, triangles = mesh
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    across = np.cross(b - a, c - a)
    # By the divergence theorem, which holds for closed surfaces wound outwards.
    assert (across * a).sum() / 6 == pytest.approx(volume, rel=0.02)
    assert np.linalg.norm(across, axis=1).sum() / 2 == pytest.approx(area, rel=0.02)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1)
    assert ((normals[triangles].sum(axis=1) * across).sum(axis=1) >= -1e-12).all()


def test_parts_stand_ahead_and_repeat_themselves():
    for seed in range(20):
        parts = rover_parts.sample_rover_parts(1.4, np.random.default_rng(seed))
        again = rover_parts.sample_rover_parts(1.4, np.random.default_rng(seed))
        np.testing.assert_array_equal(parts.vertices, again.vertices)
        # The cameras are above the origin: nothing is below them, where they would be buried.
        assert parts.vertices[:, 0].min() > 0.05
        assert parts.triangles.max() == len(parts.vertices) - 1 == len(parts.albedo) - 1
        assert (parts.albedo > 0).all() and np.isfinite(parts.normals).all()


def test_moved_and_joined():
    parts = rover_parts.sample_rover_parts(1.4, np.random.default_rng(0))
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rover_parts._turned(0.3, 0.5), (1, 2, 3)
    moved = parts.moved(pose)
    np.testing.assert_allclose(
        moved.vertices[7], pose[:3, :3] @ parts.vertices[7] + (1, 2, 3), atol=1e-5
    )
    both = joined([None, parts, moved])
    number = len(parts.triangles)
    np.testing.assert_array_equal(both.triangles[:number], parts.triangles)
    np.testing.assert_array_equal(
        both.vertices[both.triangles[number:]], moved.vertices[moved.triangles]
    )

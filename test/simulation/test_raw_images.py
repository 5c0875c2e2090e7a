"""Raw images of the simulator's distorted cameras, rectified and reconstructed."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from lunar_stereo_recon.backends import load_backend  # noqa: E402
from lunar_stereo_recon.bags.writer import make_message  # noqa: E402
from lunar_stereo_recon.errors import CalibrationError  # noqa: E402
from lunar_stereo_recon.files.calibrations import CameraInfo, RegionOfInterest  # noqa: E402
from lunar_stereo_recon.messages import pair_from_messages  # noqa: E402
from lunar_stereo_recon.pipeline import StereoReconstructor  # noqa: E402
from lunar_stereo_recon.result_messages import image_message  # noqa: E402
from lunar_stereo_recon.simulation import renderer, scene  # noqa: E402

DISTORTION = (-0.25, 0.06, 0.002, -0.001, 0.0)
BASELINE_M, WIDTH, HEIGHT = 0.2, 320, 240


@pytest.fixture(scope='module')
def rig(small_terrain):
    """Return raw left and right views as arrays, the rectified left depth, and the infos."""
    from lunar_stereo_recon.simulation.camera import camera_rotation

    ground = float(small_terrain.height_at(torch.tensor([-1.5]), torch.tensor([0.0]))[0])
    rotation = camera_rotation(0.0, np.radians(-25.0), 0.0)
    position = torch.tensor([-1.5, 0.0, ground + 1.0])
    center = ((WIDTH - 1) / 2, (HEIGHT - 1) / 2)
    rectified = scene.View(position, rotation, 250.0, 250.0, *center, WIDTH, HEIGHT)
    raw = dataclasses.replace(rectified, distortion=DISTORTION)
    right = dataclasses.replace(raw, position_m=position + BASELINE_M * rotation[:, 0])
    lighting = scene.Lighting(30.0, 120.0)
    images = [
        renderer.render(small_terrain, view, lighting, samples=4).radiance.numpy()
        for view in (raw, right)
    ]
    white = np.quantile(images[0], 0.995)
    grey = [np.clip(255 * image / white, 0, 255).astype(np.uint8) for image in images]
    truth = renderer.render(small_terrain, rectified, lighting, samples=1).depth.numpy()
    infos = [
        CameraInfo(
            WIDTH,
            HEIGHT,
            p=(250.0, 0, center[0], tx, 0, 250.0, center[1], 0, 0, 0, 1, 0),
            k=(250.0, 0, center[0], 0, 250.0, center[1], 0, 0, 1),
            d=DISTORTION,
            distortion_model='plumb_bob',
        )
        for tx in (0.0, -250.0 * BASELINE_M)
    ]
    return grey, truth, infos


def messages(grey):
    return [image_message(make_message, values, 'mono8', 7, 'left_optical') for values in grey]


def depth_error(pair, truth):
    """Return the median relative depth error at the borders, and the share of valid pixels."""
    result = StereoReconstructor(load_backend('sgbm')).reconstruct(pair)
    border = np.ones(truth.shape, bool)
    border[40:-40, 50:-50] = False
    relative = np.abs(result.depth - truth) / truth
    return float(np.nanmedian(relative[border])), float(result.valid_mask.mean()), result


def test_rectified_raw_images_give_the_true_depth(rig):
    grey, truth, infos = rig
    pair = pair_from_messages(*messages(grey), *infos, rectify=True)
    error, density, result = depth_error(pair, truth)
    assert error < 0.01
    assert density > 0.6
    # Barrel distortion: the rectified corners come from inside the image, all is seen.
    assert pair.left_mask.all()
    raw_error, _, _ = depth_error(pair_from_messages(*messages(grey), *infos), truth)
    assert raw_error > 5 * error


def test_what_the_raw_image_does_not_show_is_invalid(rig):
    grey, truth, infos = rig
    # A wider rectified image than the raw one covers.
    wide = [
        dataclasses.replace(info, p=(180.0, *info.p[1:3], info.p[3] * 0.72, 0, 180.0, *info.p[6:]))
        for info in infos
    ]
    pair = pair_from_messages(*messages(grey), *wide, rectify=True)
    assert not pair.left_mask[0, 0]
    assert pair.left_mask[HEIGHT // 2, WIDTH // 2]
    result = StereoReconstructor(load_backend('sgbm')).reconstruct(pair)
    assert np.isnan(result.points[~pair.left_mask]).all()
    assert (result.confidence[~pair.left_mask] == 0).all()
    assert result.valid_mask[pair.left_mask].mean() > 0.5


def test_a_read_out_window_changes_neither_rays_nor_depth(rig):
    grey, truth, infos = rig
    window = RegionOfInterest(x_offset=40, y_offset=20, width=240, height=200)
    cut = [np.ascontiguousarray(image[20:220, 40:280]) for image in grey]
    cut_infos = [dataclasses.replace(info, roi=window) for info in infos]
    whole = pair_from_messages(*messages(grey), *infos, rectify=True)
    part = pair_from_messages(*messages(cut), *cut_infos, rectify=True)
    np.testing.assert_allclose(
        part.left[part.left_mask], whole.left[20:220, 40:280][part.left_mask], atol=0.02
    )
    assert part.calibration == whole.calibration.padded(-40, -20, -40, -20)


def test_uncalibrated_camera_is_named(rig):
    grey, _, infos = rig
    uncalibrated = dataclasses.replace(infos[1], k=(0.0,) * 9)
    with pytest.raises(CalibrationError, match='right/camera_info: focal lengths in K are 0'):
        pair_from_messages(*messages(grey), infos[0], uncalibrated, rectify=True)

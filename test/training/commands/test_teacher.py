"""The teacher command: images to the network's window and back to metric files."""

from __future__ import annotations

import argparse

import cv2
import numpy as np
import pytest
import torch

from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.errors import InputError
from training.cli import main
from training.models.checkpoints import load_teacher, save_model
from training.models.heads import HeadConfig
from training.models.mast3r import Mast3r, Mast3rConfig
from training.models.pair_reconstruction import network_window, reconstruct_pair, rgb_tensor

HEAD = HeadConfig(descriptor_width=8, level_channels=(8, 8, 16, 16), fusion_width=16)
CONFIG = Mast3rConfig(32, 1, 2, 16, 4, 2, head=HEAD)
OFFICIAL_CONFIG = Mast3rConfig(32, 1, 2, 16, 4, 2, head=HeadConfig(desc_conf_min=1.0))
OFFICIAL = (
    "AsymmetricMASt3R(pos_embed='RoPE100', img_size=(512, 512), head_type='catmlp+dpt', "
    "output_mode='pts3d+desc24', conf_mode=('exp', 1, inf), enc_embed_dim=32, enc_depth=1, "
    'enc_num_heads=2, dec_embed_dim=16, dec_depth=4, dec_num_heads=2, two_confs=True)'
)


class FlatWall(torch.nn.Module):
    """Stands for a network: a wall at depth 2 units, seen with a disparity of 10 columns."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(()))

    def forward(self, left, right):
        _, _, height, width = left.shape
        generator = torch.Generator().manual_seed(0)
        descriptors = torch.randn(1, height, width, 16, generator=generator)
        descriptors = torch.nn.functional.normalize(descriptors, dim=-1)
        out = {f'pointmap{view}': torch.full((1, height, width, 3), 2.0) for view in (1, 2)}
        out |= {f'conf{view}': torch.full((1, height, width), 4.0) for view in (1, 2)}
        return out | {'desc1': descriptors.roll(10, dims=2), 'desc2': descriptors}


@pytest.fixture
def image_files(tmp_path):
    generator = np.random.default_rng(0)
    paths = []
    for name in ('left', 'right'):
        paths.append(tmp_path / f'{name}.png')
        cv2.imwrite(str(paths[-1]), generator.integers(0, 255, (60, 80), np.uint8))
    return paths


@pytest.mark.parametrize(
    ('size', 'scaled', 'window'),
    [
        ((640, 480), (512, 384), (0, 0, 512, 384)),
        ((1000, 700), (512, 358), (0, 3, 512, 352)),
        ((480, 640), (384, 512), (0, 0, 384, 512)),
        ((500, 500), (512, 512), (0, 0, 512, 512)),
    ],
)
def test_window(size, scaled, window):
    found = network_window(*size)
    assert (found.scaled_width, found.scaled_height) == scaled
    assert (found.left, found.top, found.width, found.height) == window


def test_calibration_goes_along_with_the_image():
    calibration = StereoCalibration(700.0, 710.0, 499.5, 349.5, 489.5, 0.3, 1000, 700)
    window = network_window(1000, 700)
    fitted = window.fit_calibration(calibration)
    assert (fitted.width, fitted.height) == (512, 352)
    assert fitted.fx == pytest.approx(700 * 0.512)
    assert fitted.cx == pytest.approx(255.5)
    assert fitted.cy == pytest.approx(175.5)
    # A bright spot on the principal point is still there in the fitted image.
    image = np.zeros((700, 1000), np.uint8)
    image[345:355, 495:505] = 255
    rows, columns = np.nonzero(window.fit_image(rgb_tensor(image))[0].numpy() > 0.5)
    assert columns.mean() == pytest.approx(fitted.cx, abs=0.6)
    assert rows.mean() == pytest.approx(fitted.cy, abs=0.6)


def test_images_become_rgb_in_unit_range():
    grey = np.array([[0, 4095]], np.uint16)
    tensor = rgb_tensor(grey, white_level=4095)
    assert tensor.shape == (3, 1, 2)
    assert tensor[:, 0].tolist() == [[0, 1]] * 3
    color = np.array([[[255, 0, 51]]], np.uint8)
    torch.testing.assert_close(rgb_tensor(color)[:, 0, 0], torch.tensor([1.0, 0.0, 0.2]))
    with pytest.raises(InputError, match='float64'):
        rgb_tensor(np.zeros((4, 4)))


def test_wall_is_put_at_its_metric_depth():
    image = np.zeros((240, 320), np.uint8)
    calibration = StereoCalibration(300.0, 300.0, 159.5, 119.5, 159.5, 0.5, 320, 240)
    result = reconstruct_pair(FlatWall(), image, image, calibration, long_side=256)
    # At the network's size the focal length is 240 px: 240 * 0.5 / 10.
    assert result.depth.shape == (192, 256)
    np.testing.assert_allclose(result.depth, 12.0, rtol=1e-5)
    np.testing.assert_allclose(result.confidence, 0.75)


def test_images_that_cannot_be_used_are_refused():
    good = np.zeros((60, 80), np.uint8)
    with pytest.raises(InputError, match='80x60 but right image is 80x61'):
        reconstruct_pair(FlatWall(), good, np.zeros((61, 80), np.uint8), None)
    empty = np.zeros((0, 80), np.uint8)
    with pytest.raises(InputError, match='80x0'):
        reconstruct_pair(FlatWall(), empty, empty, None)
    thin = np.zeros((4, 400), np.uint8)
    with pytest.raises(InputError, match='at least 16'):
        reconstruct_pair(FlatWall(), thin, thin, None)


def test_command_writes_the_files(tmp_path, image_files, capsys):
    torch.manual_seed(0)
    model = Mast3r(CONFIG)
    # Points in front of the left camera, and the right camera to the right of it.
    for head, point in ((model.downstream_head1, (0, 0, 1)), (model.downstream_head2, (2, 0, 1))):
        with torch.no_grad():
            head.dpt.head[4].bias.copy_(torch.tensor([*point, 0.0]))
    save_model(model, tmp_path / 'toy.safetensors')
    rig = tmp_path / 'rig.yaml'
    rig.write_text('{fx: 60, fy: 60, cx: 39.5, cy: 29.5, baseline: 0.2}')
    arguments = ['--checkpoint', str(tmp_path / 'toy.safetensors'), '--size', '64']
    arguments += ['--calibration', str(rig), '--out', str(tmp_path / 'out')]
    assert main(['teacher', *map(str, image_files), *arguments]) == 0
    written = {path.suffix for path in (tmp_path / 'out').iterdir()}
    assert {'.ply', '.png', '.npz'} <= written
    with np.load(next((tmp_path / 'out').glob('*.npz'))) as arrays:
        assert arrays['depth'].shape == (48, 64)
        assert np.isfinite(arrays['depth']).any()
    assert 'baseline 0.2 m' in capsys.readouterr().out


def test_command_reports_a_missing_checkpoint(tmp_path, image_files, capsys):
    arguments = [*map(str, image_files), '--checkpoint', str(tmp_path / 'none.pth')]
    assert main(['teacher', *arguments]) == 2
    assert 'none.pth does not exist' in capsys.readouterr().err


def test_convert_command(tmp_path, capsys):
    with torch.device('meta'):
        shapes = Mast3r(OFFICIAL_CONFIG).state_dict()
    # Constant tensors, because the heads of an official checkpoint cannot be made small.
    state = {name: torch.full((1,), 0.5).expand(value.numel()) for name, value in shapes.items()}
    state = {name: value.view(shapes[name].shape) for name, value in state.items()}
    source, target = tmp_path / 'official.pth', tmp_path / 'official.safetensors'
    torch.save({'args': argparse.Namespace(model=OFFICIAL), 'model': state}, source)
    assert main(['convert', str(source), str(target)]) == 0
    assert 'Mast3r, ' in capsys.readouterr().out
    loaded = load_teacher(target)
    target.unlink()
    assert loaded.config == OFFICIAL_CONFIG
    assert main(['convert', str(source), str(tmp_path / 'x.pth')]) == 2

"""Distortion and calibration files as drivers and older tools write them."""

import pytest

from lunar_stereo_recon.files.calibrations import load_camera_info
from lunar_stereo_recon.geometry.rectify import fitting_coefficients

FOUR = (0.1, 0.2, 0.3, 0.4)


@pytest.mark.parametrize(
    ('model', 'given', 'wanted'),
    [
        ('plumb_bob', (0.1, 0.2), (0.1, 0.2, 0.0, 0.0)),
        ('plumb_bob', (*FOUR, 0.5, 0.0, 0.0, 0.0), (*FOUR, 0.5)),
        ('plumb_bob', (*FOUR, 0.5, 0.6), (*FOUR, 0.5, 0.6)),
        ('plumb_bob', (0.0,) * 14, ()),
        ('', (0.0,) * 5, ()),
        ('equidistant', (*FOUR, 0.0), FOUR),
        ('equidistant', (), ()),
        ('rational_polynomial', FOUR, (*FOUR, 0.0, 0.0, 0.0, 0.0)),
        ('unknown', FOUR, FOUR),
    ],
)
def test_harmless_zeros_and_left_out_numbers_fit_the_model(model, given, wanted):
    assert fitting_coefficients(model, given) == wanted


@pytest.mark.parametrize(
    ('entry', 'model'),
    [('', 'plumb_bob'), ('camera_model: equidistant\n', 'equidistant')],
)
def test_file_without_distortion_model(tmp_path, entry, model):
    path = tmp_path / 'left.yaml'
    path.write_text(
        f'image_width: 8\nimage_height: 4\n{entry}'
        'projection_matrix: {rows: 3, cols: 4, data: [9,0,4,0, 0,9,2,0, 0,0,1,0]}\n'
        'distortion_coefficients: {rows: 1, cols: 4, data: [0.1, 0, 0, 0]}\n'
    )
    assert load_camera_info(path).distortion_model == model

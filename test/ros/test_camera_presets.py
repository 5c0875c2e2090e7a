"""Presets of cameras that are none."""

import pytest

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.ros.camera_presets import read_preset


@pytest.mark.parametrize(
    'parameters, said',
    [
        ('{baselin: 0.2, rectif: true}', 'no parameter baselin, rectif'),
        ('{&a rectify: true, &b : 0.2}', 'no parameter None'),
        ('{1: 0.2, ~: true, x: 1}', 'no parameter 1, None, x'),
    ],
)
def test_names_that_are_no_parameters_are_refused(tmp_path, parameters, said):
    path = tmp_path / 'mine.yaml'
    path.write_text(f'parameters: {parameters}')
    with pytest.raises(InputError, match=said):
        read_preset(path)

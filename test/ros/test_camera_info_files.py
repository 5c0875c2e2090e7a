"""camera_infos from YAML files: which file is meant, what it must hold."""

from pathlib import Path

import pytest

from lunar_stereo_recon.errors import CalibrationError, InputError
from lunar_stereo_recon.files.calibrations import load_camera_info

pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

from lunar_stereo_recon.ros.camera_info_files import (  # noqa: E402
    camera_infos_from_files,
    path_of_url,
)

# As camera_calibration writes it.
FILE = """
image_width: 1280
image_height: 720
camera_name: lunarsim_right
camera_matrix:
  rows: 3
  cols: 3
  data: [504.76, 0, 640, 0, 502.11, 360, 0, 0, 1]
distortion_model: plumb_bob
distortion_coefficients:
  rows: 1
  cols: 5
  data: [-0.1, 0.02, 0.001, 0, 0]
rectification_matrix:
  rows: 3
  cols: 3
  data: [1, 0, 0, 0, 1, 0, 0, 0, 1]
projection_matrix:
  rows: 3
  cols: 4
  data: [504.76, 0, 640, -60.571, 0, 504.76, 360, 0, 0, 0, 1, 0]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / 'right camera.yaml'
    path.write_text(FILE)
    return path


def test_every_field_is_read(file):
    info = load_camera_info(file)
    assert (info.width, info.height, info.distortion_model) == (1280, 720, 'plumb_bob')
    assert info.k == (504.76, 0, 640, 0, 502.11, 360, 0, 0, 1)
    assert info.d == (-0.1, 0.02, 0.001, 0, 0)
    assert info.r == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert info.p[3] == -60.571


def test_urls_of_camera_info_manager(file, tmp_path, monkeypatch):
    assert path_of_url(str(file)) == file
    assert path_of_url(file.as_uri()) == file  # the space is %20
    with pytest.raises(CalibrationError, match='scheme .http.; a path'):
        path_of_url('http://rover/left.yaml')

    markers = tmp_path / 'share' / 'ament_index' / 'resource_index' / 'packages'
    markers.mkdir(parents=True)
    (markers / 'my_rig').touch()
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))
    wanted = tmp_path / 'share' / 'my_rig' / 'config' / 'left.yaml'
    assert path_of_url('package://my_rig/config/left.yaml') == wanted
    with pytest.raises(CalibrationError, match="no package 'no_such_package'"):
        path_of_url('package://no_such_package/left.yaml')
    monkeypatch.delenv('AMENT_PREFIX_PATH')
    with pytest.raises(CalibrationError, match="no package 'my_rig'"):
        path_of_url('package://my_rig/config/left.yaml')


def test_one_file_is_not_enough(file):
    assert camera_infos_from_files('', '') == {}
    with pytest.raises(InputError, match='give both, or neither'):
        camera_infos_from_files('', str(file))
    infos = camera_infos_from_files(str(file), str(file))
    assert infos['left'] == infos['right'] == load_camera_info(file)


@pytest.mark.parametrize(
    ('old', 'new', 'words'),
    [
        ('image_width: 1280', 'image_width: wide', 'image_width wide'),
        ('image_height: 720', '', 'image_height None'),
        ('projection_matrix', 'projection', 'no projection_matrix'),
        ('[1, 0, 0, 0, 1, 0, 0, 0, 1]', '[1]', 'rectification_matrix has 1 values, not 9'),
        ('0.001', 'none', 'no readable distortion_coefficients.data'),
    ],
)
def test_unusable_files_are_refused(file, old, new, words):
    file.write_text(FILE.replace(old, new))
    with pytest.raises(CalibrationError, match=words):
        load_camera_info(file)


def test_missing_file_is_named():
    with pytest.raises(CalibrationError, match='/nowhere/left.yaml'):
        load_camera_info(Path('/nowhere/left.yaml'))

"""camera_infos from YAML files, for cameras and simulators that publish none."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlparse

from ament_index_python.packages import get_package_share_directory, PackageNotFoundError

from lunar_stereo_recon.errors import CalibrationError, InputError
from lunar_stereo_recon.files.bounded import user_path
from lunar_stereo_recon.files.calibrations import CameraInfo, load_camera_infos
from lunar_stereo_recon.pairing import Side


def camera_infos_from_files(left_url: str, right_url: str) -> dict[Side, CameraInfo]:
    """Return the camera_infos by side; empty where neither file is given.

    Both URLs may name one file of both cameras.

    Raises:
        InputError: Only one of the two is given.
        CalibrationError: A file cannot be found, read or used.
    """
    if bool(left_url) != bool(right_url):
        raise InputError(
            f'left_camera_info_url is {left_url!r} but right_camera_info_url is {right_url!r}; '
            'give both, or neither'
        )
    if not left_url:
        return {}
    left, right = load_camera_infos([path_of_url(left_url), path_of_url(right_url)])
    return {'left': left, 'right': right}


def path_of_url(url: str) -> Path:
    """Return the file that a URL of the kind of camera_info_manager names.

    Args:
        url: A path, `file:///path` or `package://package/path in its share directory`.

    Raises:
        CalibrationError: Another scheme, or a package that is not installed.
    """
    parts = urlparse(url)
    if parts.scheme == '':
        return user_path(url)
    if parts.scheme == 'file':
        return Path(unquote(parts.path))
    if parts.scheme != 'package':
        raise CalibrationError(
            f'camera_info URL {url!r} has scheme {parts.scheme!r}; a path, file:// or package:// '
            'is needed'
        )
    try:
        share = get_package_share_directory(parts.netloc)
    except (PackageNotFoundError, ValueError, OSError) as error:  # OSError: no ROS environment
        raise CalibrationError(
            f'camera_info URL {url!r}: no package {parts.netloc!r} is installed'
        ) from error
    return Path(share) / unquote(parts.path).lstrip('/')

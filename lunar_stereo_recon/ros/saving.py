"""Where services of a node write files: below one folder, which is named when the node starts.

Anybody on the network who may set parameters may choose a folder below it, and no other.
"""

from __future__ import annotations

import os
from pathlib import Path

from lunar_stereo_recon.errors import InputError, quoted


def save_folder(root: str, directory: str) -> Path:
    """Return the folder to write in, all links followed; it is not made.

    Args:
        root: The parameter `save_root`; '~' is the user's home.
        directory: The parameter `save_directory`, relative to the root or absolute.

    Raises:
        InputError: It is not below the root, or can be no folder.
    """
    try:
        top = Path(os.path.expanduser(root)).resolve()
        folder = (top / os.path.expanduser(directory)).resolve()
    except (OSError, ValueError) as error:  # links in a circle, a null character
        raise InputError(f'save_directory is {quoted(directory)}: {error}') from error
    if not folder.is_relative_to(top):
        raise InputError(
            f'save_directory is {directory!r}, which is {folder} and not below save_root, {top}; '
            'save_root can be set when the node starts'
        )
    return folder

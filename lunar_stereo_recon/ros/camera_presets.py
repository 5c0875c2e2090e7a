"""Cameras that are known by name: their topics and what the node must be told about them.

A preset is a YAML file; `config/presets/` holds the shipped ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.files.yaml_files import read_yaml
from lunar_stereo_recon.ros.parameters import ReconstructionParameters

COMPRESSED = '/compressed'


@dataclass(frozen=True)
class CameraPreset:
    """What a preset file may say; all of it may be left out.

    Attributes:
        camera_namespace: What stands in front of the topic names below that are relative.
        left_image, right_image: Topics of the images.
        left_raw, right_raw: Topics of the images that the node's `rectify` takes; empty is the
            same topic.
        left_compressed, right_compressed: Topics of the compressed images; empty is
            `<topic>/compressed`, as image_transport names them.
        left_info, right_info: Topics of the camera_infos; empty where none is published.
        optical_frame: frame_id of the left images; empty where it is not known.
        use_sim_time: Whether the source publishes /clock.
        parameters: Parameters of the reconstruction node.
    """

    camera_namespace: str = ''
    left_image: str = 'left/image_rect'
    right_image: str = 'right/image_rect'
    left_raw: str = ''
    right_raw: str = ''
    left_compressed: str = ''
    right_compressed: str = ''
    left_info: str = 'left/camera_info'
    right_info: str = 'right/camera_info'
    optical_frame: str = ''
    use_sim_time: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def remappings(self, rectify: bool) -> list[tuple[str, str]]:
        """Return (name in the node, topic) for all inputs, whatever their transport.

        Args:
            rectify: Whether the node rectifies: it then takes raw images, and its own rectified
                ones must not go to the topics of the camera.
        """
        pairs = []
        for side in ('left', 'right'):
            image = getattr(self, f'{side}_image')
            if rectify:
                image = getattr(self, f'{side}_raw') or image
            name = f'{side}/image_raw' if rectify else f'{side}/image_rect'
            topics = {
                name: image,
                name + COMPRESSED: getattr(self, f'{side}_compressed') or image + COMPRESSED,
                f'{side}/camera_info': getattr(self, f'{side}_info'),
            }
            pairs += [(name, self._full(topic)) for name, topic in topics.items() if topic]
        return pairs

    def _full(self, topic: str) -> str:
        if not self.camera_namespace or topic.startswith('/'):
            return topic
        return f'{self.camera_namespace.rstrip("/")}/{topic}'


def read_preset(path: Path) -> CameraPreset:
    """Return the preset of a YAML file.

    Raises:
        InputError: The file cannot be read, or an entry is unknown or of another type.
    """
    try:
        document = read_yaml(path)
    except OSError as error:
        near = ', '.join(sorted(other.stem for other in path.parent.glob('*.yaml')))
        raise InputError(
            f'cannot read the preset {path}: {error.strerror}; its folder has {near or "none"}'
        ) from error
    except yaml.YAMLError as error:
        reason = ' '.join(str(error).split())
        raise InputError(f'the preset {path} is not YAML: {reason}') from error
    if not isinstance(document, dict):
        raise InputError(f'the preset {path} holds {document!r}; a mapping is needed')
    kinds = {item.name: type(getattr(CameraPreset(), item.name)) for item in fields(CameraPreset)}
    for name, value in document.items():
        if name not in kinds:
            raise InputError(f'{path}: unknown entry {name!r}; known are {", ".join(kinds)}')
        if not isinstance(value, kinds[name]):
            raise InputError(f'{path}: {name} is {value!r}; a {kinds[name].__name__} is needed')
    known = {item.name for item in fields(ReconstructionParameters)}
    unknown = document.get('parameters', {}).keys() - known
    if unknown:
        names = ', '.join(sorted(map(str, unknown)))  # a name may be any YAML
        raise InputError(f'{path}: the node has no parameter {names}')
    return CameraPreset(**document)

"""The layout for Foxglove against the settings that Foxglove publishes, and against recordings."""

import dataclasses
import json
from pathlib import Path
import re
import types
import typing

import pytest

from lunar_stereo_recon.ros.parameters import RecorderParameters

LAYOUT = Path(__file__).resolve().parent.parent / 'config' / 'foxglove' / 'reconstruction.json'
# What only a running node says; it is in no recording.
LIVE_ONLY = {'/hazard', '/diagnostics'}


@pytest.fixture
def layout():
    return json.loads(LAYOUT.read_text(encoding='utf-8'))


def problems(value, kind, path):
    """Return where a JSON value differs from a type: a dataclass stands for an object."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        found = []
        for key, entry in value.items():
            name = re.sub('[A-Z]', lambda match: f'_{match[0].lower()}', key)
            if name in hints:
                found += problems(entry, hints[name], f'{path}.{key}')
            else:
                found.append(f'{path}: {kind.__name__} has no {key}')
        return found
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return [] if value in arguments else [f'{path}: {value!r} is none of {arguments}']
    if origin in (typing.Union, types.UnionType):
        # The answer of the type that fits best.
        of_each = [problems(value, one, path) for one in arguments if one is not type(None)]
        return min(of_each, key=len)
    if origin is dict:
        return [
            p for key, one in value.items() for p in problems(one, arguments[1], f'{path}.{key}')
        ]
    if origin in (list, tuple):
        return [p for one in value for p in problems(one, arguments[0], path)]
    fitting = (int, float) if kind is float else kind
    return [] if isinstance(value, fitting) else [f'{path}: {value!r} is no {kind}']


def settings_of(name):
    """Return Foxglove's dataclass for a panel of the layout."""
    layouts = pytest.importorskip('foxglove.layouts')
    return {
        '3D': layouts.ThreeDeeConfig,
        'Image': layouts.ImageConfig,
        'DiagnosticSummary': layouts.DiagnosticsSummaryConfig,
        'RawMessages': layouts.RawMessagesConfig,
    }[name.partition('!')[0]]


def test_every_setting_is_one_of_foxglove(layout):
    layouts = pytest.importorskip('foxglove.layouts')
    found = []
    for name, panel in layout['configById'].items():
        assert isinstance(panel.pop('foxglovePanelTitle'), str)
        kind = settings_of(name)
        mode = panel.pop('imageMode', None)
        if mode is not None:
            found += problems(mode, layouts.ImageModeConfig, f'{name}.imageMode')
        for topic, settings in panel.pop('topics', {}).items():
            form = {
                '/points2': layouts.BaseRendererPointCloudTopicSettings,
                '/hazard': layouts.BaseRendererRosOccupancyGridTopicSettings,
            }[topic]
            found += problems(settings, form, f'{name}.{topic}')
        for layer in panel.pop('layers', {}).values():
            found += problems(layer, layouts.BaseRendererGridLayerSettings, f'{name}.layers')
        found += problems(panel, kind, name)
    assert found == []


def test_what_foxglove_does_not_know_is_found():
    layouts = pytest.importorskip('foxglove.layouts')
    wrong = {'colourMode': 'colormap', 'colorMap': 'grey', 'minValue': 'low', 'maxValue': 1}
    found = problems(wrong, layouts.ImageModeConfig, 'Image')
    assert [line.partition(':')[0] for line in found] == [
        'Image',
        'Image.colorMap',
        'Image.minValue',
    ]


def test_its_topics_are_recorded_with_the_type_that_the_panel_shows(layout):
    """The recorder's topics are what the demo records, with their names in the root namespace."""
    outputs = pytest.importorskip('lunar_stereo_recon.ros.result_outputs')
    shown = {}
    for name, panel in layout['configById'].items():
        if name.startswith('3D'):
            shown |= dict.fromkeys(panel['topics'], 'sensor_msgs/msg/PointCloud2')
        elif name.startswith('Image'):
            shown[panel['imageMode']['imageTopic']] = 'sensor_msgs/msg/Image'
            calibration = panel['imageMode'].get('calibrationTopic')
            if calibration:
                shown[calibration] = 'sensor_msgs/msg/CameraInfo'
        elif name.startswith('RawMessages'):
            topic = panel['topicPath'].partition('.')[0]
            shown[topic] = 'diagnostic_msgs/msg/DiagnosticArray'
        else:
            shown[panel['topicToRender']] = 'diagnostic_msgs/msg/DiagnosticArray'
    types_of = {topic: kind for topic, (kind, _) in outputs.OUTPUT_TOPICS.items()}
    types_of['left/image_rect'] = 'sensor_msgs/msg/Image'
    types_of[outputs.STATUS_TOPIC] = 'diagnostic_msgs/msg/DiagnosticArray'
    recorded = {f'/{topic}': types_of[topic] for topic in RecorderParameters().topics}
    assert {topic: kind for topic, kind in shown.items() if topic not in LIVE_ONLY} == {
        topic: recorded.get(topic) for topic in shown if topic not in LIVE_ONLY
    }
    assert LIVE_ONLY < set(shown)

"""An empty list has no type in YAML: it is taken for an empty list, or refused by its name."""

from __future__ import annotations

import pytest

rclpy = pytest.importorskip('rclpy')
pytestmark = pytest.mark.ros

from lunar_stereo_recon.errors import InputError  # noqa: E402
from lunar_stereo_recon.ros.node_parameters import declare_parameters  # noqa: E402
from lunar_stereo_recon.ros.parameters import (  # noqa: E402
    named,
    ReconstructionParameters,
    RecorderParameters,
    ReplayParameters,
)


def declared(kind, *arguments):
    """Return the parameters of a node that was started with arguments."""
    context = rclpy.Context()
    words = ['node', '--ros-args', '--disable-external-lib-logs', *arguments]
    rclpy.init(args=words, context=context)
    try:
        node = rclpy.create_node('empty_lists', context=context)
        try:
            return declare_parameters(node, kind)
        finally:
            node.destroy_node()
    finally:
        context.try_shutdown()


@pytest.fixture(params=['file', 'command line'])
def given(request, tmp_path):
    """Return a function that gives a parameter in one of the two ways."""

    def arguments(name, value):
        if request.param == 'command line':
            return ['-p', f'{name}:={value}']
        path = tmp_path / 'params.yaml'
        path.write_text(f'/**:\n  ros__parameters:\n    {name}: {value}\n')
        return ['--params-file', str(path)]

    return arguments


@pytest.mark.parametrize(
    ('kind', 'name'),
    [
        (ReconstructionParameters, 'providers'),
        (ReconstructionParameters, 'outputs'),
        (ReplayParameters, 'topics'),
        (RecorderParameters, 'topics'),
    ],
)
def test_empty_list_of_texts_is_empty(given, kind, name):
    assert named(getattr(declared(kind, *given(name, '[]')), name)) == []


def test_empty_region_is_refused_by_its_name(given):
    with pytest.raises(InputError, match='roi'):
        declared(ReconstructionParameters, *given('roi', '[]'))


def test_lists_that_are_not_empty_are_kept(given):
    found = declared(ReconstructionParameters, *given('outputs', '[points2, hazard]'))
    assert found.outputs == ['points2', 'hazard']

"""Empty lists are empty lists, whichever way they are given; wrong values name the parameter."""

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
    context = rclpy.Context()
    quiet = ['node', '--ros-args', '--disable-external-lib-logs']
    rclpy.init(args=[*quiet, *arguments], context=context)
    try:
        node = rclpy.create_node('parameters_under_test', context=context)
        try:
            return declare_parameters(node, kind)
        finally:
            node.destroy_node()
    finally:
        context.try_shutdown()


def in_file(tmp_path, line):
    path = tmp_path / 'parameters.yaml'
    path.write_text(f'/**:\n  ros__parameters:\n    {line}\n')
    return ['--params-file', str(path)]


@pytest.mark.parametrize(
    ('kind', 'name'),
    [
        (ReconstructionParameters, 'providers'),
        (ReplayParameters, 'topics'),
        (RecorderParameters, 'topics'),
    ],
)
@pytest.mark.parametrize('form', ['[]', "['']"])
def test_empty_list_is_an_empty_list(tmp_path, kind, name, form):
    for arguments in (in_file(tmp_path, f'{name}: {form}'), ['-p', f'{name}:={form}']):
        assert named(getattr(declared(kind, *arguments), name)) == []


@pytest.mark.parametrize(
    ('assignment', 'text'),
    [
        ('backend:=sgmb', "backend is 'sgmb'; one of onnx"),
        ('threads:=many', 'threads'),
        ('providers:=cuda', 'providers'),
        ('confidence_threshold:=1.5', 'confidence_threshold'),
        ('roi:=[]', 'roi'),
    ],
)
def test_wrong_value_names_the_parameter(assignment, text):
    with pytest.raises(InputError, match=text):
        declared(ReconstructionParameters, '-p', assignment)

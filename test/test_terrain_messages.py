"""Messages of the map, read as their readers do; clouds of other makers and broken ones."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from rosbags.typesys import get_types_from_msg, get_typestore, Stores

from lunar_stereo_recon.bags.writer import make_message
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.terrain import TerrainLayers
from lunar_stereo_recon.terrain_messages import (
    CELL_FIELDS,
    cells_message,
    cost_message,
    GRID_MAP_LAYERS,
    grid_map_message,
    GRID_MAP_TYPE,
    points_of_cloud,
)

GRID_MAP = """
std_msgs/Header header
grid_map_msgs/GridMapInfo info
string[] layers
string[] basic_layers
std_msgs/Float32MultiArray[] data
uint16 outer_start_index
uint16 inner_start_index
"""
GRID_MAP_INFO = """
float64 resolution
float64 length_x
float64 length_y
geometry_msgs/Pose pose
"""
STAMP_NS = 12_345_678_901


@pytest.fixture
def layers():
    """Return 3 rows along y and 4 columns along x; heights are 10 y + x, one is unknown."""
    y, x = np.mgrid[0:3, 0:4].astype(np.float32)
    height = 10 * y + x
    height[1, 2] = np.nan
    same = dict.fromkeys(('deviation', 'slope', 'step', 'roughness'), height + 100)
    cost = np.where(np.isfinite(height), np.nan_to_num(height), -1).astype(np.int8)
    return TerrainLayers(
        -2.0, 5.0, 0.5, height=height, **same, confidence=height, age=height, cost=cost
    )


def test_costs_are_an_occupancy_grid_from_the_corner_of_least_x_and_y(layers):
    message = cost_message(make_message, layers, STAMP_NS, 'odom')
    assert (message.info.width, message.info.height) == (4, 3)
    assert message.info.resolution == pytest.approx(0.5)
    origin = message.info.origin.position
    assert (origin.x, origin.y) == (-2.0, 5.0)
    assert message.data.tolist() == [0, 1, 2, 3, 10, 11, -1, 13, 20, 21, 22, 23]
    assert message.header.frame_id == 'odom' and message.header.stamp.sec == 12


def test_cells_are_the_known_ones_at_their_middles(layers):
    message = cells_message(make_message, layers, STAMP_NS, 'odom')
    assert [field.name for field in message.fields] == list(CELL_FIELDS)
    values = np.frombuffer(message.data.tobytes(), np.float32).reshape(-1, len(CELL_FIELDS))
    assert len(values) == message.width == 11
    x, y, z = values[:, :3].T
    assert z == pytest.approx(10 * (y - 5.25) / 0.5 + (x + 1.75) / 0.5, abs=1e-4)
    assert values[:, CELL_FIELDS.index('cost')] == pytest.approx(z)


def test_grid_map_has_its_order_and_its_types(layers):
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(
        {
            **get_types_from_msg(GRID_MAP, GRID_MAP_TYPE),
            **get_types_from_msg(GRID_MAP_INFO, 'grid_map_msgs/msg/GridMapInfo'),
        }
    )

    def make(kind, **fields):
        return store.types[kind](**fields)

    made = grid_map_message(make, layers, STAMP_NS, 'odom')
    message = store.deserialize_cdr(store.serialize_cdr(made, GRID_MAP_TYPE), GRID_MAP_TYPE)
    assert message.layers == list(GRID_MAP_LAYERS)
    assert message.basic_layers == ['elevation']
    assert (message.info.length_x, message.info.length_y) == (2.0, 1.5)
    centre = message.info.pose.position
    elevation = message.data[message.layers.index('elevation')]
    outer, inner = elevation.layout.dim
    assert (outer.label, inner.label) == ('column_index', 'row_index')
    assert (outer.size, outer.stride, inner.size, inner.stride) == (3, 12, 4, 4)
    # As grid_map reads it: a cell's place by its indices, its value from column-major memory.
    for row in range(inner.size):
        for column in range(outer.size):
            x = centre.x + message.info.length_x / 2 - (row + 0.5) * message.info.resolution
            y = centre.y + message.info.length_y / 2 - (column + 0.5) * message.info.resolution
            value = elevation.data[column * inner.stride + row]
            expected = 10 * (y - 5.25) / 0.5 + (x + 1.75) / 0.5
            assert np.isnan(value) if expected == 12 else value == pytest.approx(expected)
    cost = message.data[message.layers.index('cost')].data
    assert np.isnan(cost).sum() == 1 and np.nanmin(cost) == 0


def cloud(values, names, height=1, row_padding=0):
    """Return a PointCloud2 of (N, C) float32 values."""
    values = np.asarray(values, '<f4').reshape(height, -1, len(names))
    row = values.shape[1] * 4 * len(names) + row_padding
    data = np.zeros((height, row), np.uint8)
    data[:, : row - row_padding] = values.reshape(height, -1).view(np.uint8)
    fields = [
        SimpleNamespace(name=name, offset=4 * index, datatype=7, count=1)
        for index, name in enumerate(names)
    ]
    return SimpleNamespace(
        fields=fields, point_step=4 * len(names), row_step=row, height=height,
        width=values.shape[1], is_bigendian=False, data=data.reshape(-1),
    )  # fmt: skip


def test_points_are_read_by_the_names_of_the_fields():
    message = cloud([[1, 2, 3, 9, 0.5, 0.1], [4, 5, 6, 9, 0.6, 0.2]],
                    ['x', 'y', 'z', 'rgb', 'confidence', 'sigma'])  # fmt: skip
    found = points_of_cloud(message)
    assert found.points.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert found.confidence == pytest.approx([0.5, 0.6])
    assert found.sigma_m == pytest.approx([0.1, 0.2])


def test_a_cloud_without_confidence_is_trusted_and_a_sigma_of_nan_alone_is_none():
    plain = points_of_cloud(cloud([[1, 2, 3]], ['x', 'y', 'z']))
    assert plain.confidence.tolist() == [1.0] and plain.sigma_m is None
    unknown = points_of_cloud(cloud([[1, 2, 3, np.nan]], ['x', 'y', 'z', 'sigma']))
    assert unknown.sigma_m is None


def test_rows_beyond_the_largest_depth_are_left_out_where_they_hold_nothing_else():
    values = np.ones((100 * 3, 4), np.float32)
    values[:, 2] = np.repeat(np.arange(100), 3)  # z is the number of the row
    values[:99, 2] = np.nan
    values[:, 3] = values[:, 2] / 100
    message = cloud(values, ['x', 'y', 'z', 'sigma'], height=100)
    near = points_of_cloud(message, 50.0)
    kept = near.points[:, 2] <= 50
    assert np.unique(near.points[kept, 2]).tolist() == list(range(33, 51))
    assert 51 < np.nanmax(near.points[:, 2]) < 99 and len(near.points) < 300
    assert near.sigma_m[kept] == pytest.approx(near.points[kept, 2] / 100)
    nothing = points_of_cloud(message, 5.0)
    assert len(nothing.points) == 0 and nothing.sigma_m is not None


def test_wide_organised_clouds_lose_columns_and_no_rows():
    values = np.zeros((3 * 640, 3), np.float32)
    values[:, 0] = np.tile(np.arange(640), 3)
    values[:, 1] = np.repeat(np.arange(3), 640)
    found = points_of_cloud(cloud(values, ['x', 'y', 'z'], height=3, row_padding=8)).points
    assert len(found) == 3 * 320
    assert set(found[:, 1]) == {0, 1, 2} and found[:3, 0].tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    'change, text',
    [
        ({'fields': []}, 'x, y and z of float32'),
        ({'is_bigendian': True}, 'little-endian'),
        ({'data': np.zeros(4, np.uint8)}, 'has 4 bytes'),
        ({'row_step': 2}, 'rows of'),
        ({'point_step': 7}, 'points of 7 bytes'),
    ],
)
def test_broken_clouds_are_refused(change, text):
    message = cloud([[1, 2, 3]], ['x', 'y', 'z'])
    vars(message).update(change)
    with pytest.raises(InputError, match=text):
        points_of_cloud(message)

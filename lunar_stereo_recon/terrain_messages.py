"""A map of the ground as ROS messages, and clouds as what the map is made of.

Messages are made through a `MakeMessage`, as those of a Reconstruction (`result_messages`).
"""

from __future__ import annotations

from dataclasses import dataclass
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.datatypes import FloatImage
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.terrain import TerrainLayers
from lunar_stereo_recon.result_messages import header, MakeMessage, occupancy_grid_message

GRID_MAP_TYPE = 'grid_map_msgs/msg/GridMap'
_FLOAT32 = 7
# Columns of an organised cloud that are used: its rows are what is sparse on the ground.
COLUMNS_USED = 320
ROWS_AT_ONCE = 32
# Names of grid_map and of elevation_mapping where they have one: layer of the map.
GRID_MAP_LAYERS = {
    'elevation': 'height',
    'deviation': 'deviation',
    'slope': 'slope',
    'step': 'step',
    'roughness': 'roughness',
    'confidence': 'confidence',
    'age': 'age',
    'cost': 'cost',
}
CELL_FIELDS = ('x', 'y', 'z', *list(GRID_MAP_LAYERS)[1:])


@dataclass(frozen=True)
class CloudPoints:
    """What a cloud says about the ground.

    Attributes:
        points: (N, 3) float32, metres, in the cloud's frame; NaN invalid.
        confidence: (N,) float32 in [0, 1]; 1 where the cloud has none.
        sigma_m: (N,) float32, standard deviation of the depth, metres; None where the cloud has
            none, or where it is NaN in all of it.
    """

    points: FloatImage
    confidence: FloatImage
    sigma_m: FloatImage | None


def points_of_cloud(message: Any, max_depth_m: float = math.inf) -> CloudPoints:
    """Return the points of a PointCloud2, of a wide organised one about every second column.

    Args:
        message: The cloud.
        max_depth_m: Points with a larger z are not wanted; those in blocks of rows that have no
            other are left out.

    Raises:
        InputError: It has no x, y and z of float32 in one byte order, or too few bytes.
    """
    fields = {field.name: field for field in message.fields}
    wanted = [name for name in ('x', 'y', 'z', 'confidence', 'sigma') if name in fields]
    kinds = {fields[name].datatype for name in wanted}
    offsets = [fields[name].offset for name in wanted]
    step = message.point_step
    if wanted[:3] != ['x', 'y', 'z'] or kinds != {_FLOAT32} or any(o % 4 for o in offsets):
        raise InputError(
            f'the cloud has the fields {sorted(fields)}; x, y and z of float32 are needed'
        )
    if message.is_bigendian or step % 4 or step < max(offsets) + 4:
        raise InputError(
            f'the cloud has points of {step} bytes, big endian: {bool(message.is_bigendian)}; '
            'little-endian ones that hold their fields are needed'
        )
    height, width = message.height, message.width
    data = np.frombuffer(message.data, np.uint8)
    if message.row_step < width * step or len(data) < height * message.row_step:
        raise InputError(
            f'the cloud of {width}x{height} points has {len(data)} bytes in rows of '
            f'{message.row_step}; rows of {width * step} are needed'
        )
    rows = data[: height * message.row_step].reshape(height, message.row_step)
    every = max(1, width // COLUMNS_USED) if height > 1 else 1
    # (H, W, fields); a view of the message as long as nothing is taken from it.
    values = rows[:, : width * step].reshape(height, width, step).view('<f4')[:, ::every]
    columns = _columns(values, [offset // 4 for offset in offsets], max_depth_m)
    by_name = dict(zip(wanted, columns, strict=True))
    # Coordinate by coordinate in memory, which is how the map reads them.
    points = columns[:3].T
    sigma = by_name.get('sigma')
    if sigma is not None and sigma.size and not np.isfinite(sigma).any():
        sigma = None
    ones: FloatImage = np.ones(len(points), np.float32)
    return CloudPoints(points, by_name.get('confidence', ones), sigma)


def _columns(values: NDArray[Any], axes: list[int], max_depth_m: float) -> FloatImage:
    """Return (len(axes), N) float32, fields of the points of a (H, W, fields) cloud, one by one.

    A few rows at once, so that all of their fields are found in the cache.

    Args:
        values: The cloud.
        axes: Places of the fields that are wanted; the third one is z.
        max_depth_m: See `points_of_cloud`.
    """
    height, width = values.shape[:2]
    columns: FloatImage = np.empty((len(axes), height, width), np.float32)
    used = 0
    for first in range(0, height, ROWS_AT_ONCE):
        rows = values[first : first + ROWS_AT_ONCE]
        there = slice(used, used + len(rows))
        columns[2, there] = rows[..., axes[2]]
        if max_depth_m < math.inf and not (columns[2, there] <= max_depth_m).any():
            continue
        for column, axis in zip(columns, axes, strict=True):
            if axis != axes[2]:
                column[there] = rows[..., axis]
        used = there.stop
    return columns[:, :used].reshape(len(axes), -1)


def cost_message(make: MakeMessage, layers: TerrainLayers, stamp_ns: int, frame_id: str) -> Any:
    """Return the costs as an OccupancyGrid at the height of the ground: 0 free to 100, -1."""
    corner = layers.x_m, layers.y_m, _middle_height(layers)
    return occupancy_grid_message(
        make, layers.cost, layers.cell_m, corner, (0.0, 0.0, 0.0, 1.0), stamp_ns, frame_id
    )


def cells_message(make: MakeMessage, layers: TerrainLayers, stamp_ns: int, frame_id: str) -> Any:
    """Return the known cells as a PointCloud2: x, y, z and the layers; -1 is no cost."""
    row, column = np.nonzero(np.isfinite(layers.height))
    values = np.empty((len(row), len(CELL_FIELDS)), np.float32)
    values[:, 0] = layers.x_m + layers.cell_m * (column + 0.5)
    values[:, 1] = layers.y_m + layers.cell_m * (row + 0.5)
    for index, name in enumerate(('height', *CELL_FIELDS[3:]), start=2):
        values[:, index] = getattr(layers, name)[row, column]
    return make(
        'sensor_msgs/msg/PointCloud2',
        header=header(make, stamp_ns, frame_id),
        height=1,
        width=len(values),
        fields=[
            make(
                'sensor_msgs/msg/PointField',
                name=name,
                offset=4 * index,
                datatype=_FLOAT32,
                count=1,
            )
            for index, name in enumerate(CELL_FIELDS)
        ],
        is_bigendian=False,
        point_step=4 * len(CELL_FIELDS),
        row_step=4 * values.size,
        data=values.view(np.uint8).reshape(-1),
        is_dense=True,
    )


def grid_map_message(
    make: MakeMessage, layers: TerrainLayers, stamp_ns: int, frame_id: str
) -> Any:
    """Return the map as a `grid_map_msgs` GridMap.

    Rows of grid_map run against x and columns against y, from the corner of the largest x and
    y; matrices are stored column after column. The message begins at that corner, so both start
    indices are 0.
    """
    rows, columns = layers.height.shape
    length_x, length_y = columns * layers.cell_m, rows * layers.cell_m
    centre = layers.x_m + length_x / 2, layers.y_m + length_y / 2, 0.0
    return make(
        GRID_MAP_TYPE,
        header=header(make, stamp_ns, frame_id),
        info=make(
            'grid_map_msgs/msg/GridMapInfo',
            resolution=float(layers.cell_m),
            length_x=float(length_x),
            length_y=float(length_y),
            pose=make(
                'geometry_msgs/msg/Pose',
                position=make(
                    'geometry_msgs/msg/Point', **dict(zip('xyz', map(float, centre), strict=True))
                ),
                orientation=make('geometry_msgs/msg/Quaternion', x=0.0, y=0.0, z=0.0, w=1.0),
            ),
        ),
        layers=list(GRID_MAP_LAYERS),
        basic_layers=['elevation'],
        data=[_grid_map_matrix(make, layers, name) for name in GRID_MAP_LAYERS.values()],
        outer_start_index=0,
        inner_start_index=0,
    )


def _grid_map_matrix(make: MakeMessage, layers: TerrainLayers, name: str) -> Any:
    values = getattr(layers, name).astype(np.float32)
    if name == 'cost':
        values[values < 0] = np.nan
    # Here the rows run along y: they are grid_map's columns.
    columns, rows = values.shape
    dimensions = [
        make(
            'std_msgs/msg/MultiArrayDimension',
            label='column_index',
            size=columns,
            stride=rows * columns,
        ),
        make('std_msgs/msg/MultiArrayDimension', label='row_index', size=rows, stride=rows),
    ]
    return make(
        'std_msgs/msg/Float32MultiArray',
        layout=make('std_msgs/msg/MultiArrayLayout', dim=dimensions, data_offset=0),
        data=np.ascontiguousarray(values[::-1, ::-1]).reshape(-1),
    )


def _middle_height(layers: TerrainLayers) -> float:
    """Return the median height of about a thousand of the known cells."""
    known = layers.height[np.isfinite(layers.height)]
    return float(np.median(known[:: max(1, known.size // 1000)])) if known.size else 0.0

"""Triangle meshes as COLLADA files, in the form that Gazebo's own loader reads.

Of Gazebo's mesh formats only this one keeps shared vertices and has axes that no loader turns.
glTF is y-up, and versions of gz-common turn it differently; in Wavefront and STL every triangle
has its own vertices.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.files.atomic import write_text

# Five decimals are 10 micrometres: less than float32 resolves at the horizon.
_POSITION_FORMAT = '%.5f'
_DIRECTION_FORMAT = '%.4f'
_TEXTURE_FORMAT = '%.6f'


def write_collada(
    path: Path,
    vertices: NDArray[np.float32],
    normals: NDArray[np.float32],
    texture_coordinates: NDArray[np.float32],
    triangles: NDArray[np.int32],
) -> None:
    """Write one mesh; z is up and the unit is the metre.

    Args:
        path: File to write.
        vertices: (N, 3) metres.
        normals: (N, 3) unit length, one for each vertex.
        texture_coordinates: (N, 2) u to the right, v upwards, 0..1 over the texture.
        triangles: (M, 3) indices, counterclockwise seen from outside.
    """
    # Gazebo's loader counts an index for each input even where inputs share an offset, so the
    # texture coordinates need theirs; normals inside <vertices> are read with the position.
    indices = np.repeat(triangles.reshape(-1, 1), 2, axis=1)
    text = f"""<?xml version="1.0" encoding="utf-8"?>
<COLLADA xmlns="http://www.collada.org/2005/11/COLLADASchema" version="1.4.1">
  <asset>
    <created>1970-01-01T00:00:00Z</created>
    <modified>1970-01-01T00:00:00Z</modified>
    <unit name="meter" meter="1"/>
    <up_axis>Z_UP</up_axis>
  </asset>
  <library_geometries>
    <geometry id="terrain" name="terrain">
      <mesh>
{_source('position', 'XYZ', vertices, _POSITION_FORMAT)}
{_source('normal', 'XYZ', normals, _DIRECTION_FORMAT)}
{_source('texture', 'ST', texture_coordinates, _TEXTURE_FORMAT)}
        <vertices id="vertex">
          <input semantic="POSITION" source="#position"/>
          <input semantic="NORMAL" source="#normal"/>
        </vertices>
        <triangles count="{len(triangles)}">
          <input semantic="VERTEX" source="#vertex" offset="0"/>
          <input semantic="TEXCOORD" source="#texture" offset="1" set="0"/>
          <p>{_numbers(indices, '%d')}</p>
        </triangles>
      </mesh>
    </geometry>
  </library_geometries>
  <library_visual_scenes>
    <visual_scene id="scene" name="scene">
      <node id="node" name="terrain" type="NODE">
        <instance_geometry url="#terrain"/>
      </node>
    </visual_scene>
  </library_visual_scenes>
  <scene>
    <instance_visual_scene url="#scene"/>
  </scene>
</COLLADA>
"""
    write_text(path, text)


def _source(name: str, axes: str, values: NDArray[Any], number_format: str) -> str:
    parameters = ''.join(f'<param name="{axis}" type="float"/>' for axis in axes)
    return f"""        <source id="{name}">
          <float_array id="{name}-array" count="{values.size}">{_numbers(values, number_format)}\
</float_array>
          <technique_common>
            <accessor source="#{name}-array" count="{len(values)}" stride="{len(axes)}">\
{parameters}</accessor>
          </technique_common>
        </source>"""


def _numbers(values: NDArray[Any], number_format: str) -> str:
    # One format for a whole block is many times faster than one for each number.
    flat = values.reshape(-1).tolist()
    return ' '.join([number_format] * len(flat)) % tuple(flat)

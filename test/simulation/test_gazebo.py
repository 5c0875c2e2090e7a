"""The exported Gazebo world is the renderer's ground; world and rover satisfy the real parser."""

from __future__ import annotations

import ctypes.util
import dataclasses
import json
import math
from pathlib import Path
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pytest
import torch
import yaml

from lunar_stereo_recon.cli import EXIT_ERROR, main
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.simulation import presets
from lunar_stereo_recon.simulation.gazebo import export_world, find_spawn, WorldOptions
from lunar_stereo_recon.simulation.gazebo_rover import read_rig, read_world, start_height
from lunar_stereo_recon.simulation.presets import PRESETS, site_preset, SitePreset
from lunar_stereo_recon.simulation.terrain import make_terrain, terrain_from_heights
from lunar_stereo_recon.simulation.terrain_config import TerrainConfig
from lunar_stereo_recon.simulation.terrain_mesh import height_differences, terrain_patches
from lunar_stereo_recon.simulation.terrain_textures import patch_textures

ROOT = Path(__file__).resolve().parents[2]
ROVER = ROOT / 'config' / 'gazebo' / 'lunar_rover' / 'model.sdf'
SMALL = TerrainConfig(3, cells=(128, 128, 64), cell_sizes_m=(0.04, 0.16, 1.28))
COLLADA = '{http://www.collada.org/2005/11/COLLADASchema}'
# Exported positions have five decimals; float32 heights add less.
VERTEX_TOLERANCE_M = 1e-5


@pytest.fixture(scope='module')
def terrain():
    return make_terrain(SMALL)


@pytest.fixture(scope='module')
def world(terrain, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('gazebo')
    options = WorldOptions(sun_elevation_deg=20.0, sun_azimuth_deg=90.0, cells=64, texels=64)
    return export_world(terrain, folder, options, {'seed': 3})


def plane(slope_x: float, slope_y: float, cells: int = 16, cell_m: float = 0.5):
    """Return a terrain of one grid that rises evenly."""
    axis = (np.arange(cells + 1) - cells / 2) * cell_m
    height = slope_x * axis[None, :] + slope_y * axis[:, None]
    return terrain_from_heights([height.astype(np.float32)], [cell_m])


# Parser


def sdf_verdict(path: Path) -> tuple[bool, str]:
    """Return whether Gazebo's own parser takes a file, and what it says."""
    if (
        shutil.which('gz')
        and not subprocess.run(['gz', 'sdf', '--help'], capture_output=True).returncode
    ):
        result = subprocess.run(['gz', 'sdf', '--check', path], capture_output=True, text=True)
        return result.returncode == 0 and 'Error' not in result.stderr, result.stderr
    # libsdformat holds the function behind `gz sdf --check`; Debian ships it without the command.
    found = (ctypes.util.find_library(f'sdformat{major}') for major in range(20, 11, -1))
    library = next((name for name in found if name), None)
    if library is None:
        pytest.skip('neither gz nor libsdformat (Debian: libsdformat12-12) is installed')
    code = 'import ctypes, sys; sys.exit(ctypes.CDLL(sys.argv[1]).cmdCheck(sys.argv[2].encode()))'
    result = subprocess.run(
        [sys.executable, '-c', code, library, str(path)], capture_output=True, text=True
    )
    return result.returncode == 0, result.stdout + result.stderr


def test_parser_takes_the_world(world):
    accepted, said = sdf_verdict(world)
    assert accepted, said


def test_parser_takes_the_rover():
    accepted, said = sdf_verdict(ROVER)
    assert accepted, said


def test_parser_takes_the_rover_standing_in_the_world(world, tmp_path):
    root = ElementTree.parse(world).getroot()
    root.find('world').append(ElementTree.parse(ROVER).getroot().find('model'))
    together = tmp_path / 'together.sdf'
    ElementTree.ElementTree(root).write(together)
    accepted, said = sdf_verdict(together)
    assert accepted, said


def test_parser_refuses_a_broken_world(world, tmp_path):
    broken = tmp_path / 'broken.sdf'
    text = world.read_text().replace('terrain_1_visual', 'terrain_0_visual')
    broken.write_text(text)
    accepted, said = sdf_verdict(broken)
    assert not accepted
    assert 'terrain_0_visual' in said


# Ground


def read_collada(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an exported mesh, read from the file."""
    mesh = ElementTree.parse(path).getroot().find(f'.//{COLLADA}mesh')
    arrays = {}
    for source in mesh.findall(f'{COLLADA}source'):
        stride = int(source.find(f'.//{COLLADA}accessor').get('stride'))
        text = source.find(f'{COLLADA}float_array').text
        arrays[source.get('id')] = np.array(text.split(), float).reshape(-1, stride)
    triangles = mesh.find(f'{COLLADA}triangles')
    indices = np.array(triangles.find(f'{COLLADA}p').text.split(), int)
    arrays['index'] = indices.reshape(int(triangles.get('count')), 3, 2)
    return arrays


@pytest.mark.parametrize('level', [0, 1, 2])
def test_exported_ground_has_the_renderers_height_at_every_vertex(terrain, world, level):
    mesh = read_collada(world.parent / f'terrain_{level}.dae')
    x, y, z = mesh['position'].T
    truth = terrain.height_at(torch.from_numpy(x).float(), torch.from_numpy(y).float()).numpy()
    assert len(z) > 1000
    np.testing.assert_allclose(z, truth, atol=VERTEX_TOLERANCE_M)
    # The texture lies over the whole square, north up.
    half = SMALL.cells[level] * SMALL.cell_sizes_m[level] / 2
    np.testing.assert_allclose(
        mesh['texture'], 0.5 + mesh['position'][:, :2] / (2 * half), atol=1e-5
    )
    assert (mesh['index'][..., 0] == mesh['index'][..., 1]).all()


def test_rocks_as_meshes_stand_in_the_world(tmp_path):
    pytest.importorskip('embreex')
    config = dataclasses.replace(SMALL, rock_form='mesh', rock_density=3.0)
    ground = make_terrain(config, rock_edge_m=0.05)
    options = WorldOptions(sun_elevation_deg=20.0, cells=64, texels=64)
    path = export_world(ground, tmp_path, options)
    accepted, said = sdf_verdict(path)
    assert accepted, said
    mesh = read_collada(tmp_path / 'rocks.dae')
    rocks = ground.rocks
    np.testing.assert_allclose(mesh['position'], rocks.vertices, atol=VERTEX_TOLERANCE_M)
    np.testing.assert_array_equal(mesh['index'][..., 0], rocks.triangles)
    assert read_world(tmp_path)['rock_triangles'] == len(rocks.triangles) > 500
    link = ElementTree.parse(path).getroot().find('.//model[@name="terrain"]/link')
    for kind in ('visual', 'collision'):
        uri = link.find(f'{kind}[@name="rocks_{kind}"]/geometry/mesh/uri')
        assert uri.text == 'rocks.dae'
    # The ground is the renderer's, and its finer rocks are of the same height as these.
    axis = torch.linspace(-0.99, 0.99, 250) * ground.levels[0].half_size_m
    y, x = (v.reshape(-1) for v in torch.meshgrid(axis, axis, indexing='ij'))
    fine = make_terrain(config)
    assert torch.equal(fine.ground_at(x, y), ground.ground_at(x, y))
    rise = (fine.height_at(x, y) - fine.ground_at(x, y)).numpy()
    difference = (fine.height_at(x, y) - ground.height_at(x, y)).abs().numpy()
    assert (rise > 0.03).sum() > 100
    assert np.median(difference[rise > 0.03]) < 0.01


def test_ground_between_vertices_keeps_the_tolerance_that_is_written(terrain, world):
    stated = read_world(world.parent)['patches']
    for patch, said in zip(terrain_patches(terrain, 64), stated, strict=True):
        difference = np.abs(height_differences(terrain, patch, seed=99))
        assert np.isfinite(difference).all()
        written = said['height_difference_m']
        assert np.percentile(difference, 99) < 1.2 * written['p99'] + 1e-5
        # The rocks' walls are steeper than a cell resolves; the ground itself is not.
        assert written['median'] < 0.01 * patch.cell_m + 2e-4
        assert said['triangles'] == len(patch.triangles)


def test_mesh_of_a_plane_is_exact_everywhere():
    ground = plane(0.3, -0.2)
    [patch] = terrain_patches(ground, 4)
    assert patch.cell_m == 2.0
    assert np.abs(height_differences(ground, patch)).max() < 1e-5
    expected = np.array([-0.3, 0.2, 1.0]) / math.sqrt(1.13)
    np.testing.assert_allclose(patch.normals, np.tile(expected, (25, 1)), atol=1e-6)


def test_patches_cover_the_ground_once_without_cracks(terrain):
    patches = terrain_patches(terrain, 64)
    vertices = np.concatenate([patch.vertices for patch in patches])
    starts = np.cumsum([0, *(len(patch.vertices) for patch in patches)])
    triangles = np.concatenate(
        [patch.triangles + start for patch, start in zip(patches, starts, strict=False)]
    )
    corners = vertices[triangles, :2].astype(float)
    one, two = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = (one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0]) / 2
    half = patches[-1].half_size_m
    assert area.min() > 0, 'a triangle faces down'
    assert area.sum() == pytest.approx((2 * half) ** 2, rel=1e-6)
    # Corners that meet are the same point: then every edge inside belongs to two triangles.
    _, joined = np.unique(np.round(vertices, 4), axis=0, return_inverse=True)
    joined = joined.reshape(-1)[triangles]
    edges = np.sort(np.concatenate([joined[:, [0, 1]], joined[:, [1, 2]], joined[:, [2, 0]]]), 1)
    _, count = np.unique(edges, axis=0, return_counts=True)
    outer_border = 4 * round(2 * half / patches[-1].cell_m)
    assert count.max() == 2
    assert (count == 1).sum() == outer_border


@pytest.mark.parametrize('cells', [0, 3, 48])
def test_mesh_size_must_be_a_power_of_two(terrain, cells):
    with pytest.raises(InputError, match=f'{cells} cells'):
        terrain_patches(terrain, cells)


# Textures


def test_normal_map_of_a_plane_adds_nothing():
    ground = plane(0.4, 0.1)
    [patch] = terrain_patches(ground, 16)
    _, normals = patch_textures(ground, patch, 32, 0.45)
    assert np.abs(normals.astype(int) - [128, 128, 255]).max() <= 1


def test_normal_map_restores_the_slopes_that_the_mesh_leaves_out():
    cells, cell_m = 64, 0.1
    axis = (np.arange(cells + 1) - cells / 2) * cell_m
    # Ripples along x, invisible to a mesh that takes every fourth vertex.
    ripple = 0.02 * np.sin(2 * np.pi * axis / 0.4)[None, :] * np.ones((cells + 1, 1))
    ground = terrain_from_heights([ripple.astype(np.float32)], [cell_m])
    [patch] = terrain_patches(ground, 16)
    assert np.ptp(patch.vertices[:, 2]) < 1e-6
    _, normals = patch_textures(ground, patch, 64, 0.45)
    decoded = normals / 127.5 - 1
    slope = -decoded[32, :, 0] / decoded[32, :, 2]
    centres = -3.2 + (np.arange(64) + 0.5) * 0.1
    truth = np.interp(centres, axis, np.gradient(ripple[0], cell_m))
    np.testing.assert_allclose(slope[1:-1], truth[1:-1], atol=0.02)
    assert np.abs(decoded[..., 1]).max() < 0.01


def test_green_of_the_normal_map_points_north():
    cells = 16
    axis = np.arange(cells + 1, dtype=np.float32) - cells / 2
    # A ridge along x: its northern slope looks north.
    ridge = -0.3 * np.abs(axis)[:, None] * np.ones((1, cells + 1), np.float32)
    ground = terrain_from_heights([ridge], [1.0])
    [patch] = terrain_patches(ground, 4)
    _, normals = patch_textures(ground, patch, 64, 0.45)
    # Between the ridge and the first vertex beside it, the mesh normal is too flat.
    north_of_ridge, south_of_ridge = normals[26, 32], normals[37, 32]
    assert north_of_ridge[1] > 140
    assert south_of_ridge[1] < 115


def test_albedo_map_is_north_up_and_srgb():
    cells = 16
    flat = np.zeros((cells + 1, cells + 1), np.float32)
    relative = np.ones_like(flat)
    relative[12:, :5] = 2.0  # north west
    ground = terrain_from_heights([flat], [1.0], albedo=[relative])
    [patch] = terrain_patches(ground, 16)
    albedo, _ = patch_textures(ground, patch, 32, 0.2)

    def linear(value: int) -> float:
        return ((value / 255 + 0.055) / 1.055) ** 2.4

    assert linear(albedo[2, 2, 0]) == pytest.approx(0.4, abs=0.005)
    for row, column in ((2, 29), (29, 2), (29, 29)):
        assert linear(albedo[row, column, 0]) == pytest.approx(0.2, abs=0.005)


def test_texture_files_are_the_textures(terrain, world):
    patch = terrain_patches(terrain, 64)[0]
    albedo, normals = patch_textures(terrain, patch, 64, 0.45)
    for kind, image in (('albedo', albedo), ('normal', normals)):
        written = cv2.imread(str(world.parent / f'terrain_0_{kind}.png'), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(written[..., ::-1], image)


# World


def test_world_has_lunar_gravity_one_hard_sun_and_nothing_else_that_shines(world):
    scene = ElementTree.parse(world).getroot().find('world')
    assert [float(v) for v in scene.findtext('gravity').split()] == [0, 0, -1.62]
    [sun] = scene.findall('light')
    assert sun.get('type') == 'directional'
    assert sun.findtext('cast_shadows') == 'true'
    direction = np.array([float(v) for v in sun.findtext('direction').split()])
    np.testing.assert_allclose(
        direction, [0, -math.cos(math.radians(20)), -math.sin(math.radians(20))], atol=1e-6
    )
    for name in ('scene/ambient', 'scene/background'):
        assert scene.findtext(name) == '0 0 0 1'
    assert scene.find('scene/sky') is None
    assert scene.findtext('scene/shadows') == 'true'


def test_every_file_that_the_world_names_is_there(world):
    root = ElementTree.parse(world).getroot()
    names = [e.text for tag in ('uri', 'albedo_map', 'normal_map') for e in root.iter(tag)]
    assert len(names) == 3 * 4
    assert all((world.parent / name).is_file() for name in names)


def test_low_sun_is_as_bright_on_level_ground_as_a_high_one():
    bright = {e: WorldOptions(e).sun_intensity() * math.sin(math.radians(e)) for e in (10, 30, 60)}
    assert bright[10] == pytest.approx(bright[60])
    assert WorldOptions(0.5).sun_intensity() == 5.0


@pytest.mark.parametrize(
    'options, named',
    [({'sun_elevation_deg': 0.0}, 'elevation is 0.0'), ({'texels': 8}, '8 texels')],
)
def test_impossible_options_are_named(options, named):
    with pytest.raises(InputError, match=named):
        WorldOptions(**options)


def test_world_that_cannot_be_written_names_the_folder(terrain, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(InputError, match='file/world'):
        export_world(terrain, tmp_path / 'file' / 'world', WorldOptions(cells=8, texels=16))


def test_rover_starts_on_level_ground_and_not_in_it():
    cells, cell_m = 128, 0.1
    rough = np.random.default_rng(0).uniform(0, 0.5, (cells + 1, cells + 1)).astype(np.float32)
    # A level square around x 2, y -1, at a height of 0.7 m.
    column, row = round(2 / cell_m) + cells // 2, round(-1 / cell_m) + cells // 2
    rough[row - 8 : row + 9, column - 8 : column + 9] = 0.7
    spawn = find_spawn(terrain_from_heights([rough], [cell_m]))
    assert (spawn.x_m, spawn.y_m) == pytest.approx((2.0, -1.0), abs=0.21)
    assert spawn.z_m == pytest.approx(0.72, abs=1e-3)


def test_start_height_is_above_everything_under_the_rover(terrain, world):
    x, y = -1.3, 2.2
    steps = np.arange(-0.6, 0.61, 0.05)
    around_x, around_y = (
        torch.from_numpy(v.ravel()).float() for v in np.meshgrid(x + steps, y + steps)
    )
    highest = float(terrain.height_at(around_x, around_y).max())
    height = start_height(world.parent, x, y)
    assert highest - 0.05 < height < highest + 0.5
    with pytest.raises(InputError, match='x 500 y 0 m'):
        start_height(world.parent, 500, 0)


# Rover


def text_numbers(element: ElementTree.Element, path: str) -> list[float]:
    return [float(value) for value in element.findtext(path).split()]


@pytest.fixture(scope='module')
def rover() -> ElementTree.Element:
    return ElementTree.parse(ROVER).getroot().find('model')


def test_rover_inertias_are_those_of_its_shapes(rover):
    checked = 0
    for link in rover.findall('link'):
        shape = link.find('visual/geometry')
        if shape is None:
            continue
        mass = float(link.findtext('inertial/mass'))
        if shape.find('box') is not None:
            a, b, c = np.square(text_numbers(shape, 'box/size'))
            expected = np.array([b + c, a + c, a + b]) * mass / 12
        else:
            radius, length = (float(shape.findtext(f'cylinder/{n}')) for n in ('radius', 'length'))
            across = mass * (3 * radius**2 + length**2) / 12
            along = mass * radius**2 / 2
            lying = link.find('visual/pose') is not None
            expected = np.array([across, along, across] if lying else [across, across, along])
        inertia = [float(link.findtext(f'inertial/inertia/{n}')) for n in ('ixx', 'iyy', 'izz')]
        np.testing.assert_allclose(inertia, expected, rtol=1e-3)
        checked += 1
    assert checked == 9
    assert 30 < sum(float(m.text) for m in rover.iter('mass')) < 60


def test_drive_names_the_wheels_as_they_stand(rover):
    drive = next(p for p in rover.findall('plugin') if p.get('name').endswith('DiffDrive'))
    joints = {joint.get('name'): joint for joint in rover.findall('joint')}
    links = {link.get('name'): link for link in rover.findall('link')}
    lateral = {}
    for side in ('left', 'right'):
        names = [e.text for e in drive.findall(f'{side}_joint')]
        assert len(names) == 2
        for name in names:
            wheel = links[joints[name].findtext('child')]
            rocker = links[wheel.find('pose').get('relative_to')]
            wheel_at, rocker_at = (text_numbers(link, 'pose') for link in (wheel, rocker))
            lateral[side] = wheel_at[1] + rocker_at[1]
            radius = float(wheel.findtext('collision/geometry/cylinder/radius'))
            assert wheel_at[2] + rocker_at[2] == pytest.approx(radius), 'not on the ground'
            assert radius == float(drive.findtext('wheel_radius'))
    separation = float(drive.findtext('wheel_separation'))
    assert lateral['left'] - lateral['right'] == pytest.approx(separation)


def test_rig_avoids_gazebos_camera_info_traps(rover):
    rig = read_rig(ROVER)
    cameras = {s.get('name'): s for s in rover.iter('sensor') if s.get('type') == 'camera'}
    assert set(cameras) == {'left_camera', 'right_camera'}
    on_link = [
        link for link in rover.findall('link') if link.find("sensor[@type='camera']") is not None
    ]
    [rig_link] = on_link
    # Every further camera on the link, depth cameras too, would be given a baseline.
    assert len(rig_link.findall('sensor')) == 2
    for side in ('left', 'right'):
        camera = cameras[f'{side}_camera']
        other = 'right' if side == 'left' else 'left'
        assert side in camera.findtext('topic') and other not in camera.findtext('topic')
        projection = {e.tag: float(e.text) for e in camera.find('camera/lens/projection')}
        width, height = (float(camera.findtext(f'camera/image/{n}')) for n in ('width', 'height'))
        fov = float(camera.findtext('camera/horizontal_fov'))
        assert projection['p_fx'] == pytest.approx(width / 2 / math.tan(fov / 2), rel=1e-5)
        assert projection['p_fy'] == projection['p_fx']
        assert (projection['p_cx'], projection['p_cy']) == (width / 2, height / 2)
        tx = -projection['p_fx'] * rig.baseline_m if side == 'right' else 0.0
        assert projection['tx'] == pytest.approx(tx)
        frame = f'{side}_camera_optical_frame'
        assert camera.findtext('camera/optical_frame_id') == frame
        assert camera.findtext('gz_frame_id') == frame
    assert rig.baseline_m == pytest.approx(0.3)


def test_rig_looks_ahead_and_down_with_the_right_camera_on_the_right():
    rig = read_rig(ROVER)
    x, y, z, w = rig.left.xyzw
    assert x * x + y * y + z * z + w * w == pytest.approx(1)
    # Columns of the rotation: the optical axes in the base frame.
    right = [1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)]
    forward = [2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)]
    np.testing.assert_allclose(right, [0, -1, 0], atol=1e-6)
    tilt = math.radians(15)
    np.testing.assert_allclose(forward, [math.cos(tilt), 0, -math.sin(tilt)], atol=1e-6)
    offset = np.subtract(rig.right.xyz_m, rig.left.xyz_m)
    np.testing.assert_allclose(offset, np.multiply(rig.baseline_m, right), atol=1e-9)
    assert rig.left.child == 'left_camera_optical_frame'


@pytest.mark.parametrize(
    'old, new, named',
    [
        ('<sensor name="right_camera"', '<sensor name="stereo_right"', "'right_camera'"),
        ('<link name="base_link">', '<link name="chassis">', "'base_link'"),
        ('<p_fx>480</p_fx>', '', '<p_fx>'),
        ('<sdf version="1.9">', '<sdf version="1.9"', 'not XML'),
    ],
)
def test_rover_without_a_usable_rig_is_refused(tmp_path, old, new, named):
    changed = tmp_path / 'model.sdf'
    text = ROVER.read_text(encoding='utf-8')
    assert old in text
    changed.write_text(text.replace(old, new), encoding='utf-8')
    with pytest.raises(InputError, match=named):
        read_rig(changed)


def test_rig_on_two_links_is_refused(tmp_path):
    root = ElementTree.parse(ROVER).getroot()
    links = {link.get('name'): link for link in root.iter('link')}
    right = links['camera_link'].find("sensor[@name='right_camera']")
    links['camera_link'].remove(right)
    links['mast_link'].append(right)
    changed = tmp_path / 'model.sdf'
    ElementTree.ElementTree(root).write(changed)
    with pytest.raises(InputError, match="'camera_link' and the right one on 'mast_link'"):
        read_rig(changed)


def test_bridge_carries_what_the_rover_publishes(rover):
    entries = yaml.safe_load((ROOT / 'config' / 'gz_bridge.yaml').read_text(encoding='utf-8'))
    topics = {f'/{e.text}' for e in rover.iter() if e.tag.endswith('topic')} | {'/clock'}
    bridged = {entry['ros_topic_name']: entry for entry in entries}
    assert len(bridged) == len(entries)
    for entry in entries:
        assert entry['gz_topic_name'] in topics, entry
        assert entry['direction'] in ('GZ_TO_ROS', 'ROS_TO_GZ')
    for side in ('left', 'right'):
        assert bridged[f'{side}/image_rect']['gz_topic_name'] == f'/lunar_rover/{side}/image_rect'
        # To the relay, and from there to camera_info.
        assert bridged[f'{side}/camera_info_in']['ros_type_name'] == 'sensor_msgs/msg/CameraInfo'
        assert f'{side}/camera_info' not in bridged
    assert bridged['cmd_vel']['direction'] == 'ROS_TO_GZ'


# Command


@pytest.fixture
def tiny_preset(monkeypatch) -> str:
    ground = TerrainConfig(0, cells=(32, 16), cell_sizes_m=(0.1, 0.8))
    monkeypatch.setitem(presets.PRESETS, 'tiny', SitePreset(ground, 15.0))
    return 'tiny'


def test_command_writes_a_world_and_keeps_it_while_the_options_are_the_same(
    tiny_preset, tmp_path, capsys
):
    words = ['export-gazebo', '--out', str(tmp_path / 'moon'), '--preset', tiny_preset]
    words += ['--cells', '16', '--texels', '16', '--reuse']
    assert main([*words, '--seed', '5']) == 0
    shown = capsys.readouterr().out
    assert str(tmp_path / 'moon' / 'world.sdf') in shown and '+-1.6 m' in shown
    description = json.loads((tmp_path / 'moon' / 'world.json').read_text())
    assert (description['preset'], description['seed']) == ('tiny', 5)
    assert description['sun_elevation_deg'] == 15.0
    before = (tmp_path / 'moon' / 'terrain_0.dae').read_bytes()
    assert main([*words, '--seed', '5']) == 0
    assert 'has this world already' in capsys.readouterr().out
    assert main([*words, '--seed', '6']) == 0
    assert (tmp_path / 'moon' / 'terrain_0.dae').read_bytes() != before


def test_same_seed_makes_the_same_world(tiny_preset, tmp_path):
    for name in ('one', 'two'):
        words = ['export-gazebo', '--out', str(tmp_path / name), '--preset', tiny_preset]
        assert main([*words, '--cells', '16', '--texels', '16', '--seed', '5']) == 0
    one, two = (
        {p.name: p.read_bytes() for p in (tmp_path / n).iterdir() if p.suffix != '.npz'}
        for n in ('one', 'two')
    )
    assert one == two


def test_unknown_preset_lists_the_known_ones(tmp_path, capsys):
    assert main(['export-gazebo', '--out', str(tmp_path), '--preset', 'mars']) == EXIT_ERROR
    said = capsys.readouterr().err
    assert "'mars'" in said and 'south_pole' in said


@pytest.mark.parametrize('name', PRESETS)
def test_presets_are_terrains_of_their_seed(name):
    config = site_preset(name).terrain_config(17)
    assert config.seed == 17
    assert config.hurst == PRESETS[name].ground.hurst

"""Elevation maps: known ground is found again, files say what the map holds."""

from __future__ import annotations

import argparse
import dataclasses
import json

import numpy as np
import pytest

from lunar_stereo_recon.datatypes import Reconstruction, StereoCalibration
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.evaluation.elevation import (
    ElevationFusion,
    height_errors,
    shaded_relief,
    slope_deg,
)
from lunar_stereo_recon.evaluation.fusion import FusedCloud
from lunar_stereo_recon.geometry.camera import points_from_depth

CAMERA = StereoCalibration(60.0, 60.0, 31.5, 23.5, 31.5, 0.2, 64, 48)
CAMERA_HEIGHT_M = 5.0
# Looks straight down from 5 m: image right is east, image down is south.
LOOKING_DOWN = np.array(
    [[1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, -1.0, CAMERA_HEIGHT_M], [0, 0, 0, 1.0]]
)


def seen(depth: np.ndarray, confidence: float = 0.9) -> Reconstruction:
    """Return a frame of a camera that looks down on ground at these depths."""
    depth = depth.astype(np.float32)
    points = points_from_depth(depth, CAMERA)
    color = np.full((*depth.shape, 3), 100, np.uint8)
    confidences = np.full(depth.shape, confidence, np.float32)
    return Reconstruction(depth, depth, confidences, points, color, CAMERA)


def flat(height_m: float, confidence: float = 0.9) -> Reconstruction:
    return seen(np.full((48, 64), CAMERA_HEIGHT_M - height_m), confidence)


def test_level_ground_has_its_height_and_no_slope():
    fusion = ElevationFusion(cell_m=0.2)
    fusion.add(flat(1.0), LOOKING_DOWN)
    elevation = fusion.map()
    known = np.isfinite(elevation.height)
    np.testing.assert_allclose(elevation.height[known], 1.0, atol=1e-5)
    np.testing.assert_allclose(elevation.confidence[known], 0.9, atol=1e-5)
    assert elevation.count.sum() == 48 * 64
    assert np.nanmax(elevation.slope) < 0.01


def test_north_is_up_and_the_corner_is_that_of_the_first_cell():
    depth = np.full((48, 64), 5.0)
    depth[0, 63] = 4.0  # a rock in the north-east
    fusion = ElevationFusion(cell_m=0.2)
    fusion.add(seen(depth), LOOKING_DOWN)
    elevation = fusion.map()
    row, column = np.unravel_index(np.nanargmax(elevation.height), elevation.height.shape)
    x, y, _ = (LOOKING_DOWN @ [*points_from_depth(depth.astype('f4'), CAMERA)[0, 63], 1.0])[:3]
    assert elevation.west_m + column * 0.2 <= x < elevation.west_m + (column + 1) * 0.2
    assert elevation.north_m - (row + 1) * 0.2 <= y < elevation.north_m - row * 0.2


def test_the_surer_frame_counts_more_and_frames_share_their_errors():
    one, both = ElevationFusion(cell_m=0.5), ElevationFusion(cell_m=0.5)
    one.add(flat(1.0, 0.9), LOOKING_DOWN)
    both.add(flat(1.0, 0.9), LOOKING_DOWN)
    both.add(flat(1.0, 0.9), LOOKING_DOWN)
    np.testing.assert_allclose(both.map().deviation, one.map().deviation, rtol=1e-3)
    both.add(flat(1.2, 0.3), LOOKING_DOWN)
    middle = both.map().height[np.isfinite(both.map().height)]
    assert (middle < 1.05).mean() > 0.9


def test_the_deviation_is_that_of_the_disparity_seen_from_above():
    fusion = ElevationFusion(cell_m=0.5)
    fusion.add(flat(0.0, 0.9), LOOKING_DOWN)
    sigma_px = np.sqrt(2) / -np.log(0.1)
    expected = sigma_px * CAMERA_HEIGHT_M**2 / (CAMERA.fx * CAMERA.baseline_m)
    np.testing.assert_allclose(np.nanmedian(fusion.map().deviation), expected, rtol=1e-3)


def test_sigma_of_the_points_is_that_of_the_map():
    first, second = (
        dataclasses.replace(flat(height), depth_sigma_m=np.full((48, 64), sigma, np.float32))
        for height, sigma in ((1.0, 0.01), (2.0, 0.02))
    )
    second.depth_sigma_m[:, 32:] = np.nan  # the second frame knows nothing of the east
    fusion = ElevationFusion(cell_m=0.2)
    fusion.add(first, LOOKING_DOWN)
    np.testing.assert_allclose(np.nanmax(fusion.map().deviation), 0.01, rtol=1e-3)
    fusion.add(second, LOOKING_DOWN)
    elevation = fusion.map()
    east = elevation.height[:, -4:]
    np.testing.assert_allclose(east[np.isfinite(east)], 1.0, atol=1e-5)
    assert np.nanmax(elevation.height) < 1.6  # the surer frame counts four times as much


def test_a_sigma_of_zero_does_not_break_the_map():
    fusion = ElevationFusion(cell_m=0.2)
    fusion.add(
        dataclasses.replace(flat(1.0), depth_sigma_m=np.zeros((48, 64), np.float32)), LOOKING_DOWN
    )
    assert np.nanmin(fusion.map().deviation) >= 0.002 - 1e-6


def test_slopes_and_relief_of_a_ramp():
    ramp = np.tile(np.arange(10, dtype=np.float32), (8, 1)) * 0.1
    slope = slope_deg(ramp, 0.1)
    np.testing.assert_allclose(slope[1:-1, 1:-1], 45.0, rtol=1e-5)
    assert np.isnan(slope[0]).all()
    fusion = ElevationFusion(cell_m=0.2)
    fusion.add(flat(0.0), LOOKING_DOWN)
    relief = shaded_relief(fusion.map())
    assert relief[relief.shape[0] // 2, relief.shape[1] // 2] == pytest.approx(127, abs=2)


def test_errors_are_of_cells_in_common():
    estimated, true = ElevationFusion(cell_m=0.2), ElevationFusion(cell_m=0.2)
    estimated.add(flat(1.03), LOOKING_DOWN)
    true.add(flat(1.0), LOOKING_DOWN)
    errors = height_errors(estimated.map(), true.map())
    assert errors['mean_m'] == pytest.approx(0.03, abs=1e-5)
    assert errors['within_1_deviation'] == 1.0
    far = ElevationFusion(cell_m=0.2)
    away = LOOKING_DOWN.copy()
    away[0, 3] = 100.0
    far.add(flat(1.0), away)
    with pytest.raises(InputError, match='no cell in common'):
        height_errors(estimated.map(), far.map())


@pytest.mark.parametrize('cell_m', [0.0, float('nan'), float('inf'), -1.0])
def test_a_cell_size_that_is_none_is_refused(cell_m):
    with pytest.raises(InputError, match='cell size'):
        ElevationFusion(cell_m=cell_m)


def test_a_map_of_nothing_or_of_too_much_is_refused():
    with pytest.raises(InputError, match='no point'):
        ElevationFusion().map()
    fusion = ElevationFusion(cell_m=0.001)
    fusion.add(flat(0.0), LOOKING_DOWN)
    away = LOOKING_DOWN.copy()
    away[:2, 3] = 1000.0
    fusion.add(flat(0.0), away)
    with pytest.raises(InputError, match='larger cells'):
        fusion.map()


def test_geotiff_has_five_named_bands_at_their_place(tmp_path):
    rasterio = pytest.importorskip('rasterio')
    from lunar_stereo_recon.evaluation.map_files import write_geotiff

    fusion = ElevationFusion(cell_m=0.2)
    fusion.add(flat(1.0), LOOKING_DOWN)
    elevation = fusion.map()
    write_geotiff(tmp_path / 'dem.tif', elevation, 'EPSG:3857')
    with rasterio.open(tmp_path / 'dem.tif') as raster:
        assert raster.descriptions == ('height', 'deviation', 'slope', 'count', 'confidence')
        assert raster.crs.to_epsg() == 3857 and np.isnan(raster.nodata)
        np.testing.assert_array_equal(raster.read(1), elevation.height)
        assert (raster.bounds.left, raster.bounds.top) == pytest.approx(
            (elevation.west_m, elevation.north_m)
        )
    with pytest.raises(InputError, match='moon is not a coordinate reference system'):
        write_geotiff(tmp_path / 'dem.tif', elevation, 'moon')


def test_laz_keeps_points_colours_and_confidence(tmp_path):
    laspy = pytest.importorskip('laspy')
    pytest.importorskip('lazrs')
    from lunar_stereo_recon.evaluation.map_files import write_laz

    points = np.array([[1.5, -2.25, 0.125], [1000.001, 3.0, -4.0]])
    colors = np.array([[255, 0, 128], [1, 2, 3]], np.uint8)
    cloud = FusedCloud(points, colors, np.array([0.5, 1.0], np.float32), np.array([3, 7]))
    write_laz(tmp_path / 'map.laz', cloud)
    read = laspy.read(tmp_path / 'map.laz')
    np.testing.assert_allclose(np.asarray(read.xyz), points, atol=6e-4)
    assert list(read.red) == [65535, 257] and list(read['observations']) == [3, 7]
    np.testing.assert_allclose(read['confidence'], [0.5, 1.0])


def parsed(*words: str) -> argparse.Namespace:
    from lunar_stereo_recon.cli import build_parser

    return build_parser().parse_args(['fuse', *words])


def test_the_command_merges_a_posed_bag(make_bag, tmp_path):
    for name in ('rasterio', 'laspy', 'lazrs'):
        pytest.importorskip(name)
    args = parsed(str(make_bag()), '--out', str(tmp_path / 'map'), '--backend', 'sgbm')
    args.map_range = 100.0
    assert args.run(args) == 0
    summary = json.loads((tmp_path / 'map' / 'map.json').read_text())
    assert summary['frames']['merged'] > 0 and summary['points'] > 0
    for name in ('map.ply', 'map.laz', 'dem.tif', 'relief.png'):
        assert (tmp_path / 'map' / name).stat().st_size > 0


@pytest.mark.parametrize('option', ['--cell', '--voxel', '--map-range', '--tolerance'])
def test_numbers_that_cannot_be_are_refused_before_the_work(option):
    for name in ('rasterio', 'laspy', 'lazrs'):
        pytest.importorskip(name)
    args = parsed('no/bag', option, '-1')
    with pytest.raises(InputError, match=f'{option} is -1; '):
        args.run(args)


def test_the_arguments_of_the_bag_count(make_bag, tmp_path):
    """Twice the baseline puts the wall at twice its distance, where there is no true ground."""
    for name in ('rasterio', 'laspy', 'lazrs'):
        pytest.importorskip(name)
    bag, found = str(make_bag()), []
    for baseline in ('0.2', '0.4'):
        words = ('--out', str(tmp_path / baseline), '--backend', 'sgbm', '--map-range', '100')
        args = parsed(bag, *words, '--baseline', baseline)
        assert args.run(args) == 0
        found.append(json.loads((tmp_path / baseline / 'map.json').read_text())['height_error'])
    assert found[0]['median_m'] < 0.01
    assert 'no cell in common' in found[1]


def test_poses_by_transforms_and_a_reference_system_of_the_bag(make_bag, tmp_path):
    """The bag says IAU's Moon in its custom data; its transforms say what its poses say."""
    rasterio = pytest.importorskip('rasterio')
    for name in ('laspy', 'lazrs'):
        pytest.importorskip(name)
    bag, found = make_bag(), []
    metadata = bag / 'metadata.yaml'
    text = metadata.read_text()
    assert 'custom_data: null' in text
    metadata.write_text(text.replace('custom_data: null', 'custom_data: {crs: "IAU_2015:30100"}'))
    for topic in ('/ground_truth/pose', 'tf'):
        out = tmp_path / topic[-2:]
        words = ('--out', str(out), '--backend', 'sgbm', '--map-range', '100')
        args = parsed(str(bag), *words, '--pose-topic', topic)
        assert args.run(args) == 0
        summary = json.loads((out / 'map.json').read_text())
        assert summary['poses'] == topic and summary['crs'] == 'IAU_2015:30100'
        found.append((out / 'map.ply').read_bytes())
    assert found[0] == found[1]
    with rasterio.open(out / 'dem.tif') as raster:
        assert 'Moon' in raster.crs.to_wkt()


def test_a_bag_without_poses_is_refused(make_bag, tmp_path):
    for name in ('rasterio', 'laspy', 'lazrs'):
        pytest.importorskip(name)
    words = ('--out', str(tmp_path / 'map'), '--backend', 'sgbm', '--pose-topic', 'tf')
    args = parsed(str(make_bag()), *words, '--map-frame', 'mars')
    with pytest.raises(InputError, match="no poses of the left camera.*in 'mars'"):
        args.run(args)


def test_share_of_the_error_that_the_deviation_explains():
    """Half of the cells are off by their deviation, half by twice of it: (1 + 1) / (1 + 4)."""
    fusion = ElevationFusion(cell_m=0.2)
    fusion.add(flat(1.0), LOOKING_DOWN)
    true = fusion.map()
    number = np.arange(true.height.size).reshape(true.height.shape)
    deviation = np.full_like(true.height, 0.01)
    height = true.height + np.where(number % 2, 0.01, 0.02).astype(np.float32)
    estimated = dataclasses.replace(true, height=height, deviation=deviation)
    odd = np.isfinite(height) & (number % 2 == 1)
    even = np.isfinite(height) & (number % 2 == 0)
    expected = (odd.sum() + even.sum()) / (odd.sum() + 4 * even.sum())
    found = height_errors(estimated, true)
    assert found['explained_share'] == pytest.approx(expected, rel=1e-3)
    assert height_errors(true, true)['explained_share'] == 1.0

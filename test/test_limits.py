"""What comes from outside is held to `limits` where it enters, before it costs memory."""

import dataclasses
import math
import struct
from types import SimpleNamespace
import zlib

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.backends.sgbm_backend import ClassicalBackend
from lunar_stereo_recon.bags.writer import make_message
from lunar_stereo_recon.datatypes import DisparityPrediction, StereoCalibration
from lunar_stereo_recon.encoded_image import decoded_image, image_header
from lunar_stereo_recon.errors import CalibrationError, InputError, ModelError
from lunar_stereo_recon.geometry.confidence import (
    calibrated_confidence,
    ConfidenceCalibration,
    FEATURES,
)
from lunar_stereo_recon.limits import MAX_DEPTH_M
from lunar_stereo_recon.messages import calibration_from_camera_infos, pair_from_messages
from lunar_stereo_recon.pipeline import ReconstructionOptions, StereoReconstructor
from lunar_stereo_recon.result_messages import camera_info_message, image_message

RIG = StereoCalibration(90.0, 91.0, 47.5, 31.5, 47.5, 0.2, 96, 64)


def png(chunks: list[tuple[bytes, bytes, int | None]]) -> bytes:
    """Return a PNG of (kind, data, claimed length or None) chunks."""
    parts = [b'\x89PNG\r\n\x1a\n']
    for kind, data, claimed in chunks:
        length = len(data) if claimed is None else claimed
        parts += [struct.pack('>I', length), kind, data]
        parts.append(struct.pack('>I', zlib.crc32(kind + data)))
    return b''.join(parts)


def png_header(width: int, height: int) -> bytes:
    return struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)


@pytest.mark.parametrize(
    'change',
    [
        {'fx': 1e300},
        {'fx': 1.0},
        {'fy': 1e-300},
        {'cx': -1e6},
        {'cx_right': 1e30},
        {'cy': 1e300},
        {'baseline_m': 1e-300},
        {'baseline_m': 2e3},
        {'width': 20_000},
        {'height': 0},
        *({name: value} for name in ('fx', 'cy', 'baseline_m') for value in (math.nan, math.inf)),
    ],
)
def test_an_implausible_calibration_says_which_value_broke_which_range(change):
    ((name, value),) = change.items()
    with pytest.raises(CalibrationError, match=rf'calibration {name} is .* to .* plausible'):
        dataclasses.replace(RIG, **change)


def test_rigs_of_the_field_are_plausible():
    """Fisheye window, mast telephoto, region of a large sensor, converged windows."""
    StereoCalibration(60.0, 60.0, 320.0, 240.0, 320.0, 0.05, 640, 480)
    StereoCalibration(15_000.0, 15_000.0, 800.0, 600.0, 800.0, 0.244, 1600, 1200)
    StereoCalibration(2000.0, 2000.0, 2040.0, -900.0, 1200.0, 0.4, 64, 48)


@pytest.mark.parametrize(
    'index, value', [((0, 3), -1e300), ((0, 3), -1e39), ((1, 1), 1e-300), ((0, 2), -1e300)]
)
def test_no_camera_info_gives_points_out_of_range(index, value):
    left, right = (
        camera_info_message(make_message, RIG, 0, 'left', right=right) for right in (False, True)
    )
    for info in (left, right) if index[1] != 3 else (right,):
        info.p[4 * index[0] + index[1]] = value
    with pytest.raises(CalibrationError):
        calibration_from_camera_infos(left, right)


def test_region_outside_of_its_image_is_refused():
    infos = [
        camera_info_message(make_message, RIG, 0, 'left', right=right) for right in (False, True)
    ]
    for info in infos:
        info.roi.x_offset, info.roi.width, info.roi.height = 90, 40, 64
    with pytest.raises(CalibrationError, match=r'region 40x64 at \(90, 0\) is not within'):
        calibration_from_camera_infos(*infos)


@pytest.mark.parametrize('sec, nanosec', [(2**31 - 1, 2**32 - 1), (-1, 0), (0, 10**9)])
def test_a_stamp_that_no_result_can_carry_is_refused(sec, nanosec):
    grey = np.zeros((64, 96), np.uint8)
    message = image_message(make_message, grey, 'mono8', 0, 'left')
    object.__setattr__(message.header.stamp, 'sec', sec)
    object.__setattr__(message.header.stamp, 'nanosec', nanosec)
    infos = [
        camera_info_message(make_message, RIG, 0, 'left', right=right) for right in (False, True)
    ]
    with pytest.raises(InputError, match=f'{sec} s and {nanosec} ns'):
        pair_from_messages(message, message, *infos)


def test_texts_from_outside_are_cut_off():
    """They go into each answer and each line of the log."""
    grey = np.zeros((64, 96), np.uint8)
    infos = [
        camera_info_message(make_message, RIG, 0, 'left', right=right) for right in (False, True)
    ]
    long = image_message(make_message, grey, 'mono8', 0, 'left\n' * 1_000_000)
    with pytest.raises(InputError, match='frame_id is .* 5000000 characters.*at most 256') as told:
        pair_from_messages(long, long, *infos)
    assert len(str(told.value)) < 300 and '\n' not in str(told.value)
    odd = image_message(make_message, grey, 'mono8', 0, 'left')
    object.__setattr__(odd, 'encoding', 'mono9' * 1_000_000)
    with pytest.raises(InputError, match='unknown image encoding') as told:
        pair_from_messages(odd, odd, *infos)
    assert len(str(told.value)) < 800


FORMS = {'.png': 'PNG', '.jpg': 'JPEG', '.tiff': 'TIFF', '.webp': 'WebP', '.bmp': 'BMP'}


@pytest.mark.parametrize('shape', [(7, 13), (32, 48, 3), (33, 47, 4)])
@pytest.mark.parametrize('ending', [*FORMS, '.pgm', '.ppm'])
def test_headers_tell_the_size_that_decoding_gives(ending, shape):
    if ending == '.pgm' and len(shape) == 3 or ending == '.ppm' and len(shape) == 2:
        pytest.skip('PGM is grey, PPM is not')
    values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    if ending in ('.ppm', '.jpg'):
        values = values[..., :3] if values.ndim == 3 else values
    encoded = cv2.imencode(ending, values)[1]
    header = image_header(encoded, 'left')
    assert header.form == FORMS.get(ending, ending[1:].upper())
    assert (header.height, header.width) == shape[:2]
    assert decoded_image(encoded.tobytes(), 'left').shape[:2] == shape[:2]
    for end in range(0, len(encoded) - 1, max(1, len(encoded) // 50)):
        try:
            decoded_image(encoded[:end], 'left')
        except InputError as error:
            assert str(error).startswith('left: ')


@pytest.mark.parametrize(
    'data, message',
    [
        (png([(b'IHDR', png_header(100_000, 100_000), None), (b'IEND', b'', None)]), '100000x100'),
        (png([(b'IHDR', png_header(16_000, 16_000), None), (b'IEND', b'', None)]), 'at most 6710'),
        (png([(b'IHDR', png_header(8000, 8000), None), (b'IEND', b'', None)]), 'pixels a byte'),
        (png([(b'IHDR', png_header(32, 24), None), (b'IDAT', b'x', 2**31 - 1)]), 'truncated'),
        (b'', '0 bytes are not PNG'),
        (b'GIF89a' + bytes(20), 'are not PNG'),
    ],
)
def test_an_image_that_claims_memory_is_refused_by_its_header(data, message, monkeypatch):
    monkeypatch.setattr(cv2, 'imdecode', None)
    with pytest.raises(InputError, match=message):
        decoded_image(data, 'left')


def test_a_compressed_image_of_another_size_is_not_decoded(monkeypatch):
    encoded = cv2.imencode('.png', np.zeros((640, 960), np.uint8))[1]
    header = image_message(make_message, np.zeros((2, 2), np.uint8), 'mono8', 5, 'left').header
    message = SimpleNamespace(header=header, format='png', data=encoded.ravel())
    infos = [
        camera_info_message(make_message, RIG, 0, 'left', right=right) for right in (False, True)
    ]
    monkeypatch.setattr(cv2, 'imdecode', None)
    with pytest.raises(CalibrationError, match='is 960x640 but .* is for 96x64'):
        pair_from_messages(message, message, *infos)


@pytest.mark.parametrize('dtype', [np.int16, np.float64, np.int32])
def test_tiff_of_another_type_is_refused(dtype):
    encoded = cv2.imencode('.tiff', np.ones((9, 11, 3), dtype))[1]
    with pytest.raises(InputError, match=f'type {np.dtype(dtype)} with 3 channels'):
        decoded_image(encoded, 'left')


def test_mosaic_in_floating_point_is_refused():
    encoded = cv2.imencode('.tiff', np.ones((64, 96), np.float32))[1]
    header = image_message(make_message, np.zeros((2, 2), np.uint8), 'mono8', 5, 'left').header
    message = SimpleNamespace(
        header=header, format='bayer_rggb8; tiff compressed', data=encoded.ravel()
    )
    infos = [
        camera_info_message(make_message, RIG, 0, 'left', right=right) for right in (False, True)
    ]
    with pytest.raises(InputError, match='a mosaic has uint8 or uint16'):
        pair_from_messages(message, message, *infos)


@pytest.mark.parametrize('method', ['sgbm', 'sgbm_hh', 'bm', 'bm_padded'])
def test_images_too_small_for_a_classical_matcher_are_refused(method):
    backend = ClassicalBackend(method)
    for height in (1, 2, 4, 5, 15, 16, 40):
        for width in (1, 2, 4, 5, 15, 16, 40):
            image = np.zeros((height, width), np.float32)
            try:
                backend.predict(image, image)
            except InputError as error:
                assert f'{width}x{height}' in str(error)


class Babbling(ClassicalBackend):
    """A matcher whose answers are no answers."""

    def __init__(self, disparity: float, confidence: float, rows: int = 64) -> None:
        super().__init__('sgbm')
        self.answer = disparity, confidence, rows
        self.confidence_calibration = {
            'weights': {'prior_logit': 1.0},
            'bias': 0.0,
            'curve': [[0.0, 0.0], [1.0, 1.0]],
        }

    def predict(self, left, right):
        disparity, confidence, rows = self.answer
        shape = (rows, left.shape[1])
        return DisparityPrediction(
            np.full(shape, disparity, np.float32), np.full(shape, confidence, np.float32)
        )


@pytest.mark.parametrize('dense', [False, True])
@pytest.mark.parametrize('confidence', [math.nan, math.inf, -math.inf, 1e30, 1.0])
@pytest.mark.parametrize('disparity', [math.nan, math.inf, -math.inf, 1e30, -1e30, 1e-30, 0.0, 95])
def test_whatever_a_matcher_answers_valid_points_are_finite(
    slope_pair, disparity, confidence, dense
):
    backend = Babbling(disparity, confidence)
    options = ReconstructionOptions(confidence_threshold=0.0, dense=dense)
    result = StereoReconstructor(backend, options).reconstruct(slope_pair)
    valid = result.valid_mask
    assert np.isfinite(result.points[valid]).all()
    assert np.isnan(result.points[~valid]).all()
    assert (result.depth[valid] > 0).all() and (result.depth[valid] <= MAX_DEPTH_M * 1.001).all()
    assert ((result.confidence >= 0) & (result.confidence <= 1)).all()


def test_answer_of_another_size_is_refused(slope_pair):
    with pytest.raises(ModelError, match=r'answers \(1, 96\) to images of \(64, 96\)'):
        StereoReconstructor(Babbling(1.0, 1.0, rows=1)).reconstruct(slope_pair)


def test_confidence_of_what_is_no_number_is_the_lowest():
    calibration = ConfidenceCalibration({'prior_logit': 1.0}, 0.0, ((0.0, 0.1), (1.0, 0.9)))
    features = np.zeros((len(FEATURES), 3), np.float32)
    features[0] = np.nan, 16.0, -16.0
    np.testing.assert_allclose(calibrated_confidence(features, calibration), [0.1, 0.9, 0.1])


def test_confidence_curve_outside_of_probabilities_is_refused():
    with pytest.raises(ModelError, match=r'not within \[0, 1\]'):
        ConfidenceCalibration({}, 0.0, ((0.0, 0.0), (1.0, 1.5)))

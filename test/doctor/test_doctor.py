"""Faults put into good pairs are found and named; a good rig gives no complaint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
import re

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.backends import load_backend
from lunar_stereo_recon.bags.reader import StereoBagReader
from lunar_stereo_recon.bags.writer import BagWriter, make_message, transform_message
from lunar_stereo_recon.cli import main
from lunar_stereo_recon.commands.demo import DEMO_BAG
from lunar_stereo_recon.datatypes import StereoCalibration, StereoPair
from lunar_stereo_recon.doctor.collect import BagSettings, Subject, subject_of_bag
from lunar_stereo_recon.doctor.depths import KnownDistance
from lunar_stereo_recon.doctor.examination import examine
from lunar_stereo_recon.doctor.findings import Severity
from lunar_stereo_recon.doctor.page import as_html, as_text
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.self_mask import Polygon, SelfMask
from lunar_stereo_recon.result_messages import camera_info_message, image_message

FRAMES = (0, 8)
ROOT = Path(__file__).resolve().parents[2]
DOCTOR = ROOT / 'lunar_stereo_recon' / 'doctor'


@pytest.fixture(scope='module')
def pairs():
    with StereoBagReader(DEMO_BAG) as reader:
        return [frame.pair() for frame in reader.frames() if frame.index in FRAMES]


@pytest.fixture(scope='module')
def backend():
    return load_backend('sgbm')


def changed(pairs, change):
    """Return the pairs with what `change` makes of left and right image."""
    made = []
    for pair in pairs:
        left, right = change(pair.left, pair.right)
        left, right = (
            np.ascontiguousarray(np.clip(view, 0, 1), dtype=np.float32) for view in (left, right)
        )
        made.append(replace(pair, left=left, right=right, color=None))
    return made


def complaints(report):
    return {f.name: f for f in report.findings if f.severity >= Severity.WARNING}


def warped(image, matrix):
    size = image.shape[1], image.shape[0]
    return cv2.warpAffine(
        image,
        np.array(matrix, float),
        size,
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )


def turned(image, degrees):
    centre = ((image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2)
    return warped(image, cv2.getRotationMatrix2D(centre, degrees, 1.0))


def bent(image, px):
    """Bend the rows: the corners move outwards by `px`, the middle stays."""
    height, width = image.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    across, down = x - (width - 1) / 2, y - (height - 1) / 2
    factor = 1 - px / (height / 2) * (across**2 + down**2) / (width**2 + height**2) * 4
    return cv2.remap(
        image,
        (across * factor + (width - 1) / 2).astype(np.float32),
        (down * factor + (height - 1) / 2).astype(np.float32),
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )


def noise(image, deviation):
    return image + deviation * np.random.default_rng(1).standard_normal(image.shape)


def test_good_rig_gives_no_complaint(pairs, backend):
    report = examine(Subject('demo', list(pairs)), backend, KnownDistance(1.83, 320, 470))
    assert complaints(report).keys() <= {'scale'}
    assert report.worst <= Severity.WARNING
    assert {'rows', 'rows bend', 'disparity range', 'depth'} <= {f.name for f in report.findings}


FAULTS = {
    'rows low': (lambda a, b: (a, warped(b, [[1, 0, 0], [0, 1, 0.8]])), 'rows', r'\+0\.[78]'),
    'rows much too high': (
        lambda a, b: (a, warped(b, [[1, 0, 0], [0, 1, -6.0]])), 'rows', r'-[56]\.',
    ),
    'rolled': (lambda a, b: (a, turned(b, -0.25)), 'rows', r'turned by \+0\.2'),
    'raw': (lambda a, b: (a, bent(b, 6.0)), 'rows bend', r'by up to [1-9]\.'),
    'zoomed': (lambda a, b: (a, warped(b, [[1.01, 0, -3.2], [0, 1.01, -2.4]])), 'rows bend', 'px'),
    'overexposed': (lambda a, b: (5 * a, 5 * b), 'exposure', 'white'),
    'underexposed': (lambda a, b: (0.05 * a, 0.05 * b), 'exposure', 'bright ones at 0.0'),
    'noisy': (lambda a, b: (noise(a, 0.1), noise(b, 0.1)), 'exposure', 'noise'),
    'blurred': (lambda a, b: (a, cv2.GaussianBlur(b, (0, 0), 1.5)), 'views alike', 'sharpness 0'),
    'darker right': (lambda a, b: (a, 0.5 * b), 'views alike', 'brightness 0'),
    'fogged': (
        lambda a, b: (0.5 + 0.002 * a, 0.5 + 0.002 * b), 'texture', 'contrast 0.00',
    ),
    'swapped': (lambda a, b: (b, a), 'left and right', 'negative'),
    'upside down': (lambda a, b: (b[::-1, ::-1], a[::-1, ::-1]), 'upside down', 'top'),
    'one camera': (lambda a, b: (a, a), 'one camera twice', 'the same'),
    'another place': (
        lambda a, b: (a, b.T[:480, :480].repeat(2, axis=1)[:, :640]), 'one scene', 'agree',
    ),
    'too near': (lambda a, b: (a, np.roll(b, -110, axis=1)), 'disparity range', 'beyond'),
    'cx wrong': (lambda a, b: (a, np.roll(b, 40, axis=1)), 'left and right', 'negative'),
}  # fmt: skip


@pytest.mark.parametrize('name', FAULTS)
def test_fault_of_the_images_is_found(pairs, backend, name):
    change, finding, text = FAULTS[name]
    report = examine(Subject('bad', changed(pairs[:1], change)), backend)
    found = complaints(report)
    assert finding in found, as_text(report)
    assert re.search(text, found[finding].measured), found[finding].measured
    assert found[finding].advice


CALIBRATION_FAULTS = {
    'baseline in kilometres': ({'baseline_m': 0.0003}, 'baseline'),
    'baseline in millimetres': ({'baseline_m': 300.0}, 'baseline'),
    'focal length of another unit': ({'fx': 40.0, 'fy': 40.0}, 'focal length'),
    'stretched': ({'fy': 600.0}, 'focal length'),
    'info of a larger image': ({'cx': 639.5, 'cx_right': 639.5, 'cy': 479.5}, 'principal point'),
}


@pytest.mark.parametrize('name', CALIBRATION_FAULTS)
def test_fault_of_the_calibration_is_found(tmp_path, pairs, name):
    changes, finding = CALIBRATION_FAULTS[name]
    bag = write_bag(tmp_path / 'bag', pairs, calibration=replace(pairs[0].calibration, **changes))
    found = {f.name: f for f in subject_of_bag(bag, BagSettings()).findings}
    assert found[finding].severity >= Severity.WARNING
    assert found[finding].advice


@pytest.mark.parametrize(
    ('factor', 'severity', 'advice'),
    [
        (1.0, Severity.GOOD, ''),
        (2.0, Severity.FAULT, 'another image size'),
        (1.1, Severity.WARNING, 'baseline:=0.2'),
        (0.001, Severity.FAULT, 'metres'),
    ],
)
def test_scale_against_a_known_distance(pairs, backend, factor, severity, advice):
    at = 320, 440
    plain = examine(Subject('demo', pairs[:1]), backend, KnownDistance(1.0, *at))
    truth = float(plain.of('scale')[0].measured.split(' m at')[0])
    report = examine(Subject('demo', pairs[:1]), backend, KnownDistance(truth / factor, *at))
    (scale,) = report.of('scale')
    assert scale.severity is severity
    assert advice in scale.advice


def test_pixel_outside_of_the_image_is_refused(pairs, backend):
    with pytest.raises(InputError, match='--at 900 10'):
        examine(Subject('demo', list(pairs)), backend, KnownDistance(1.0, 900, 10))


def write_bag(
    path,
    pairs,
    *,
    calibration=None,
    frames=6,
    right_offset_ns=0,
    stamp=lambda index: 10**18 + index * 10**8,
    skip=lambda side, index: False,
    name='image_rect',
    distortion=0.0,
    right_tx=None,
    dtype=np.uint8,
    white=255,
    tf_baseline_m=None,
    binning=0,
):
    """Write a bag of the pairs in turn, with what the arguments make wrong."""
    calibration = calibration or pairs[0].calibration
    with BagWriter(path) as writer:
        if tf_baseline_m is not None:
            for child, y in (('left_optical', 0.1), ('right_optical', 0.1 - tf_baseline_m)):
                transform = transform_message(
                    np.array([0.2, y, 1.0]), np.array([-0.5, 0.5, -0.5, 0.5]), stamp(0), 'mast',
                    child,
                )  # fmt: skip
                writer.write('/tf_static', transform, stamp(0))
        for index in range(frames):
            pair = pairs[index % len(pairs)]
            for side, view in (('left', pair.left), ('right', pair.right)):
                if skip(side, index):
                    continue
                own = stamp(index) + (right_offset_ns if side == 'right' else 0)
                values = np.rint(view * white).astype(dtype)
                # Frames of a camera are never the same, pixel by pixel.
                values[0, index] ^= 1
                encoding = 'mono8' if dtype is np.uint8 else 'mono16'
                frame_id = f'{side}_optical'
                image = image_message(make_message, values, encoding, own, frame_id)
                recorded = 10**18 + index * 10**8
                writer.write(f'/rig/{side}/{name}', image, recorded)
                info = camera_info_message(
                    make_message, calibration, own, frame_id, right=side == 'right'
                )
                info.d = np.array([distortion, 0.0, 0.0, 0.0, 0.0])
                if binning:
                    info.width, info.height = binning * info.width, binning * info.height
                    info.binning_x = info.binning_y = binning
                if right_tx is not None and side == 'right':
                    info.p[3] = right_tx
                writer.write(f'/rig/{side}/camera_info', info, recorded)
    return path


def names(findings):
    return {f.name: f for f in findings if f.severity >= Severity.WARNING}


def test_good_bag_gives_no_complaint(tmp_path, pairs, backend):
    subject = subject_of_bag(write_bag(tmp_path / 'bag', pairs), BagSettings(count=2))
    report = examine(subject, backend)
    assert not complaints(report), as_text(report)
    assert report.of('baseline')[0].measured == '0.3 m'


BAG_FAULTS = {
    'offset': ({'right_offset_ns': 31_000_000}, 'left and right stamps', r'\+31 ms'),
    'clocks': ({'right_offset_ns': 4 * 10**15}, 'left and right stamps', '0 % pair'),
    'no stamps': ({'stamp': lambda index: 0}, 'stamps', 'every stamp is 0'),
    'one stamp': ({'stamp': lambda index: 10**18}, 'stamps', 'one stamp'),
    'goes back': (
        {'stamp': lambda index: 10**18 + (index % 3) * 10**8}, 'stamps', 'go back 1 times'
    ),
    'gap': (
        {'frames': 8, 'skip': lambda side, index: index in (3, 4)}, 'stamps', 'about 2 of 8',
    ),
    'right thin': (
        {'skip': lambda side, index: side == 'right' and index % 2}, 'topics', '3 images',
    ),
    'no baseline': ({'right_tx': 0.0}, 'baseline', r'P\[3\] is 0'),
    'baseline of frames': (
        {'right_tx': 0.0, 'tf_baseline_m': 0.3}, 'baseline', '0.3 m is used',
    ),
    '12 bits': ({'dtype': np.uint16, 'white': 4095}, 'bits', 'below 4096'),
}  # fmt: skip


@pytest.mark.parametrize('name', BAG_FAULTS)
def test_fault_of_a_recording_is_found(tmp_path, pairs, name):
    arguments, finding, text = BAG_FAULTS[name]
    subject = subject_of_bag(write_bag(tmp_path / 'bag', pairs, **arguments), BagSettings(count=2))
    found = names(subject.findings)
    assert finding in found, [f.measured for f in subject.findings]
    assert re.search(text, found[finding].measured), found[finding].measured
    assert found[finding].advice


def test_pairs_are_looked_at_although_stamps_differ(tmp_path, pairs):
    bag = write_bag(tmp_path / 'bag', pairs, right_offset_ns=31_000_000)
    assert len(subject_of_bag(bag, BagSettings(count=2)).pairs) == 2


def test_images_are_looked_at_without_a_baseline(tmp_path, pairs, backend):
    bag = write_bag(tmp_path / 'bag', pairs, right_tx=0.0)
    report = examine(subject_of_bag(bag, BagSettings(count=1)), backend)
    assert report.of('rows') and report.of('exposure')
    assert not report.of('depth')


def test_baseline_of_static_frames_is_metric(tmp_path, pairs):
    bag = write_bag(tmp_path / 'bag', pairs, right_tx=0.0, tf_baseline_m=0.3)
    subject = subject_of_bag(bag, BagSettings(count=1))
    assert subject.calibrated
    assert subject.pairs[0].calibration.baseline_m == pytest.approx(0.3)


def test_raw_images_are_named(tmp_path, pairs):
    bag = write_bag(tmp_path / 'bag', pairs, name='image_raw', distortion=-0.05)
    (note,) = subject_of_bag(bag, BagSettings(count=1)).findings_of('raw or rectified')
    assert note.severity is Severity.NOTE and 'rectified here' in note.measured
    settings = BagSettings(count=1, rectify=False)
    (doubt,) = subject_of_bag(bag, settings).findings_of('raw or rectified')
    assert doubt.severity is Severity.WARNING


def test_binning_that_is_applied_twice_is_found(tmp_path, pairs):
    """basler/pylon-ros-camera 143, astuff/avt_vimba_camera 82: P is of the binned image."""
    bag = write_bag(tmp_path / 'bag', pairs, binning=4)
    found = names(subject_of_bag(bag, BagSettings(count=1)).findings)
    assert '0.25 times as large' in found['principal point'].advice
    assert 'binning' in found['principal point'].advice


def test_frozen_camera(tmp_path, pairs, backend):
    subject = Subject('frozen', [pairs[0], replace(pairs[1], right=pairs[0].right)])
    (found,) = examine(subject, backend).of('frozen camera')
    assert found.severity is Severity.FAULT and found.measured.startswith('right')


def test_small_images_and_black_ones_are_survived(backend):
    rig = StereoCalibration(60.0, 60.0, 23.5, 15.5, 23.5, 0.2, 48, 32)
    black = np.zeros((32, 48), np.float32)
    report = examine(Subject('black', [StereoPair(black, black, rig)]), backend)
    assert report.worst is Severity.FAULT
    assert 'exposure' in complaints(report)


def test_image_of_one_row_is_survived(backend):
    rig = StereoCalibration(60.0, 60.0, 31.5, 0.0, 31.5, 0.2, 64, 1)
    line = np.linspace(0, 1, 64, dtype=np.float32)[None]
    report = examine(Subject('line', [StereoPair(line, line[:, ::-1].copy(), rig)]), backend)
    assert '64x1' in complaints(report)['matcher'].measured


def test_parts_of_the_rover_get_no_depth(pairs, backend):
    found = [
        next(f for f in examine(Subject('demo', pairs[:1]), backend, self_mask=m).findings
             if f.name == 'depth')
        for m in (None, SelfMask(Polygon(np.array([[0, 200], [639, 200], [639, 479], [0, 479]]))))
    ]  # fmt: skip
    assert found[0].measured != found[1].measured


def test_command_refuses_a_mask_that_is_none(tmp_path, capsys):
    assert main(['doctor', 'a', 'b', '--self-mask', str(tmp_path / 'none.png')]) == 2
    assert 'no image at' in capsys.readouterr().err


def test_command_writes_a_page_that_needs_nothing_else(tmp_path, pairs, capsys):
    bag = write_bag(tmp_path / 'bag', pairs, right_tx=0.0)
    out = tmp_path / 'out'
    arguments = ['doctor', str(bag), '--out', str(out), '--backend', 'sgbm', '--frames', '1']
    assert main(arguments) == 1
    text = capsys.readouterr().out
    assert text.index('FAULT') < text.index('good')
    page = (out / 'doctor.html').read_text(encoding='utf-8')
    assert 'P[3] is 0' in page
    assert page.count('src="data:image/jpeg;base64,') >= 5
    assert 'http' not in page


def test_command_takes_two_files(tmp_path, pairs, capsys):
    files = []
    for side in ('left', 'right'):
        files.append(str(tmp_path / f'{side}.png'))
        cv2.imwrite(files[-1], np.rint(255 * getattr(pairs[0], side)).astype(np.uint8))
    out = ['--out', str(tmp_path / 'out'), '--backend', 'sgbm']
    assert main(['doctor', *files, *out]) == 0
    assert 'none given' in capsys.readouterr().out
    rig = tmp_path / 'rig.yaml'
    rig.write_text('{fx: 460, fy: 460, cx: 319.5, cy: 239.5, baseline: 0.3}\n')
    info = tmp_path / 'info.yaml'
    info.write_text(
        'image_width: 640\nimage_height: 480\n'
        'distortion_coefficients: {rows: 1, cols: 5, data: [-0.2, 0, 0, 0, 0]}\n'
        'projection_matrix: {rows: 3, cols: 4, '
        'data: [460, 0, 319.5, -138, 0, 460, 239.5, 0, 0, 0, 1, 0]}\n'
    )
    assert main(['doctor', *files, *out, '--calibration', str(info)]) == 0
    assert 'taken as rectified already' in ' '.join(capsys.readouterr().out.split())
    known = ['--known-distance', '30', '--at', '320', '440']
    assert main(['doctor', *files, *out, '--calibration', str(rig), *known]) == 1
    assert 'where 30 m are known' in capsys.readouterr().out
    assert main(['doctor', *files, *out, '--known-distance', '3']) == 2
    assert '--at' in capsys.readouterr().err
    assert main(['doctor', *files, files[0]]) == 2
    assert main(['doctor', *files, *out, '--rectify']) == 2
    assert main(['doctor', *files, *out, '--rectify', '--calibration', str(rig)]) == 2


@pytest.mark.parametrize('command', ['doctor', 'run'])
def test_raw_files_are_straightened(tmp_path, pairs, capsys, command):
    """Views that a lens bends, with the calibration that says so: the rows fit again."""
    lens = np.array([-0.25, 0.08, 0.0, 0.0, 0.0])
    matrix = np.array([[460.0, 0.0, 319.5], [0.0, 460.0, 239.5], [0.0, 0.0, 1.0]])
    column, row = np.meshgrid(np.arange(640.0), np.arange(480.0))
    bent = np.stack([column, row], axis=-1).reshape(-1, 1, 2)
    straight = cv2.undistortPoints(bent, matrix, lens, P=matrix).reshape(480, 640, 2)
    files, infos = [], []
    for side in ('left', 'right'):
        view = np.rint(255 * getattr(pairs[0], side)).astype(np.uint8)
        view = cv2.remap(view, straight.astype(np.float32), None, cv2.INTER_CUBIC)
        if side == 'right':  # a little lower, as a lens that sits so would have it
            view = cv2.warpAffine(view, np.float32([[1, 0, 0], [0, 1, 6]]), (640, 480))
        files.append(str(tmp_path / f'{side}.png'))
        cv2.imwrite(files[-1], view)
        shift = 6 if side == 'right' else 0
        tx = -138 if side == 'right' else 0
        infos.append(str(tmp_path / f'{side}.yaml'))
        Path(infos[-1]).write_text(
            'image_width: 640\nimage_height: 480\ndistortion_model: plumb_bob\n'
            f'distortion_coefficients: {{data: {lens.tolist()}}}\n'
            f'camera_matrix: {{data: [460, 0, 319.5, 0, 460, {239.5 + shift}, 0, 0, 1]}}\n'
            f'projection_matrix: {{data: [460, 0, 319.5, {tx}, 0, 460, 239.5, 0, 0, 0, 1, 0]}}\n'
        )
    arguments = [command, *files, '--backend', 'sgbm', '--calibration', *infos]
    arguments += ['--out', str(tmp_path / 'out')]
    assert main(arguments) == 0
    text = ' '.join(capsys.readouterr().out.split())
    assert 'rectified' in text and 'left.png' in text and 'FAULT' not in text
    assert main([*arguments, '--no-rectify']) == (1 if command == 'doctor' else 0)
    text = ' '.join(capsys.readouterr().out.split())
    assert 'FAULT' in text if command == 'doctor' else 'rectified' not in text


def test_text_of_a_bag_is_escaped_in_the_page(pairs, backend):
    report = examine(Subject('<script>alert(1)</script>', list(pairs[:1])), backend)
    assert '<script' not in as_html(report)


def test_troubleshooting_names_findings_that_there_are():
    source = '\n'.join(path.read_text() for path in DOCTOR.glob('*.py'))
    known = set(re.findall(r"(?:Finding\(\s*|name = )'([a-z_ ]+)'", source))
    page = (ROOT / 'docs' / 'troubleshooting.md').read_text(encoding='utf-8')
    named = set(re.findall(r'\*\*([^*]+)\*\*', page)) - {'bold'}
    assert len(named) > 15
    assert named <= known, named - known

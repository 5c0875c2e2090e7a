"""Frames in the rerun viewer: what a recording of it holds."""

import subprocess
import sys

import pytest

from lunar_stereo_recon.cli import main


def failure(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def test_replay_writes_a_recording_with_every_frame(make_bag, tmp_path):
    pytest.importorskip('rerun')
    file = tmp_path / 'drive.rrd'
    options = ('--backend', 'sgbm', '--no-report', '--out', tmp_path / 'out')
    assert main(list(map(str, ('replay', make_bag(), *options, '--viewer-file', file)))) == 0
    printed = subprocess.run(
        [sys.executable, '-m', 'rerun', 'rrd', 'print', file], capture_output=True, text=True
    )
    assert printed.returncode == 0, printed.stderr
    for path in ('/camera', '/camera/left', '/camera/depth', '/camera/confidence', '/path'):
        assert path in printed.stdout
    assert printed.stdout.count('/camera/cloud') >= 1


def test_viewer_files_of_another_kind_are_refused(make_bag, tmp_path, capsys):
    pytest.importorskip('rerun')
    bag = make_bag()
    out = ('--backend', 'sgbm', '--out', tmp_path / 'out')
    line = failure(capsys, 'replay', bag, *out, '--viewer-file', tmp_path / 'drive.ply')
    assert 'drive.ply; a name with the ending .rrd' in line
    line = failure(capsys, 'replay', bag, *out, '--viewer-file', tmp_path / 'no' / 'a.rrd')
    assert 'its folder does not exist' in line


def test_a_missing_viewer_names_its_extra(make_bag, tmp_path, capsys, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        'importlib.util.find_spec', lambda name, *rest: None if name == 'rerun' else found(name)
    )
    out = ('--backend', 'sgbm', '--out', tmp_path / 'out', '--viewer', 'rerun')
    assert "pip install '.[viewer]'" in failure(capsys, 'replay', make_bag(), *out)

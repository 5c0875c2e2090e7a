from __future__ import annotations

import json

import pytest

from lunar_stereo_recon.errors import ModelError
from training.cli import main
from training.commands import teacher_time
from training.models.mast3r import Mast3r, Mast3rConfig

SMALL = Mast3rConfig(32, 1, 2, 24, 12, 2)


def test_both_are_timed_at_one_size():
    found = teacher_time.measure_teacher(None, 1, size=(128, 64), config=SMALL)
    assert found.teacher_parameters == sum(w.numel() for w in Mast3r(SMALL).parameters())
    assert found.ratio == pytest.approx(found.teacher_ms / found.student_ms)
    assert found.teacher_ms > 1 and '128x64' in found.sentence()


def test_command_prints_and_writes(tmp_path, monkeypatch, capsys):
    small = ('onnx', (128, 64), SMALL)
    monkeypatch.setattr(teacher_time.measure_teacher, '__defaults__', small)
    assert main(['teacher-time', '--threads', '1', '--out', str(tmp_path / 'a' / 't.json')]) == 0
    assert 'times faster' in capsys.readouterr().out
    assert json.loads((tmp_path / 'a' / 't.json').read_text())['width'] == 128


def test_bad_arguments_are_explained(capsys):
    assert main(['teacher-time', '--threads', '0']) == 2
    assert '--threads is 0' in capsys.readouterr().err
    with pytest.raises(ModelError, match='none.onnx'):
        teacher_time.measure_teacher('none.onnx', 1)

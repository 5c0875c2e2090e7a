"""Campaigns: steps in turn, in timed pieces, each done once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('omegaconf')

from lunar_stereo_recon.errors import InputError  # noqa: E402
import training  # noqa: E402
from training.__main__ import main  # noqa: E402
from training.campaign import parse_step, read_campaign  # noqa: E402
from training.checkpoint import load_checkpoint  # noqa: E402

CAMPAIGNS = Path(training.__file__).parent / 'campaigns'
STEPS = """
steps:
  - texture-pairs --width 96 --height 64 --count 2 --out {folder}/pairs
  - >-
    train smoke_teacher --out {folder}/teacher --device cpu --set data.train=[{folder}/pairs]
    optimizer.total_steps=2 checkpoint_every=1
  - export {folder}/teacher/checkpoint {folder}/teacher.safetensors
"""


@pytest.fixture
def campaign(tmp_path: Path) -> Path:
    """Return a campaign of three steps: pairs, training, export."""
    path = tmp_path / 'toy.yaml'
    path.write_text(STEPS.format(folder=tmp_path))
    return path


def test_pieces_go_on_where_the_last_one_stopped(campaign, tmp_path, capsys):
    checkpoint = tmp_path / 'teacher' / 'checkpoint'
    command = ['campaign', str(campaign), '--out', str(tmp_path)]
    assert main([*command, '--minutes', '0']) == 0
    assert not (tmp_path / 'pairs').exists()
    text = campaign.read_text()
    campaign.write_text(text[: text.index('  - >-')])
    assert main(command) == 0
    campaign.write_text(text)
    # Far less than a step of training takes: it stops after one.
    assert main([*command, '--minutes', '1e-4', '--resume']) == 0
    assert load_checkpoint(checkpoint)['step'] == 1
    assert 'call again' in capsys.readouterr().out
    done = json.loads((tmp_path / 'toy_campaign.json').read_text())['done']
    assert len(done) == 1 and done[0].startswith('texture-pairs')

    assert main([*command, '--resume']) == 0
    out = capsys.readouterr().out
    assert 'texture-pairs' not in out and 'all steps are done' in out
    assert load_checkpoint(checkpoint)['step'] == 2
    assert (tmp_path / 'teacher.safetensors').exists()
    before = checkpoint.stat().st_mtime_ns
    assert main([*command, '--resume', '--minutes', '1']) == 0
    assert checkpoint.stat().st_mtime_ns == before
    capsys.readouterr()
    assert main([*command, '--dry-run']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(':')[0] for line in lines] == ['done'] * 3


def test_a_step_that_is_no_command_is_found_before_the_first_is_run(campaign, tmp_path, capsys):
    campaign.write_text(campaign.read_text() + '  - trian flight\n')
    assert main(['campaign', str(campaign), '--out', str(tmp_path)]) == 2
    assert "step 'trian flight' is not a command line" in capsys.readouterr().err
    assert not (tmp_path / 'pairs').exists()


@pytest.mark.parametrize('text', ['steps: 3', 'steps: []', '{steps: [train], more: 1}', '- train'])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / 'bad.yaml'
    path.write_text(text)
    with pytest.raises(InputError, match='one key, steps'):
        read_campaign(path)
    with pytest.raises(InputError, match='nothing.yaml'):
        read_campaign(tmp_path / 'nothing.yaml')


def test_damaged_state_is_named(campaign, tmp_path, capsys):
    (tmp_path / 'toy_campaign.json').write_text('{"done":')
    assert main(['campaign', str(campaign), '--out', str(tmp_path), '--resume']) == 2
    assert 'toy_campaign.json: not a readable state' in capsys.readouterr().err


def test_failed_step_stops_the_campaign(tmp_path, capsys):
    path = tmp_path / 'bad.yaml'
    path.write_text(f'steps: [export {tmp_path}/nothing {tmp_path}/a.safetensors]')
    assert main(['campaign', str(path), '--out', str(tmp_path)]) == 2
    assert 'nothing' in capsys.readouterr().err
    assert not (tmp_path / 'bad_campaign.json').exists()


@pytest.mark.parametrize('path', sorted(CAMPAIGNS.glob('*.yaml')), ids=lambda path: path.stem)
def test_shipped_campaigns_are_command_lines(path):
    assert len(read_campaign(path)) > 3


def test_rendering_stops_when_its_time_is_spent(tmp_path, monkeypatch):
    step = parse_step(f'lunar-stereo dataset --out {tmp_path} --count 24')
    groups = iter([8, 8, 8])
    monkeypatch.setattr(
        'lunar_stereo_recon.simulation.dataset.write_dataset',
        lambda *_: (count for count in groups),
    )
    assert not step.run(0.0, resume=True)
    assert next(groups) == 8  # one group was made, the others were not
    assert step.run(1.0, resume=True)

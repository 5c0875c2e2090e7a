"""Campaigns: steps in turn, in timed pieces, each done once."""

from __future__ import annotations

from argparse import Namespace
import dataclasses
import json
from pathlib import Path
import shutil

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('omegaconf')

onnx = pytest.importorskip('onnx')

from lunar_stereo_recon.backends import load_backend  # noqa: E402
from lunar_stereo_recon.errors import InputError  # noqa: E402
import training  # noqa: E402
from training.checkpoint import load_checkpoint, trained_network  # noqa: E402
from training.cli import main  # noqa: E402
from training.commands.campaign import Campaign, parse_step, read_campaign, Record, Step  # noqa: E402
from training.commands.train import recipe_path  # noqa: E402
from training.recipe import load_recipe  # noqa: E402

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
    records = json.loads((tmp_path / 'toy_campaign.json').read_text())['steps']
    done = [text for text, record in records.items() if record['done']]
    assert len(done) == 1 and done[0].startswith('texture-pairs')
    assert [record['seconds'] > 0 for record in records.values()] == [True, True, False]

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
    for text in ('{"steps":', '{"done": []}', '{"steps": ["train"]}', '{"steps": {"train": 1}}'):
        (tmp_path / 'toy_campaign.json').write_text(text)
        assert main(['campaign', str(campaign), '--out', str(tmp_path), '--resume']) == 2
        assert 'toy_campaign.json: not a readable state' in capsys.readouterr().err


def test_failed_step_stops_the_campaign(tmp_path, capsys):
    path = tmp_path / 'bad.yaml'
    path.write_text(f'steps: [export {tmp_path}/nothing {tmp_path}/a.safetensors]')
    assert main(['campaign', str(path), '--out', str(tmp_path)]) == 2
    assert 'nothing' in capsys.readouterr().err
    assert not (tmp_path / 'bad_campaign.json').exists()


def test_time_is_shared_out_to_what_is_left_to_do(tmp_path):
    steps = [
        Step('data', Namespace(), share=1.0),
        Step('teacher', Namespace(), share=1.0),
        Step('student', Namespace(), share=2.0),
        Step('export', Namespace(), minutes=2.0),
    ]
    campaign = Campaign(steps, tmp_path / 'state.json')
    data, teacher, student, export = steps
    assert campaign.allotted(data, 10.0) == pytest.approx(2.0)
    assert campaign.allotted(export, 10.0) is None
    campaign.records['data'] = Record(seconds=60 * 3.0, done=True)  # it took longer
    assert campaign.allotted(teacher, 7.0) == pytest.approx(5 / 3)
    campaign.records['teacher'] = Record(seconds=60 * 1.0)  # stopped by the end of a call
    assert campaign.allotted(teacher, 6.0) == pytest.approx(5 / 3 - 1)
    campaign.records['teacher'] = Record(seconds=60 * 9.0)
    assert campaign.allotted(teacher, 6.0) == 0.0


def test_what_a_step_made_is_made_anew_where_it_is_gone(tmp_path, capsys):
    made = tmp_path / 'pairs'
    path = tmp_path / 'toy.yaml'
    command = 'texture-pairs --width 96 --height 64 --count 2 --out {data}/pairs'
    path.write_text(f'steps: [{{run: "{command}", share: 1, makes: "{{data}}/pairs"}}]')
    arguments = ['campaign', str(path), '--out', str(tmp_path), '--data', str(tmp_path)]
    assert main(arguments) == 0
    capsys.readouterr()
    for there, answer in ((True, 'done'), (False, 'to do')):
        if not there:
            shutil.rmtree(made)
        assert main([*arguments, '--dry-run']) == 0
        assert capsys.readouterr().out.startswith(f'{answer}: texture-pairs')
    assert main([*arguments, '--resume']) == 0
    assert made.exists()


@pytest.mark.parametrize(
    ('entry', 'named'),
    [
        ('{run: smoke, shares: 1}', 'keys are run, share'),
        ('{share: 1}', 'run is a command line'),
        ('{run: smoke, share: -1}', 'share is -1'),
        ('{run: smoke, minutes: long}', "minutes is 'long'"),
        ('{run: "smoke --out {where}"}', "'where' is not known in braces; there are out, data"),
        ('{run: "smoke --out {out.where}"}', 'is not known in braces'),
    ],
)
def test_a_step_that_is_not_understood_is_refused(tmp_path, entry, named):
    path = tmp_path / 'bad.yaml'
    path.write_text(f'steps: [{entry}]')
    with pytest.raises(InputError, match=named):
        read_campaign(path)


def test_device_reaches_the_steps_that_have_one(tmp_path, capsys, monkeypatch):
    path = CAMPAIGNS / 'flight.yaml'
    devices = [getattr(step.args, 'device', None) for step in read_campaign(path, device='cuda')]
    assert devices == ['cuda'] * 3 + [None] * 5
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    assert main(['campaign', str(path), '--out', str(tmp_path), '--device', 'cuda']) == 2
    assert "device is 'cuda', but" in capsys.readouterr().err


def test_without_a_device_named_each_step_takes_what_it_can_use(capsys, monkeypatch):
    """PyTorch's device serves training even where nothing compiles kernels that render."""
    kernels = pytest.importorskip('lunar_stereo_recon.simulation.kernels')

    def devices() -> list[str | None]:
        steps = read_campaign(CAMPAIGNS / 'flight.yaml')
        return [getattr(step.args, 'device', None) for step in steps]

    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    assert devices() == ['cpu'] * 3 + [None] * 5
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr(kernels.cuda, 'is_available', lambda: False)
    assert devices() == ['cpu', 'cpu', 'cuda'] + [None] * 5
    assert 'renders on the CPU' in capsys.readouterr().err
    monkeypatch.setattr(kernels.cuda, 'is_available', lambda: True)
    assert devices() == ['cuda'] * 3 + [None] * 5


@pytest.mark.slow
def test_the_smoke_campaign_goes_through_in_several_calls(tmp_path, monkeypatch):
    """From pairs to calibrated int8, training stopped by the end of a call in between."""
    pytest.importorskip('numba')
    from lunar_stereo_recon.simulation import dataset

    real = dataset.make_terrain
    grids = {'cells': (512, 256, 128), 'cell_sizes_m': (0.04, 0.16, 1.28)}
    monkeypatch.setattr(
        dataset, 'make_terrain', lambda config: real(dataclasses.replace(config, **grids))
    )
    command = ['campaign', 'smoke', '--out', str(tmp_path), '--resume', '--device', 'cpu']
    assert main([*command, '--minutes', '1e-4']) == 0
    assert not (tmp_path / 'data' / 'train').exists()
    folder = tmp_path / 'flight' / 'checkpoint'
    calls = 0
    while not folder.exists():
        calls += 1
        assert calls < 20
        # Each call ends soon, while the whole is to take a thousand of them.
        assert main([*command, '--minutes', '0.01', '--calls', '1000']) == 0
    stopped = load_checkpoint(folder)
    assert 0 < stopped['step'] < 24 and 0 < stopped['progress'] < 1
    assert not (tmp_path / 'flight.onnx').exists()

    assert main([*command, '--minutes', '10']) == 0
    state = json.loads((tmp_path / 'smoke_campaign.json').read_text())
    assert all(record['done'] for record in state['steps'].values())
    assert stopped['step'] < load_checkpoint(folder)['step'] == 24
    assert trained_network(tmp_path / 'flight.safetensors').config.decoder_width == 96
    view = np.random.default_rng(0).random((64, 96), np.float32)
    for name in ('flight.onnx', 'flight_int8.onnx'):
        backend = load_backend('onnx', tmp_path / name)
        assert np.isfinite(backend.predict(view, view).disparity).all()
        metadata = {p.key: p.value for p in onnx.load(tmp_path / name).metadata_props}
        assert json.loads(metadata['confidence_calibration'])['weights']
        assert json.loads(metadata['training'])['step'] == 24


@pytest.mark.parametrize('path', sorted(CAMPAIGNS.glob('*.yaml')), ids=lambda path: path.stem)
def test_shipped_campaigns_are_command_lines(path):
    steps = read_campaign(path)
    assert len(steps) > 3
    for step in steps:
        if hasattr(step.args, 'recipe'):
            load_recipe(recipe_path(step.args.recipe), step.args.overrides)


def test_rendering_stops_when_its_time_is_spent(tmp_path, monkeypatch):
    step = parse_step(f'lunar-stereo dataset --out {tmp_path} --count 24')
    groups = iter([8, 8, 8])
    monkeypatch.setattr(
        'lunar_stereo_recon.simulation.dataset.write_dataset',
        lambda *_: (count for count in groups),
    )
    # The call has no more time, the step would.
    assert not step.run(0.0, 1.0, resume=True)
    assert next(groups) == 8  # one group was made, the others were not
    assert step.run(1.0, None, resume=True)
    groups = iter([8, 8, 8])
    # Its share is spent: it is as done as it gets.
    assert step.run(1.0, 0.0, resume=True)
    assert next(groups) == 8

import numpy as np
import pytest
import torch

from lunar_stereo_recon.backends import DEFAULT_MODEL, INT8_MODEL
from lunar_stereo_recon.backends.choice_network import ChoiceNetwork
from lunar_stereo_recon.errors import InputError
from lunar_stereo_recon.geometry.residual import EVIDENCE
from training.cli import main
from training.commands import choice
from training.data.choice_examples import ChoiceExample
from training.models.choice import ChoiceStudent

INSIDE, FOUND_COST, PRIOR_COST = (
    EVIDENCE.index(name) for name in ('inside', 'found_cost', 'prior_cost')
)


class Blobs:
    """Crops in which the cheaper of prior and found is right."""

    def __getitem__(self, number):
        rng = np.random.default_rng(number)
        planes = 0.1 * rng.standard_normal((len(EVIDENCE), 32, 32)).astype(np.float32)
        planes[INSIDE] = 1
        found_is_right = np.kron(rng.random((4, 4)) < 0.5, np.ones((8, 8))) > 0
        planes[FOUND_COST] += np.where(found_is_right, -0.5, 1.0)
        planes[PRIOR_COST] += np.where(found_is_right, 1.0, -0.5)
        candidates = np.full((4, 32, 32), 20, np.float32)
        candidates[1] = 25
        candidates[2] = 17
        truth = np.where(found_is_right, 25, 20).astype(np.float32)
        truth[:2] = np.nan
        return ChoiceExample(planes, candidates, truth)


def trained(steps, seed=0):
    torch.manual_seed(seed)
    network = ChoiceStudent((4, 4, 4))
    return network, choice.train(network, Blobs(), steps)


def test_the_choice_is_learnt():
    _, reports = trained(60)
    last = reports[-1]
    assert last['best'] <= last['chosen'] < 0.3 * last['prior']


def test_the_same_seed_gives_the_same_network():
    first, second = trained(3)[0], trained(3)[0]
    for name, weights in first.state_dict().items():
        assert torch.equal(weights, second.state_dict()[name]), name


def example_loss(inside, truth):
    planes = torch.zeros(1, len(EVIDENCE), 8, 8)
    planes[:, INSIDE] = inside
    candidates = torch.tensor([10.0, 12.0, 8.0, 14.0])[None, :, None, None].expand(1, 4, 8, 8)
    output = torch.zeros(1, 5, 8, 8, requires_grad=True)
    loss, figures = choice.choice_loss(output, planes, candidates, torch.full((1, 8, 8), truth))
    loss.backward()
    return output.grad[0, :, 0, 0], figures


def test_the_right_candidate_is_pulled_up():
    gradient, figures = example_loss(1.0, 12.0)
    assert gradient[1] < 0 and (gradient[[0, 2, 3]] > 0).all()
    assert figures['best'] < 0.01 and figures['prior'] > 0.5


def test_no_choice_outside_of_the_right_view():
    gradient, figures = example_loss(0.0, 12.0)
    assert (gradient[:4] == 0).all() and gradient[4] != 0
    assert figures['chosen'] == figures['prior']


def test_sky_teaches_only_that_nothing_is_right():
    gradient, _ = example_loss(1.0, float('nan'))
    # An error of 16 px is expected to be larger than 1 px.
    assert (gradient[:4] == 0).all() and gradient[4] < 0


def test_costs_rise_with_the_error():
    errors = torch.tensor([0.0, 0.4, 0.6, 1.2, 2.5, 4.0, 9.0])
    costs = choice.error_cost(errors)
    assert (costs.diff()[:-1] > 0).all()
    assert costs[-1] == costs[-2]


def test_command_makes_a_chooser_that_runs(tmp_path, capsys):
    rng = np.random.default_rng(0)
    texture = (rng.random((192, 268)) * 255).astype(np.uint8)
    frames = tmp_path / 'frames'
    frames.mkdir()
    np.savez(
        frames / '000000.npz',
        left=texture[:, :256],
        right=texture[:, 12:],
        disparity=np.full((192, 256), 12, np.float32),
        shadow=np.zeros((192, 256), bool),
        occlusion=np.zeros((192, 256), np.uint8),
        intrinsics=np.array([[200, 0, 127.5], [0, 200, 95.5], [0, 0, 1.0]]),
        baseline_m=0.3,
    )
    out = tmp_path / 'choice.onnx'
    command = ['choice', str(DEFAULT_MODEL), str(frames), '--out', str(out), '--steps', '2']
    assert main([*command, '--examples', str(tmp_path / 'examples'), '--threads', '1']) == 0
    assert 'step 2: loss' in capsys.readouterr().out
    planes = np.zeros((len(EVIDENCE), 16, 24), np.float32)
    network = ChoiceNetwork(out)
    assert network(planes).shape == (5, 16, 24) and network.is_tested
    assert main([*command, '--examples', str(tmp_path / 'examples'), '--start', str(out)]) == 2
    assert 'safetensors' in capsys.readouterr().err
    # Examples say what one student answered; another's would pass for it.
    command[1] = str(INT8_MODEL)
    assert main([*command, '--examples', str(tmp_path / 'examples')]) == 2
    assert 'choose another --examples' in capsys.readouterr().err


def test_steps_must_be_a_number_of_steps(tmp_path):
    class Arguments:
        steps = 0

    with pytest.raises(InputError, match='--steps is 0'):
        choice.run(Arguments())

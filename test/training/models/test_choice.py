import numpy as np
import torch

from lunar_stereo_recon.backends.choice_network import ChoiceNetwork
from lunar_stereo_recon.geometry.residual import EVIDENCE
from training.models.choice import ChoiceStudent, export_choice


def test_the_file_answers_as_the_network_does(tmp_path):
    torch.manual_seed(0)
    network = ChoiceStudent((4, 6, 8))
    network(torch.rand(2, len(EVIDENCE), 32, 32))  # gives batch norm its statistics
    path = tmp_path / 'choice.onnx'
    export_choice(network, path, {'name': 'choice'})
    planes = np.random.default_rng(0).random((len(EVIDENCE), 48, 80)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(planes)[None])[0].numpy()
    np.testing.assert_allclose(ChoiceNetwork(path)(planes), expected, atol=1e-5)

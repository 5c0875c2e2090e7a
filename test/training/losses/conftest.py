"""Reference figures of the losses, and outputs of small networks."""

from __future__ import annotations

from collections.abc import Callable
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from torch import Tensor  # noqa: E402

REFERENCE = Path(__file__).resolve().parents[4] / 'shared' / 'fixtures' / 'losses'
SHAPE = (2, 16, 24)


class Reference:
    """Inputs, wanted values and wanted gradients."""

    def __init__(self, folder: Path) -> None:
        with np.load(folder / 'inputs.npz') as arrays:
            self.inputs = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        with np.load(folder / 'outputs.npz') as arrays:
            self.gradients = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        self.cases = json.loads((folder / 'cases.json').read_text())['cases']

    def leaf(self, name: str) -> Tensor:
        """Return an input that collects a gradient."""
        return self.inputs[name].clone().requires_grad_(True)

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the inputs of both views; '#' stands for the view's number."""
        return self.inputs[name.replace('#', '1')], self.inputs[name.replace('#', '2')]

    def agrees(self, case: str, loss: Tensor) -> None:
        wanted = self.cases[case]['loss']
        assert loss.item() == pytest.approx(wanted, rel=1e-5, abs=1e-6), case

    def gradients_agree(self, loss: Tensor, leaves: dict[str, Tensor]) -> None:
        found = torch.autograd.grad(loss, list(leaves.values()))
        for (name, _), gradient in zip(leaves.items(), found, strict=True):
            torch.testing.assert_close(
                gradient, self.gradients[f'grad_{name}'], rtol=1e-4, atol=1e-7, msg=name
            )


@pytest.fixture(scope='module')
def reference() -> Reference:
    if not REFERENCE.is_dir():
        pytest.skip(f'no reference figures at {REFERENCE}')
    return Reference(REFERENCE)


@pytest.fixture
def pointmaps(reference: Reference) -> dict:
    """Return the arguments that all pointmap losses share, as leaves where gradients matter."""
    return {
        'pred': (reference.leaf('pred1_pts3d'), reference.leaf('pred2_pts3d_in_other_view')),
        'target': reference.pair('gt#_pts3d'),
        'masks': reference.pair('valid_mask#'),
    }


@pytest.fixture
def make_outputs() -> Callable[[int, int], dict]:
    """Return a function that makes a model's outputs on two pairs, as leaves."""

    def make(seed: int, width: int) -> dict:
        generator = torch.Generator().manual_seed(seed)

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        outputs: dict = {}
        for view in '12':
            points = noise(*SHAPE, 3) * 0.2
            points[..., 2] += 4.0
            outputs[f'pointmap{view}'] = points
            outputs[f'conf{view}'] = 1.0 + noise(*SHAPE).exp()
            outputs[f'desc{view}'] = torch.nn.functional.normalize(noise(*SHAPE, 8), dim=-1)
            outputs[f'desc_conf{view}'] = noise(*SHAPE).exp()
            outputs[f'tokens{view}'] = [noise(2, 6, width) for _ in range(3)]
        for name, value in outputs.items():
            values = value if name.startswith('tokens') else [value]
            for leaf in values:
                leaf.requires_grad_(True)
        return outputs

    return make

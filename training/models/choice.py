"""The network that chooses between the candidates of `lunar_stereo_recon.geometry.residual`.

It works at half the images' size and below, where a place is seen with its surroundings, and adds
what a small window of the full size says. It never mixes candidates: the mean of two surfaces
lies on neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
import warnings

import onnx
import torch
from torch import nn, Tensor
import torch.nn.functional as F

from lunar_stereo_recon.backends.choice_network import (
    CANDIDATES_KEY,
    CELL_PX,
    EVIDENCE_KEY,
    HEIGHT,
    INPUT,
    OUTPUT,
    OUTPUTS,
    SIZE_MULTIPLE,
    WIDTH,
)
from lunar_stereo_recon.backends.model_seal import seal_model
from lunar_stereo_recon.geometry.residual import CANDIDATES, EVIDENCE
from training.known_answer import write_known_answer
from training.models.flight import conv, ResidualBlock, upsample2

CHANNELS = (16, 32, 64)
OPSET = 18


class ChoiceStudent(nn.Module):
    """An hourglass over the evidence.

    Args:
        channels: At half, a quarter and an eighth of the images' size.
    """

    def __init__(self, channels: tuple[int, int, int] = CHANNELS) -> None:
        super().__init__()
        c2, c4, c8 = channels
        self.down2 = conv(len(EVIDENCE), c2, kernel=4, stride=2)
        self.mix2 = ResidualBlock(c2)
        self.down4 = conv(c2, c4, stride=2)
        self.mix4 = ResidualBlock(c4)
        self.down8 = conv(c4, c8, stride=2)
        self.mix8 = ResidualBlock(c8)
        self.up4 = nn.Conv2d(c8, c4, 1)
        self.out4 = conv(c4, c4)
        self.up2 = nn.Conv2d(c4, c2, 1)
        self.out2 = conv(c2, c2)
        # Each cell of 2x2 pixels gets its own four answers.
        self.cells = nn.Conv2d(c2, CELL_PX**2 * OUTPUTS, 3, padding=1)
        # What a window of 4x4 pixels says to each of the four in its middle.
        self.pixels = nn.Conv2d(len(EVIDENCE), CELL_PX**2 * OUTPUTS, 4, stride=2, padding=1)

    def forward(self, evidence: Tensor) -> Tensor:
        """Return (B, 5, H, W): preferences, and the log of the expected error in pixels.

        Args:
            evidence: (B, K, H, W), H and W multiples of 8.
        """
        return F.pixel_shuffle(self.of_cells(evidence), CELL_PX)

    def of_cells(self, evidence: Tensor) -> Tensor:
        """Return (B, 20, H/2, W/2): what `forward` does, the pixels of a cell as channels."""
        x2 = self.mix2(self.down2(evidence))  # [B, 16, H/2, W/2]
        x4 = self.mix4(self.down4(x2))  # [B, 32, H/4, W/4]
        x8 = self.mix8(self.down8(x4))  # [B, 64, H/8, W/8]
        x4 = self.out4(x4 + upsample2(self.up4(x8)))
        x2 = self.out2(x2 + upsample2(self.up2(x4)))
        return self.cells(x2) + self.pixels(evidence)


class ExportedChoice(nn.Module):
    """The graph in the file: whoever runs it puts the pixels in their places."""

    def __init__(self, network: ChoiceStudent) -> None:
        super().__init__()
        self.network = network

    def forward(self, evidence: Tensor) -> Tensor:
        """Return (B, 20, H/2, W/2)."""
        return self.network.of_cells(evidence)


def export_choice(network: ChoiceStudent, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the network as ONNX with dynamic height and width, sealed, with its known answer.

    Args:
        network: What is exported.
        path: `.onnx` file.
        metadata: Further entries, e.g. how it was trained.
    """
    sizes = {2: HEIGHT, 3: WIDTH}
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the tracer warns of shapes that become nodes
        torch.onnx.export(
            ExportedChoice(network).eval(),
            (torch.rand(1, len(EVIDENCE), 4 * SIZE_MULTIPLE, 5 * SIZE_MULTIPLE),),
            str(path),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: sizes, OUTPUT: {2: 'cell_rows', 3: 'cell_columns'}},
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load(path)
    onnx.checker.check_model(model)
    entries = {EVIDENCE_KEY: ' '.join(EVIDENCE), CANDIDATES_KEY: ' '.join(CANDIDATES)}
    onnx.helper.set_model_props(model, dict(metadata) | entries)
    onnx.save(model, path)
    seal_model(path)
    write_known_answer(path)

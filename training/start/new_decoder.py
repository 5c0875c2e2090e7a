"""Put a decoder that started from a teacher between trained convolutions.

A start on a shared basis assumes an encoder whose channels are the teacher's on the basis, and
says nothing of the layers that read the tokens. Trained convolutions have channels of their own
and read another decoder's tokens. Both ends are linear, so both are fitted on the calibration
pairs by ridge regression: the decoder's input is fitted to what the start assumes, and the
outputs of the readers to their outputs on the old tokens.
"""

from __future__ import annotations

import torch
from torch import nn, Tensor

from training.frozen_teacher import Batch
from training.models.flight import FlightStudent
from training.start.grow import TOKEN_READERS
from training.start.reduction import ridge_correction
from training.students import grey

# Relative to the mean variance of the features.
RIDGE = 1e-3


class DecoderExchange:
    """Remembers what readers said of the old decoder; afterwards fits both ends of the new one.

    Args:
        student: A trained flight network, before its decoder is replaced.
        pairs: Images that both ends are fitted on.
    """

    def __init__(self, student: FlightStudent, pairs: Batch) -> None:
        self.student = student.eval()
        with torch.no_grad():
            images = torch.cat([grey(pairs['left']), grey(pairs['right'])])
            self.features = student.encoder(images)[3]
            tokens, _ = student.decoder(self.features)
            self.said = {name: _rows(self._reader(name)(tokens)) for name in TOKEN_READERS}

    @torch.no_grad()
    def fit(self, assumed: Tensor) -> tuple[Tensor, list[str]]:
        """Fit the new decoder's ends in place.

        Args:
            assumed: (2B, N, C) encoder tokens that the new decoder expects, left views first.

        Returns:
            (C, C) map from the encoder's channels to the assumed ones, and a line for each fit
            with the share of the variance that it explains.
        """
        decoder = self.student.decoder
        wanted = assumed.flatten(0, 1).double()
        matrix, offset, share = _ridge(_rows(self.features), wanted)
        embed = decoder.decoder_embed
        weight = embed.weight.double()
        embed.bias.copy_(embed.bias + weight @ offset)
        embed.weight.copy_(weight @ matrix)
        plan = [f'decoder.decoder_embed: fitted to the trained encoder, {100 * share:.0f} %']
        tokens = _rows(decoder(self.features)[0])
        for name, said in self.said.items():
            weight, bias, share = _ridge(tokens, said)
            state = {'weight': weight[..., None, None], 'bias': bias}
            self._reader(name).load_state_dict(state)
            plan.append(f'{name}: fitted to the new tokens, {100 * share:.0f} %')
        return matrix, plan

    def _reader(self, name: str) -> nn.Module:
        return self.student.get_submodule(name)


def _rows(features: Tensor) -> Tensor:
    """Return (B, C, H, W) as (B * H * W, C) float64."""
    return features.permute(0, 2, 3, 1).flatten(0, 2).double()


def _ridge(features: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, float]:
    matrix, offset = ridge_correction(features, wanted, RIDGE)
    left_over = wanted - features @ matrix.T - offset
    spread = wanted - wanted.mean(dim=0)
    return matrix, offset, 1 - float(left_over.square().sum() / spread.square().sum())

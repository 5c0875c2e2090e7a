"""Starts a flight network from a trained one with fewer channels, with the same function.

Net2Net (Chen et al., ICLR 2016) for convolutions: the small network's weights are the leading
block of each tensor; new channels start at random but are not listened to by the old ones, so
that at first the large network computes what the small one did, and the new channels get
gradients from the first step on. A decoder of another size starts anew, and nothing listens to
its tokens at first.
"""

from __future__ import annotations

from collections.abc import Mapping
import operator

import torch
from torch import Tensor

from lunar_stereo_recon.errors import InputError, ModelError
from training.models.flight import FlightConfig, FlightStudent

# Layers that read the decoder's tokens.
TOKEN_READERS = ('descriptors.from_tokens', 'aggregation.tokens8', 'aggregation.tokens16')
_DECODER = 'decoder.'
# Sizes of what is matched: with others the same weights say something else, because what they
# read is in other places, or of unit length over more channels.
MATCHING = (
    'descriptor_channels',
    'disparity_bins',
    'local_radius',
    'fine_descriptor_channels',
    'fine_radius',
)
# Of two decoders with the same shapes.
ATTENTION = ('decoder_heads', 'band_rows')
_DECODER_SHAPE = ('decoder_width', 'decoder_depth', 'mlp_ratio')


def refuse_other_matching(student: FlightConfig, smaller: FlightConfig) -> None:
    """Refuse sizes with which a grown network would not compute what the small one did.

    Raises:
        InputError: They differ in one; says which, and its values.
    """
    same_shapes = student.encoder_channels[3] == smaller.encoder_channels[3] and all(
        getattr(student, name) == getattr(smaller, name) for name in _DECODER_SHAPE
    )
    for name in (*MATCHING, *(ATTENTION if same_shapes else ())):
        wanted, found = getattr(smaller, name), getattr(student, name)
        if wanted != found:
            raise InputError(
                f'start.grow_from: {name} is {wanted} in the trained network and {found} in the '
                'student; only encoder_channels, hourglass_channels, fine_channels and the size '
                'of the decoder may be larger'
            )


@torch.no_grad()
def grow(student: FlightStudent, smaller: Mapping[str, Tensor]) -> list[str]:
    """Give a network the function of a smaller one; changes it in place.

    Args:
        student: With the weights that its new channels keep.
        smaller: State dict of a trained flight network, no channel count larger.

    Returns:
        A line for each entry that was not copied whole.

    Raises:
        ModelError: An entry is missing, or is larger in the small network.
    """
    state = student.state_dict()
    lacking = sorted(set(state) - set(smaller) - _decoder_entries(state))
    if lacking:
        raise ModelError(f'grow_from: the trained network has no {", ".join(lacking[:5])}')
    same_decoder = all(
        name in smaller and smaller[name].shape == state[name].shape
        for name in _decoder_entries(state)
    )
    plan = []
    for name, target in state.items():
        reads_tokens = name.rpartition('.')[0] in TOKEN_READERS
        if name.startswith(_DECODER) and not same_decoder:
            plan.append(f'{name}: {tuple(target.shape)}, new')
        elif reads_tokens and not same_decoder:
            # A bias is the small network's; what it read in tokens is gone.
            target.zero_()
            if target.ndim == 1:
                target[: smaller[name].shape[0]] = smaller[name]
            plan.append(f'{name}: {tuple(target.shape)}, silent: the decoder is new')
        elif target.shape == smaller[name].shape:
            target.copy_(smaller[name])
        else:
            _widen(name, target, smaller[name])
            shapes = f'{tuple(smaller[name].shape)} in {tuple(target.shape)}'
            plan.append(f'{name}: {shapes}, new inputs of old outputs silent')
    return plan


def _decoder_entries(state: Mapping[str, Tensor]) -> set[str]:
    return {name for name in state if name.startswith(_DECODER)}


def _widen(name: str, target: Tensor, source: Tensor) -> None:
    fits = target.ndim == source.ndim and all(map(operator.ge, target.shape, source.shape))
    if not fits:
        raise ModelError(
            f'grow_from: {name} is {tuple(source.shape)} in the trained network and '
            f'{tuple(target.shape)} here; it can only grow'
        )
    if target.ndim > 1:
        target[: source.shape[0]] = 0.0
    target[tuple(slice(size) for size in source.shape)] = source

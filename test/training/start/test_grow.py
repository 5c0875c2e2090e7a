"""A wider network starts with the function of a trained one."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip('torch')

from lunar_stereo_recon.errors import InputError, ModelError  # noqa: E402
from training.learner import build_learner  # noqa: E402
from training.models.flight import FlightConfig, FlightStudent  # noqa: E402
from training.recipe import StartRecipe, StudentRecipe  # noqa: E402
from training.start.first_weights import start_student  # noqa: E402
from training.start.grow import grow  # noqa: E402
from training.start.new_decoder import DecoderExchange  # noqa: E402

SMALL = FlightConfig(
    encoder_channels=(8, 8, 16, 16),
    decoder_width=16,
    decoder_depth=1,
    decoder_heads=2,
    descriptor_channels=8,
    disparity_bins=12,
    hourglass_channels=(8, 8, 16, 16),
)


def network(config: FlightConfig, seed: int = 0) -> FlightStudent:
    torch.manual_seed(seed)
    student = FlightStudent(config)
    with torch.no_grad():  # as after training: norms are not at their first values
        for value in student.state_dict().values():
            if value.ndim == 1 and value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))
    return student.eval()


def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    left = torch.rand(1, 1, 64, 96, generator=generator)
    return left, left.roll(-5, dims=3)


def test_wider_convolutions_compute_what_the_small_ones_did():
    small = network(SMALL)
    wide = dataclasses.replace(
        SMALL, encoder_channels=(12, 16, 24, 16), hourglass_channels=(16, 12, 16, 24)
    )
    large = network(wide, seed=1)
    grow(large, small.state_dict())
    with torch.no_grad():
        expected, actual = small(*images()), large(*images())
    for name in ('disparity', 'logits', 'log_scale'):
        torch.testing.assert_close(actual[name], expected[name], atol=1e-4, rtol=1e-4)


def test_new_channels_get_a_gradient():
    wide = dataclasses.replace(SMALL, encoder_channels=(8, 16, 16, 16))
    large = network(wide, seed=1).train()
    grow(large, network(SMALL).state_dict())
    large(*images())['disparity'].sum().backward()
    listens = large.encoder.stage8[0][0].weight.grad[:, 8:]
    assert listens.abs().max() > 0


def test_new_decoder_is_silent_at_first_and_learns():
    small = network(SMALL)
    large = network(dataclasses.replace(SMALL, decoder_width=32, decoder_depth=2), seed=1)
    plan = grow(large, small.state_dict())
    assert any('silent' in line for line in plan)
    readers = [large.descriptors.from_tokens, large.aggregation.tokens8]
    assert all(not reader.weight.any() for reader in readers)
    large.train()(*images())['disparity'].sum().backward()
    assert large.descriptors.from_tokens.weight.grad.abs().max() > 0


def test_smaller_channels_are_refused():
    large = network(dataclasses.replace(SMALL, encoder_channels=(8, 8, 16, 32)))
    with pytest.raises(ModelError, match='encoder.stage16.* can only grow'):
        grow(network(SMALL), large.state_dict())


def test_missing_entries_are_named():
    state = network(SMALL).state_dict()
    del state['coarse.residual.weight']
    with pytest.raises(ModelError, match='coarse.residual.weight'):
        grow(network(SMALL), state)


def test_grow_from_is_for_flight_networks(tmp_path, monkeypatch):
    recipe = StudentRecipe(
        model=dataclasses.asdict(SMALL),
        start=StartRecipe(grow_from=str(tmp_path / 'a.safetensors')),
    )
    learner = build_learner(recipe, None)
    monkeypatch.setattr(
        'training.start.first_weights.trained_network', lambda path: torch.nn.Linear(2, 2)
    )
    with pytest.raises(InputError, match='a.safetensors is a Linear'):
        start_student(learner, None, None)


def test_a_decoder_from_the_teacher_fits_between_trained_convolutions():
    """Encoder and readers are fitted, so that the network says nearly what it said before."""
    trained, teacher = network(SMALL), network(SMALL, seed=2)
    expected = trained(*images())
    generator = torch.Generator().manual_seed(5)
    pairs = {
        'left': torch.rand(4, 1, 64, 96, generator=generator),
        'right': torch.rand(4, 1, 64, 96, generator=generator),
    }
    exchange = DecoderExchange(trained, pairs)
    trained.decoder.load_state_dict(teacher.decoder.state_dict())
    unfitted = trained(*images())
    views = torch.cat([pairs['left'], pairs['right']])
    with torch.no_grad():
        assumed = teacher.encoder(views)[3].permute(0, 2, 3, 1).flatten(1, 2)
    matrix, plan = exchange.fit(assumed)
    assert matrix.shape == (16, 16) and len(plan) == 4

    def difference(output) -> float:
        return (output['logits'] - expected['logits']).abs().mean().item()

    assert difference(trained(*images())) < 0.5 * difference(unfitted)


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('disparity_bins', 16),
        ('descriptor_channels', 12),
        ('local_radius', 4),
        ('fine_radius', 3),
        ('fine_descriptor_channels', 12),
        ('band_rows', 4),
        ('decoder_heads', 4),
    ],
)
def test_sizes_that_would_change_the_function_are_refused(name, value, monkeypatch):
    model = dataclasses.replace(SMALL, **{name: value})
    recipe = StudentRecipe(
        model=dataclasses.asdict(model), start=StartRecipe(grow_from='small.safetensors')
    )
    small = network(SMALL)
    monkeypatch.setattr('training.start.first_weights.trained_network', lambda path: small)
    with pytest.raises(InputError, match=f'{name} is {getattr(SMALL, name)} .* and {value} in'):
        start_student(build_learner(recipe, None), None, None)

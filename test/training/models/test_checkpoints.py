"""Weight files: official ones load without being executed, wrong ones say what is wrong."""

from __future__ import annotations

import argparse
import json
import os
import re
import resource

import pytest
from safetensors import safe_open
from safetensors.torch import save_file
import torch

from lunar_stereo_recon.errors import ModelError
from training.models.checkpoints import (
    convert_checkpoint,
    load_encoder_weights,
    load_student,
    load_teacher,
    parse_constructor,
    save_model,
)
from training.models.mast3r import Mast3r, Mast3rConfig
from training.models.paper_students import PaperStudent, PaperStudentConfig

OFFICIAL = (
    "AsymmetricMASt3R(pos_embed='RoPE100', patch_embed_cls='ManyAR_PatchEmbed', "
    "img_size=(512, 512), head_type='catmlp+dpt', output_mode='pts3d+desc24', "
    "depth_mode=('exp', -inf, inf), conf_mode=('exp', 1, inf), enc_embed_dim=32, enc_depth=1, "
    'enc_num_heads=2, dec_embed_dim=16, dec_depth=4, dec_num_heads=2, two_confs=True, '
    "desc_conf_mode=('exp', 0, inf), freeze='encoder')"
)
CONFIG = Mast3rConfig(32, 1, 2, 16, 4, 2)


def write_checkpoint(path, state, text=OFFICIAL):
    torch.save({'args': argparse.Namespace(model=text, lr=1e-4), 'model': state}, path)
    return path


def assert_same_weights(first: torch.nn.Module, wanted: dict[str, torch.Tensor]) -> None:
    assert first.state_dict().keys() == wanted.keys()
    for name, value in first.state_dict().items():
        assert torch.equal(value, wanted[name]), name


def compact(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor that repeats its first row, as a view that takes little room in a file."""
    return value[:1].clone().expand_as(value) if value.numel() > 4096 else value


@pytest.fixture(scope='module')
def official(tmp_path_factory):
    """Return a small official checkpoint, whose heads have full size, and its state dict."""
    torch.manual_seed(1)
    network = Mast3r(CONFIG)
    state = {name: compact(value) for name, value in network.state_dict().items()}
    return write_checkpoint(tmp_path_factory.mktemp('official') / 'tiny.pth', state), state


def test_official_checkpoint_loads_exactly(official):
    path, state = official
    loaded = load_teacher(path)
    assert loaded.config == CONFIG
    assert not loaded.training
    assert_same_weights(loaded, state)
    assert all(p.is_contiguous() for p in loaded.parameters())


def test_reference_checkpoint_becomes_contiguous_and_unshared(reference):
    loaded = load_teacher(reference / 'mast3r_tiny_a' / 'checkpoint.pth')
    parameters = list(loaded.parameters())
    assert sum(p.numel() for p in parameters) == 45_293_576
    assert len(loaded.state_dict()) == 777
    assert all(p.is_contiguous() and p.dtype == torch.float32 for p in parameters)
    assert len({p.untyped_storage().data_ptr() for p in parameters}) == len(parameters)


def test_doubled_names_stay_one_parameter(official):
    loaded = load_teacher(official[0])
    scratch = loaded.downstream_head2.dpt.scratch
    assert scratch.layer3_rn.weight is scratch.layer_rn[2].weight


def test_missing_second_decoder_is_a_copy_of_the_first(official, tmp_path):
    state = {k: v for k, v in official[1].items() if 'dec_blocks2' not in k}
    loaded = load_teacher(write_checkpoint(tmp_path / 'one.pth', state))
    first, second = loaded.dec_blocks[3].attn.qkv.weight, loaded.dec_blocks2[3].attn.qkv.weight
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()


def test_half_precision_weights_become_float32(official, tmp_path):
    state = {name: value.half() for name, value in official[1].items()}
    loaded = load_teacher(write_checkpoint(tmp_path / 'half.pth', state))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_safetensors_round_trip(toy_teacher, tmp_path, views):
    target = tmp_path / 'toy.safetensors'
    save_model(toy_teacher, target)
    loaded = load_teacher(target)
    assert loaded.config == toy_teacher.config
    assert_same_weights(loaded, toy_teacher.state_dict())
    with torch.no_grad():
        wanted, found = toy_teacher(*views), loaded(*views)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert list(tmp_path.iterdir()) == [target]


def test_converted_official_checkpoint_is_the_same_network(official, tmp_path):
    target = tmp_path / 'tiny.safetensors'
    convert_checkpoint(official[0], target)
    try:
        loaded = load_teacher(target)
    finally:
        target.unlink()  # full-size heads take 180 MB
    assert loaded.config == CONFIG
    assert_same_weights(loaded, official[1])


def test_student_round_trip(toy_head, tmp_path):
    student = PaperStudent(PaperStudentConfig('vit_tiny_patch16', 16, 4, 2, head=toy_head))
    save_model(student, tmp_path / 'student.safetensors')
    loaded = load_student(tmp_path / 'student.safetensors')
    assert loaded.student == student.student
    assert_same_weights(loaded, student.state_dict())
    with pytest.raises(ModelError, match='PaperStudentConfig.*Mast3rConfig'):
        load_teacher(tmp_path / 'student.safetensors')


def test_student_checkpoint_needs_a_name_that_fits(toy_head, tmp_path):
    student = PaperStudent(PaperStudentConfig('vit_tiny_patch16', 16, 4, 2, head=toy_head))
    path = tmp_path / 'checkpoint-best.pth'
    torch.save({'model': student.state_dict(), 'epoch': 3, 'best_so_far': 0.1}, path)
    with pytest.raises(ModelError, match='S1 to S4'):
        load_student(path)
    with pytest.raises(ModelError, match=r'of another shape: .*wanted \(1, 1, 512\)'):
        load_student(path, 'S4')


def test_encoder_weights_load_into_a_student(toy_head, tmp_path):
    config = PaperStudentConfig('vit_tiny_patch16', 16, 4, 2, head=toy_head)
    student, source = PaperStudent(config), PaperStudent(config)
    adapter = student.encoder.adapter[0].weight.clone()
    path = tmp_path / 'vit_tiny.pth'
    published = dict(source.encoder.network.state_dict())
    published['pos_embed'] = torch.randn(1, 197, 192)
    torch.save(published, path)
    load_encoder_weights(student, path)
    wanted = source.encoder.network.blocks[5].attn.qkv.weight
    assert torch.equal(student.encoder.network.blocks[5].attn.qkv.weight, wanted)
    assert student.encoder.network.pos_embed.shape == (1, 1025, 192)
    assert torch.equal(student.encoder.adapter[0].weight, adapter)
    with pytest.raises(ModelError, match='missing: .*unexpected: conv_stem.weight'):
        torch.save({'conv_stem.weight': torch.zeros(16, 3, 3, 3)}, path)
        load_encoder_weights(student, path)


def test_wrong_keys_are_named(official, tmp_path):
    state = dict(official[1])
    del state['enc_norm.bias'], state['dec_blocks.2.mlp.fc1.weight']
    state['surplus.weight'] = torch.zeros(1)
    state['dec_norm.weight'] = torch.zeros(17)
    with pytest.raises(ModelError) as caught:
        load_teacher(write_checkpoint(tmp_path / 'wrong.pth', state))
    message = str(caught.value)
    assert '2 missing: enc_norm.bias, dec_blocks.2.mlp.fc1.weight' in message
    assert '1 unexpected: surplus.weight' in message
    assert 'dec_norm.weight is (17,), wanted (16,)' in message
    assert 'wrong.pth' in message


def test_doubled_names_that_differ_are_refused(official, tmp_path):
    state = dict(official[1])
    name = 'downstream_head1.dpt.scratch.layer_rn.1.weight'
    state[name] = state[name] + 1
    with pytest.raises(ModelError, match='layer2_rn.weight.*differ'):
        load_teacher(write_checkpoint(tmp_path / 'twice.pth', state))


def test_truncated_and_foreign_files_are_refused(official, tmp_path):
    content = official[0].read_bytes()
    cut = tmp_path / 'cut.pth'
    for size in (0, 10, len(content) // 2):
        cut.write_bytes(content[:size])
        with pytest.raises(ModelError, match='cut.pth'):
            load_teacher(cut)
    text = tmp_path / 'notes.safetensors'
    text.write_text('these are no weights')
    with pytest.raises(ModelError, match='notes.safetensors'):
        load_teacher(text)
    with pytest.raises(ModelError, match='does not exist'):
        load_teacher(tmp_path / 'nowhere.pth')


def test_truncated_safetensors_is_refused(toy_teacher, tmp_path):
    target = tmp_path / 'cut.safetensors'
    save_model(toy_teacher, target)
    target.write_bytes(target.read_bytes()[:-1000])
    with pytest.raises(ModelError, match='cut.safetensors'):
        load_teacher(target)


class Payload:
    """A pickle that makes a folder when it is executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_not_executed(official, tmp_path):
    path = tmp_path / 'payload.pth'
    made = tmp_path / 'made'
    torch.save({'model': official[1], 'args': Payload(made)}, path)
    with pytest.raises(ModelError, match='payload.pth'):
        load_teacher(path)
    assert not made.exists()


def test_file_without_constructor_or_state_is_refused(official, tmp_path):
    path = tmp_path / 'bare.pth'
    torch.save(official[1], path)
    with pytest.raises(ModelError, match='args.model'):
        load_teacher(path)
    torch.save([1, 2], path)
    with pytest.raises(ModelError, match='list'):
        load_teacher(path)
    torch.save({'model': {'a': 1}}, path)
    with pytest.raises(ModelError, match="'a' is no tensor"):
        load_teacher(path)


def test_full_disk_leaves_the_older_file(toy_teacher, tmp_path):
    target = tmp_path / 'teacher.safetensors'
    save_model(toy_teacher, target)
    before = target.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(ModelError, match='cannot be written'):
            save_model(Mast3r(toy_teacher.config), target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def test_broken_metadata_is_refused(toy_teacher, tmp_path, monkeypatch):
    target = tmp_path / 'teacher.safetensors'
    monkeypatch.setattr('training.models.checkpoints.FORMAT_VERSION', '0')
    save_model(toy_teacher, target)
    monkeypatch.undo()
    with pytest.raises(ModelError, match="version '0'"):
        load_teacher(target)


@pytest.mark.parametrize(
    ('name', 'value', 'says'),
    [
        ('encoder_width', 16.0, 'encoder_width 16.0; whole numbers from 1'),
        ('decoder_heads', 0, 'decoder_heads 0; whole numbers from 1'),
        ('encoder_depth', 1.5, 'encoder_depth 1.5; whole numbers from 0'),
        ('level_channels', [1, 2], 'level_channels (1, 2); 4 numbers'),
        ('level_channels', [1, 2, 3, 4e-3], 'level_channels (1, 2, 3, 0.004); whole numbers'),
        ('conf_min', 'exp', "conf_min 'exp'; numbers from 0"),
    ],
)
def test_sizes_in_the_metadata_that_make_no_network_are_refused(
    toy_teacher, tmp_path, name, value, says
):
    target = tmp_path / 'teacher.safetensors'
    save_model(toy_teacher, target)
    with safe_open(target, 'pt') as file:
        metadata = file.metadata()
    config = json.loads(metadata['config'])
    (config['head'] if name in config['head'] else config)[name] = value
    save_file({}, target, metadata | {'config': json.dumps(config)})
    with pytest.raises(ModelError, match=re.escape(says)):
        load_teacher(target)


def test_constructor_is_parsed():
    config = parse_constructor(OFFICIAL)
    assert config == CONFIG
    without = OFFICIAL.replace(", desc_conf_mode=('exp', 0, inf)", '')
    assert parse_constructor(without).head.desc_conf_min == 1.0
    landscape = OFFICIAL.replace('freeze=', 'landscape_only = True, mlp_ratio=2, freeze=')
    assert parse_constructor(landscape).mlp_ratio == 2


@pytest.mark.parametrize(
    ('old', 'new', 'says'),
    [
        ('enc_depth=1', "enc_depth=__import__('os').getpid()", 'getpid'),
        ('enc_depth=1', 'enc_depth=True', 'encoder_depth'),
        ('AsymmetricMASt3R', 'AsymmetricCroCo3DStereo', 'AsymmetricCroCo3DStereo'),
        ("pos_embed='RoPE100'", "pos_embed='cosine'", 'RoPE100'),
        ("pos_embed='RoPE100', ", '', 'cosine'),
        ("('exp', 1, inf)", "('sigmoid', 1, 2)", 'conf_mode'),
        ('pts3d+desc24', 'pts3d', 'output_mode'),
        ('two_confs=True, ', '', 'two_confs'),
        ('freeze=', 'colour=', 'colour'),
        ("freeze='encoder')", '', 'cannot be read'),
        ('pos_embed=', '24, pos_embed=', 'keywords'),
    ],
)
def test_other_constructors_are_refused(old, new, says):
    assert old in OFFICIAL
    with pytest.raises(ModelError, match=says):
        parse_constructor(OFFICIAL.replace(old, new), 'file.pth')


def test_text_file_is_no_checkpoint_and_nobody_is_told_to_run_it(tmp_path):
    path = tmp_path / 'README.pth'
    path.write_text('# A page\n')
    with pytest.raises(ModelError, match='not a complete checkpoint') as caught:
        load_teacher(path)
    assert 'weights_only' not in str(caught.value)

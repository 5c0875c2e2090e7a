"""Reading and writing of weights: official MASt3R checkpoints, the paper's students, encoders.

Nothing in a file is ever executed: pickles are read with an allow-list, constructor strings are
parsed as a syntax tree. Files of our own are safetensors with the configuration in the header.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import os
from pathlib import Path
import pickle
import struct
from typing import Any
import zipfile

from safetensors import safe_open, SafetensorError
from safetensors.torch import save_file
import torch
from torch import nn, Tensor

from lunar_stereo_recon.errors import ModelError
from lunar_stereo_recon.limits import MAX_CHECKPOINT_BYTES
from training.models.encoders import encoder_state_from_official
from training.models.heads import HeadConfig
from training.models.mast3r import Mast3r, Mast3rConfig
from training.models.paper_students import (
    paper_student_config,
    PaperStudent,
    PaperStudentConfig,
)
from training.models.sizes import check_sizes

FORMAT_VERSION = '1'
KEYS_SHOWN = 4
# What torch's reader of pickles raises on damaged ones: it trusts what is not code.
_PICKLE_DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
)

# Arguments of the official constructor that become a field of Mast3rConfig.
SIZE_ARGUMENTS = {
    'enc_embed_dim': 'encoder_width',
    'enc_depth': 'encoder_depth',
    'enc_num_heads': 'encoder_heads',
    'dec_embed_dim': 'decoder_width',
    'dec_depth': 'decoder_depth',
    'dec_num_heads': 'decoder_heads',
    'mlp_ratio': 'mlp_ratio',
}
# Arguments that this implementation knows with one value, or a few of the same effect.
FIXED_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    'pos_embed': ('RoPE100',),
    'patch_size': (16,),
    # The first differs from the second in batches of mixed orientation only.
    'patch_embed_cls': ('ManyAR_PatchEmbed', 'PatchEmbedDust3R'),
    'head_type': ('catmlp+dpt',),
    'depth_mode': (('exp', -torch.inf, torch.inf),),
    'desc_mode': (('norm', -torch.inf, torch.inf), ('norm', 0, torch.inf)),
    'two_confs': (True,),
    'norm_im2_in_dec': (True,),
}
# Arguments without effect on what the network computes: training and batching only.
IGNORED_ARGUMENTS = ('img_size', 'freeze', 'landscape_only', 'mask_ratio')
# What the official classes assume where the string is silent.
OFFICIAL_DEFAULTS = {
    'pos_embed': 'cosine',
    'head_type': 'linear',
    'two_confs': False,
    'conf_mode': ('exp', 1, torch.inf),
    'enc_embed_dim': 768,
    'enc_depth': 12,
    'enc_num_heads': 12,
    'dec_embed_dim': 512,
    'dec_depth': 8,
    'dec_num_heads': 16,
}


def load_teacher(path: str | Path) -> Mast3r:
    """Load a MASt3R network from an official checkpoint (.pth) or a converted .safetensors.

    Args:
        path: A `.pth` holding `args` (with the constructor call as text) and `model`, as MASt3R
            and MOONSt3R publish; or a file written by `save_model`.

    Returns:
        The network in eval mode, float32, on the CPU.

    Raises:
        ModelError: The file is missing, truncated, of another form, or its weights do not fit.
    """
    return _teacher(*read_tensors(path), path)


def load_student(path: str | Path, name: str | None = None) -> PaperStudent:
    """Load a student of the paper.

    Args:
        path: A checkpoint of the paper's trainer (.pth) or a file written by `save_model`.
        name: S1 to S4; needed for a .pth, which does not say what it holds.

    Returns:
        The student in eval mode, float32, on the CPU.

    Raises:
        ModelError: The file is missing, truncated, of another form, or its weights do not fit.
    """
    return _student(*read_tensors(path), path, name)


def load_pointmap_model(path: str | Path, name: str | None = None) -> Mast3r:
    """Load a teacher or a student, whichever a file holds.

    Args:
        path: `.pth` as published, or `.safetensors` as `save_model` writes it.
        name: S1 to S4 where a `.pth` holds that student; None: a teacher.

    Raises:
        ModelError: As for `load_teacher` and `load_student`.
    """
    state, extras = read_tensors(path)
    if name is None and extras.get('kind') != PaperStudentConfig.__name__:
        return _teacher(state, extras, path)
    return _student(state, extras, path, name)


def load_encoder_weights(student: PaperStudent, path: str | Path) -> None:
    """Load published weights of DINOv2, ViT-Tiny or MobileNetV3 into a student's encoder.

    A file of a whole student with the same encoder does too. The adapter and everything after it
    stay as they are.

    Raises:
        ModelError: The file is missing, truncated, or of another network.
    """
    state, _ = read_tensors(path)
    network, spec = student.encoder.network, student.spec
    prefix = f'{spec.module_name}.{spec.backbone_name}.'
    inside = {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }
    state = inside or state
    load_state(network, encoder_state_from_official(network, state), path)


def save_model(model: Mast3r, path: str | Path) -> None:
    """Write a network as .safetensors, its configuration in the metadata.

    The file appears only when complete: a full disk leaves an older one as it was.

    Raises:
        ModelError: The file cannot be written.
    """
    config = model.student if isinstance(model, PaperStudent) else model.config
    metadata = {
        'format_version': FORMAT_VERSION,
        'kind': type(config).__name__,
        'config': json.dumps(dataclasses.asdict(config)),
    }
    state = {
        name: value.detach().contiguous()
        for name, value in model.state_dict().items()
        if '.scratch.layer_rn.' not in name  # the second names of layerK_rn
    }
    target = Path(path)
    temporary = target.with_name(f'.{target.name}.{os.getpid()}.part')
    try:
        save_file(state, temporary, metadata)
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        raise ModelError(f'{target} cannot be written: {error}') from error
    finally:
        temporary.unlink(missing_ok=True)


def convert_checkpoint(source: str | Path, target: str | Path, name: str | None = None) -> Mast3r:
    """Convert an official teacher (name None) or a student S1 to S4 to .safetensors.

    Returns:
        The network that was written.
    """
    model = load_teacher(source) if name is None else load_student(source, name)
    save_model(model, target)
    return model


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a weight file without executing anything in it.

    Args:
        path: `.safetensors`, or a torch file that holds a state dict, bare or under `model`
            or `state_dict`.

    Returns:
        The state dict and what stood beside it (the metadata of a .safetensors).

    Raises:
        ModelError: The file is missing, truncated, holds other types, or no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f'model file {path} does not exist')
    size = path.stat().st_size
    if size > MAX_CHECKPOINT_BYTES:
        raise ModelError(f'{path} has {size} bytes; at most {MAX_CHECKPOINT_BYTES} are read')
    if path.suffix == '.safetensors':
        return _read_safetensors(path)
    content = _read_pickle(path)
    if not isinstance(content, dict):
        raise ModelError(f'{path} holds a {type(content).__name__}; a state dict is needed')
    name = next((n for n in ('model', 'state_dict') if isinstance(content.get(n), dict)), None)
    extras = {} if name is None else {k: v for k, v in content.items() if k != name}
    state = content if name is None else content[name]
    wrong = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if wrong or not state:
        raise ModelError(
            f'{path} holds no state dict: '
            + (f'entry {wrong[0]!r} is no tensor' if wrong else 'it is empty')
        )
    return state, extras


def load_state(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Load a state dict strictly, as float32 tensors of the model's own.

    Args:
        model: May be on the meta device; then it takes the tensors over.
        state: Names and tensors; they may share memory with each other.
        path: Named in errors.

    Raises:
        ModelError: Names or shapes differ; the message lists the first of each kind.
    """
    wanted = model.state_dict()
    problems = _differences(wanted, state)
    if problems:
        raise ModelError(f'{path} does not fit {type(model).__name__}: {"; ".join(problems)}')
    on_meta = any(value.is_meta for value in wanted.values())
    if on_meta:
        state = {name: _owned(value, wanted[name].dtype) for name, value in state.items()}
    model.load_state_dict(state, strict=True, assign=on_meta)


def parse_constructor(text: str, path: str | Path = 'checkpoint') -> Mast3rConfig:
    """Return the configuration that an official constructor string asks for.

    Args:
        text: E.g. `AsymmetricMASt3R(pos_embed='RoPE100', ..., enc_depth=24, ...)`; `inf` is a
            name in it. Read as a syntax tree, never evaluated.
        path: Named in errors.

    Raises:
        ModelError: The text is no such call, or asks for what this implementation has not.
    """
    arguments = OFFICIAL_DEFAULTS | _keyword_arguments(text, path)
    for name, known in FIXED_ARGUMENTS.items():
        if name in arguments and arguments[name] not in known:
            raise ModelError(
                f'{path}: constructor has {name}={arguments[name]!r}; '
                f'supported: {" or ".join(repr(value) for value in known)}'
            )
    conf_min = _exponential_minimum('conf_mode', arguments.get('conf_mode'), path)
    # The official class reads a missing second mode as the first.
    desc_conf_mode = arguments.get('desc_conf_mode') or arguments.get('conf_mode')
    desc_conf_min = _exponential_minimum('desc_conf_mode', desc_conf_mode, path)
    head = HeadConfig(
        descriptor_width=_descriptor_width(arguments.get('output_mode'), path),
        conf_min=conf_min,
        desc_conf_min=desc_conf_min,
    )
    sizes: dict[str, Any] = {
        field: arguments[name] for name, field in SIZE_ARGUMENTS.items() if name in arguments
    }
    for field, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise ModelError(f'{path}: constructor has {field} = {value!r}; a number is needed')
    config = Mast3rConfig(**sizes, head=head)
    check_sizes(config, path)
    return config


def _teacher(state: dict[str, Tensor], extras: dict[str, Any], path: str | Path) -> Mast3r:
    if 'config' in extras:
        config = _config_from_metadata(extras, Mast3rConfig, path)
    else:
        config = parse_constructor(_constructor_text(extras, path), path)
    return _build(lambda: Mast3r(config), state, path)


def _student(
    state: dict[str, Tensor], extras: dict[str, Any], path: str | Path, name: str | None
) -> PaperStudent:
    if 'config' in extras:
        config = _config_from_metadata(extras, PaperStudentConfig, path)
    elif name is None:
        raise ModelError(f'{path} does not say which student it holds; name one of S1 to S4')
    else:
        config = paper_student_config(name)
    return _build(lambda: PaperStudent(config), state, path)


def _keyword_arguments(text: str, path: str | Path) -> dict[str, Any]:
    try:
        call = ast.parse(text.strip(), mode='eval').body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ModelError(f'{path}: constructor text cannot be read: {text[:80]!r}') from error
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ModelError(f'{path}: constructor text is not a call with keywords: {text[:80]!r}')
    if call.func.id != 'AsymmetricMASt3R':
        raise ModelError(f'{path} holds a {call.func.id}; AsymmetricMASt3R is needed')
    known = {*SIZE_ARGUMENTS, *FIXED_ARGUMENTS, *IGNORED_ARGUMENTS}
    known |= {'output_mode', 'conf_mode', 'desc_conf_mode'}
    arguments = {}
    for keyword in call.keywords:
        if keyword.arg not in known:
            raise ModelError(
                f'{path}: constructor argument {keyword.arg!r} is unknown; '
                f'known are {", ".join(sorted(known))}'
            )
        arguments[keyword.arg] = _literal(keyword.value, path)
    return arguments


def _literal(node: ast.expr, path: str | Path) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name) and node.id == 'inf':
        return torch.inf
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(_literal(element, path) for element in node.elts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _literal(node.operand, path)
        if isinstance(value, (int, float)):
            return -value
    raise ModelError(
        f'{path}: constructor value {ast.unparse(node)[:60]!r} is not a number, text or tuple'
    )


def _exponential_minimum(name: str, mode: Any, path: str | Path) -> float:
    if isinstance(mode, tuple) and len(mode) == 3 and mode[0] == 'exp' and mode[2] == torch.inf:
        return float(mode[1])
    raise ModelError(f"{path}: constructor has {name}={mode!r}; ('exp', minimum, inf) is needed")


def _descriptor_width(output_mode: Any, path: str | Path) -> int:
    prefix = 'pts3d+desc'
    if isinstance(output_mode, str) and output_mode.startswith(prefix):
        width = output_mode[len(prefix) :]
        if width.isdecimal() and int(width) > 0:
            return int(width)
    raise ModelError(f"{path}: constructor has output_mode={output_mode!r}; 'pts3d+desc24'")


def _constructor_text(extras: dict[str, Any], path: str | Path) -> str:
    text = getattr(extras.get('args'), 'model', None)
    if not isinstance(text, str):
        raise ModelError(f'{path} has no constructor text args.model; is it a MASt3R checkpoint?')
    return text


def _config_from_metadata(extras: dict[str, Any], kind: type, path: str | Path) -> Any:
    version, found = extras.get('format_version'), extras.get('kind')
    if version != FORMAT_VERSION:
        raise ModelError(f'{path} has format version {version!r}; {FORMAT_VERSION!r} is needed')
    if found != kind.__name__:
        raise ModelError(f'{path} holds a {found}; a {kind.__name__} is needed')
    try:
        values = json.loads(extras['config'])
        head = values.pop('head')
        head['level_channels'] = tuple(head['level_channels'])
        config = kind(**values, head=HeadConfig(**head))
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f'{path} has a broken configuration: {error}') from error
    check_sizes(config, path)
    return config


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework='pt') as file:
            state = {name: file.get_tensor(name) for name in file.keys()}
            return state, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ModelError(f'{path} is not a complete safetensors file: {error}') from error


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(
                path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except _PICKLE_DAMAGE as error:
        # The rest of torch's message advises to run what the file holds.
        reason = (str(error).strip() or repr(error)).split('. ')[0].splitlines()[0]
        raise ModelError(
            f'{path} is not a complete checkpoint of tensors and plain values: {reason}'
        ) from error


def _build(make: Any, state: dict[str, Tensor], path: str | Path) -> Any:
    # On the meta device a full-size teacher costs neither time nor memory until it is filled.
    with torch.device('meta'):
        model = make()
    load_state(model, complete_state(state, path), path)
    return model.eval()


def complete_state(state: dict[str, Tensor], path: str | Path = 'checkpoint') -> dict[str, Tensor]:
    """Return a state dict with the names that official files may leave out.

    The second decoder is a copy of the first where a file (from pre-training) has only one;
    `layer_rn.K` and `layer(K+1)_rn` are two names of one tensor.

    Raises:
        ModelError: Two names of one tensor hold different values.
    """
    state = dict(state)
    if not any(name.startswith('dec_blocks2.') for name in state):
        for name in [name for name in state if name.startswith('dec_blocks.')]:
            state[name.replace('dec_blocks.', 'dec_blocks2.', 1)] = state[name]
    for head in ('downstream_head1', 'downstream_head2'):
        for level in range(4):
            first = f'{head}.dpt.scratch.layer{level + 1}_rn.weight'
            second = f'{head}.dpt.scratch.layer_rn.{level}.weight'
            if first in state and second in state:
                if not torch.equal(state[first], state[second]):
                    raise ModelError(f'{path}: {first} and {second} differ; they are one tensor')
            elif first in state:
                state[second] = state[first]
            elif second in state:
                state[first] = state[second]
    return state


def _differences(wanted: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
    shapes = [
        f'{name} is {tuple(state[name].shape)}, wanted {tuple(value.shape)}'
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    kinds = (
        ('missing', [name for name in wanted if name not in state]),
        ('unexpected', [name for name in state if name not in wanted]),
        ('of another shape', shapes),
    )
    return [
        f'{len(names)} {kind}: {", ".join(names[:KEYS_SHOWN])}' for kind, names in kinds if names
    ]


def _owned(value: Tensor, dtype: torch.dtype) -> Tensor:
    # Entries of a file may be overlapping views of one storage; a model trains its own copies.
    return value.detach().to(dtype).clone(memory_format=torch.contiguous_format)

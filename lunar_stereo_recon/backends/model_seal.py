"""Checks that a model file is unchanged: a digest inside the file, a signature beside it.

The seal is the file's last entry of metadata, `file_sha256`: the SHA-256 of every byte before it.
It is written and checked without a parser, since a parser is what a damaged file would harm.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from lunar_stereo_recon.errors import ModelError
from lunar_stereo_recon.files.atomic import write_bytes
from lunar_stereo_recon.limits import MAX_MODEL_BYTES

KEY = 'file_sha256'
SIGNATURE_ENDING = '.sig'
_DIGEST_LENGTH = 64
# An entry of ONNX's metadata_props (field 14) in protobuf: its length, the key, the value.
_ENTRY = b'\x0a' + bytes([len(KEY)]) + KEY.encode() + b'\x12' + bytes([_DIGEST_LENGTH])
_PREFIX = b'\x72' + bytes([len(_ENTRY) + _DIGEST_LENGTH]) + _ENTRY
_SEAL_BYTES = len(_PREFIX) + _DIGEST_LENGTH

logger = logging.getLogger(__name__)


def seal_model(path: Path) -> None:
    """Append the seal to an `.onnx` file, instead of one that it may end with."""
    content = path.read_bytes()
    if content[-_SEAL_BYTES:].startswith(_PREFIX):
        content = content[:-_SEAL_BYTES]
    write_bytes(path, content + _PREFIX + hashlib.sha256(content).hexdigest().encode())


def check_model_file(path: Path, key: Path | None = None) -> None:
    """Refuse a model file that is missing, too large, or not what its maker wrote.

    A file without a seal is used with a warning, unless a key is given.

    Args:
        path: `.onnx` file.
        key: Public key (PEM, elliptic curve) of its OpenSSF signature, which is beside it as
            `NAME.onnx.sig`; None asks for none.

    Raises:
        ModelError: See above.
    """
    if not path.is_file():
        raise ModelError(f'no model file at {path}')
    size = path.stat().st_size
    if size > MAX_MODEL_BYTES:
        raise ModelError(f'{path} has {size} bytes; models of at most {MAX_MODEL_BYTES} are read')
    if key is not None:
        _check_signature(path, key)
    check_seal(path, path.read_bytes())


def check_seal(path: Path, content: bytes) -> None:
    """Refuse what was read from a model file where its seal says that it is something else.

    Raises:
        ModelError: See above.
    """
    seal = content[-_SEAL_BYTES:]
    if not seal.startswith(_PREFIX):
        logger.warning('%s has no %s: damage to it would go unnoticed', path, KEY)
        return
    digest = hashlib.sha256(content[:-_SEAL_BYTES]).hexdigest()
    if seal[len(_PREFIX) :] != digest.encode():
        raise ModelError(
            f'{path} has the SHA-256 {digest}, but its {KEY} is '
            f'{seal[len(_PREFIX) :].decode("ascii", "replace")}; the file is damaged or was '
            'changed: take it from its maker again'
        )


def _check_signature(path: Path, key: Path) -> None:
    signature = path.with_name(path.name + SIGNATURE_ENDING)
    for file, what in ((key, 'model_key'), (signature, 'signature')):
        if not file.is_file():
            raise ModelError(f'no {what} at {file}; a model_key asks for a signed model')
    try:
        from model_signing import hashing, verifying
    except ModuleNotFoundError as error:
        raise ModelError(
            "model_key needs the package model-signing: pip install 'lunar_stereo_recon[signing]'"
        ) from error
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
    verifier.set_hashing_config(hashing.Config().set_ignored_paths(paths=[signature]))
    try:
        verifier.verify(path, signature)
    except (ValueError, TypeError, OSError) as error:
        reason = ' '.join(str(error).split())
        raise ModelError(f'{path} is not signed by {key}: {reason}') from error

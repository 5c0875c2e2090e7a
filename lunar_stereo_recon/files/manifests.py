"""Lists of stereo pairs with calibration and ground truth, as one JSON file beside the images.

Form: {"pairs": [{"id", "left", "right", "fx", "fy", "cx", "cy", "baseline_m", "width", "height",
and optionally "gt", "tag", "cx_right", "reference", "gt_kind"}]}; paths are relative to the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lunar_stereo_recon.datatypes import StereoCalibration, StereoPair
from lunar_stereo_recon.errors import CalibrationError, InputError
from lunar_stereo_recon.files.bounded import read_json
from lunar_stereo_recon.files.images import pair_from_files

REFERENCES = ('ground truth', 'silver', 'approximate', 'none')


@dataclass(frozen=True)
class ManifestEntry:
    """One pair of a manifest.

    Attributes:
        id: Unique name, also of the files written for the pair.
        tag: Group for reports, e.g. 'lowsun'.
        left, right: Image files.
        ground_truth: `.npz` of the ground truth; None where there is none.
        calibration: Rectified calibration of the images.
        reference: What the ground truth is: 'ground truth', 'silver' (another method's answer
            where that is beyond doubt), 'approximate' (of which `gt_kind` says so) or 'none'.
        says_reference: Whether the manifest says so; its pairs are then of different kinds.
    """

    id: str
    tag: str
    left: Path
    right: Path
    ground_truth: Path | None
    calibration: StereoCalibration
    reference: str = 'ground truth'
    says_reference: bool = False

    def load_pair(self, white_level: float | None = None) -> StereoPair:
        """Read the images; see `images.pair_from_files` for the errors."""
        return pair_from_files(self.left, self.right, self.calibration, white_level)


def load_manifest(path: str | Path) -> list[ManifestEntry]:
    """Return the pairs of a manifest file.

    Raises:
        InputError: The file is missing, not JSON, empty, an entry lacks a value, or two entries
            have one id.
        CalibrationError: A calibration value is impossible.
    """
    path = Path(path)
    try:
        document = read_json(path)
    except OSError as error:
        raise InputError(f'cannot read manifest {path}: {error.strerror}') from error
    except ValueError as error:
        raise InputError(f'manifest {path} is not JSON: {error}') from error
    pairs = document.get('pairs') if isinstance(document, dict) else None
    if not isinstance(pairs, list) or not pairs:
        raise InputError(f'manifest {path} has no list "pairs" with at least one entry')
    entries = [_entry(pair, index, path) for index, pair in enumerate(pairs)]
    ids = [entry.id for entry in entries]
    repeated = sorted({name for name in ids if ids.count(name) > 1})
    if repeated:
        raise InputError(f'manifest {path} has more than one pair with id {", ".join(repeated)}')
    return entries


def _entry(pair: Any, index: int, path: Path) -> ManifestEntry:
    if not isinstance(pair, Mapping):
        raise InputError(f'manifest {path} pair {index} is {pair!r}; a mapping is needed')
    name = str(pair.get('id', index))
    if Path(name).name != name or name in ('.', '..'):
        raise InputError(f'manifest {path} pair {index} has id {name!r}; a file name is needed')
    try:
        fx, fy, cx, cy, baseline_m = (
            float(pair[key]) for key in ('fx', 'fy', 'cx', 'cy', 'baseline_m')
        )
        calibration = StereoCalibration(
            fx,
            fy,
            cx,
            cy,
            float(pair.get('cx_right', cx)),
            baseline_m,
            int(pair['width']),
            int(pair['height']),
        )
        left, right = (path.parent / str(pair[side]) for side in ('left', 'right'))
    except KeyError as error:
        raise InputError(f'manifest {path} pair {name} lacks {error}') from error
    except CalibrationError as error:
        raise CalibrationError(f'manifest {path} pair {name}: {error}') from error
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f'manifest {path} pair {name}: {error}') from error
    ground_truth = path.parent / str(pair['gt']) if pair.get('gt') else None
    return ManifestEntry(
        name,
        str(pair.get('tag', '')),
        left,
        right,
        ground_truth,
        calibration,
        _reference(pair, name, path),
        'reference' in pair,
    )


def _reference(pair: Mapping[str, Any], name: str, path: Path) -> str:
    if not pair.get('gt'):
        return 'none'
    reference = pair.get('reference', 'ground truth')
    if reference not in REFERENCES:
        raise InputError(
            f'manifest {path} pair {name} has reference {reference!r}; '
            f'one of {", ".join(REFERENCES)} is needed'
        )
    approximate = str(pair.get('gt_kind', '')).startswith('approximate')
    return 'approximate' if approximate else reference

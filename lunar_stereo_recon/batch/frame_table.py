"""Statistics of each frame as Parquet; the same frames give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from lunar_stereo_recon.offline import FrameOutcome

# Confidence from which on a pixel counts as sure.
SURE = 0.9
# Depths are looked at in every n-th row and column: sorting all of them takes milliseconds.
_STEP = 4
_COLUMNS = (
    ('bag', pa.string(), 'key of the recording in the store'),
    ('shard', pa.int32(), 'number of the shard in the recording'),
    ('index', pa.int32(), 'position of the frame in the shard'),
    ('stamp_ns', pa.int64(), 'stamp of the left image'),
    ('recorded_ns', pa.int64(), 'when the left image was recorded'),
    ('error', pa.string(), 'why the frame cannot be used; null where it can'),
    ('width', pa.int32(), 'pixels'),
    ('height', pa.int32(), 'pixels'),
    ('valid_share', pa.float32(), 'pixels with a depth'),
    ('confidence_mean', pa.float32(), 'over all pixels'),
    ('sure_share', pa.float32(), f'pixels with a confidence of {SURE} or more'),
    ('depth_p05_m', pa.float32(), 'near end of the depths, 5 %'),
    ('depth_p50_m', pa.float32(), 'median of the depths'),
    ('depth_p95_m', pa.float32(), 'far end of the depths, 95 %'),
    ('row_offset_px', pa.float32(), 'how much too low the right rows are; null where unknown'),
    ('row_roll_deg', pa.float32(), 'how far the right view is turned; null where unknown'),
)
SCHEMA = pa.schema(
    [pa.field(name, kind, metadata={'description': text}) for name, kind, text in _COLUMNS]
)


def frame_row(outcome: FrameOutcome, bag: str, shard: int) -> dict[str, Any]:
    """Return the row of a frame; what is not in it is null."""
    frame, result = outcome.frame, outcome.result
    row: dict[str, Any] = {
        'bag': bag,
        'shard': shard,
        'index': frame.index,
        'stamp_ns': frame.stamp_ns,
        'recorded_ns': frame.recorded_ns,
    }
    if result is None:
        return {**row, 'error': outcome.error}
    height, width = result.depth.shape
    depths = result.depth[::_STEP, ::_STEP]
    depths = depths[np.isfinite(depths)]
    row |= {
        'width': width,
        'height': height,
        'valid_share': float(result.valid_mask.mean()),
        'confidence_mean': float(result.confidence.mean(dtype=np.float64)),
        'sure_share': float((result.confidence >= SURE).mean()),
    }
    if depths.size:
        names = ('depth_p05_m', 'depth_p50_m', 'depth_p95_m')
        row |= zip(names, np.percentile(depths, [5, 50, 95]).tolist(), strict=True)
    if result.row_alignment.known:
        row['row_offset_px'] = result.row_alignment.offset_px
        row['row_roll_deg'] = result.row_alignment.roll_deg
    return row


def parquet_bytes(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return a Parquet file of rows made by `frame_row`."""
    stream = BytesIO()
    parquet.write_table(pa.Table.from_pylist(list(rows), SCHEMA), stream, compression='zstd')
    return stream.getvalue()

"""`lunar-stereo repair`: a whole bag from what can be read of a damaged one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lunar_stereo_recon.errors import InputError


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Declare the sub-command."""
    parser = subparsers.add_parser(
        'repair',
        help='write a whole bag from a damaged one',
        description='Copy what can be read of a rosbag2 recording (cut off, recorder killed, '
        'damaged in places, compressed) to a new mcap bag, and say what is lost.',
    )
    parser.add_argument(
        'bag',
        type=Path,
        help='rosbag2 directory, .mcap, .db3, or one of these compressed as .zstd',
    )
    parser.add_argument(
        '--out', type=Path, help='folder to write (default: BAG_repaired beside the bag)'
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace the folder of --out if it exists'
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Copy the messages and print what is there and what is lost."""
    from tqdm import tqdm

    from lunar_stereo_recon.bags.storage import Recording
    from lunar_stereo_recon.bags.writer import BagWriter

    source: Path = args.bag
    name = source.name if source.is_dir() else source.name.partition('.')[0]
    out = args.out or source.parent / f'{name}_repaired'
    if out.resolve() == source.resolve():
        raise InputError(f'--out {out} is the bag itself; a new folder is needed')
    recording = Recording(source)
    try:
        topics = {connection.topic for connection in recording.connections}
        with (
            BagWriter(out, overwrite=args.overwrite) as writer,
            tqdm(total=recording.message_count, desc='copying', unit='message') as bar,
        ):
            for connection, time_ns, data in recording.messages(topics):
                writer.write_raw(connection.topic, connection.msgtype, data, time_ns, connection)
                bar.update()
    finally:
        recording.close()
    print(f'{out}: {sum(writer.counts.values())} messages on {len(writer.counts)} topics')
    for loss in recording.losses:
        print(f'  lost: {loss}')
    return 0

"""The program `simulator_node`: says in one line what is missing, else runs the node."""

from __future__ import annotations

from collections.abc import Sequence
import sys

from lunar_stereo_recon.extras import missing_extra
from lunar_stereo_recon.ros.node_main import EXIT_ERROR


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate until interrupted; return the exit status that `simulator_node` lists."""
    # Torch and numba take seconds to import, on a busy machine many.
    print('simulator_node: loading the renderer ...', flush=True)
    try:
        from lunar_stereo_recon.ros import simulator_node
    except ModuleNotFoundError as error:
        text = missing_extra(error)
        if not text:
            raise
        print(f'simulator_node: error: {text}', file=sys.stderr)
        return EXIT_ERROR
    return simulator_node.main(argv)


if __name__ == '__main__':
    sys.exit(main())

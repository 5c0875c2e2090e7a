"""How long the node takes for a pair, how many it does in a second, and what clouds cost in DDS.

    PYTHONPATH=. python test/endurance/latency.py node --backend onnx sgbm --rate 6
    PYTHONPATH=. python test/endurance/latency.py node --size 320x240 --rate 30
    PYTHONPATH=. python test/endurance/latency.py clouds

`node` publishes pairs at a rate to a node in a process of its own, with one subscriber of
`points2`, for one backend after the other. The latency is the node's own, from the arrival of a
pair's last message until the results are published. `clouds` publishes the clouds of a made up
pair of 640x480 to a subscriber in another process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
import json
import multiprocessing
import os
from pathlib import Path
import sys
import tempfile
import time
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile
from rig import calibration, NODE, PATIENCE_S, rig_and_processes

from lunar_stereo_recon.backends import load_backend
from lunar_stereo_recon.backends.fastest import timing_pair
from lunar_stereo_recon.datatypes import Reconstruction, StereoPair
from lunar_stereo_recon.evaluation.machine import describe_machine
from lunar_stereo_recon.pipeline import ReconstructionOptions, StereoReconstructor
from lunar_stereo_recon.result_messages import (
    CloudForm,
    compressed_depth_message,
    depth_message,
    point_cloud_message,
)
from lunar_stereo_recon.ros.node_processes import large_message_environment, private_domain
from lunar_stereo_recon.ros.rclpy_messages import make_message, message_class

WARM_UP_S = 5.0
CLOUD, IMAGE, COMPRESSED = (
    f'sensor_msgs/msg/{name}' for name in ('PointCloud2', 'Image', 'CompressedImage')
)
Build = Callable[[Reconstruction], Any]


def cloud(form: CloudForm) -> tuple[str, Build]:
    """Return type and maker of a cloud's message."""
    return CLOUD, lambda result: point_cloud_message(make_message, result, form)


# What is published of a result, by the parameters that ask for it.
FORMS: dict[str, tuple[str, Build]] = {
    'default, 20 bytes a point': cloud(CloudForm()),
    'color:=false, 16 bytes a point': cloud(CloudForm(color=False)),
    'organized:=false': cloud(CloudForm(organized=False)),
    'decimation:=2': cloud(CloudForm(decimation=2)),
    'decimation:=4': cloud(CloudForm(decimation=4)),
    'voxel_size:=0.1': cloud(CloudForm(voxel_m=0.1)),
    'depth, 32FC1': (IMAGE, lambda result: depth_message(make_message, result)),
    'compressedDepth': (COMPRESSED, lambda result: compressed_depth_message(make_message, result)),
}


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Return median and 95th percentile."""
    p50, p95 = np.percentile(values, [50, 95])
    return {'p50': round(float(p50), 1), 'p95': round(float(p95), 1)}


def node_figures(
    backend: str, size: tuple[int, int], rate_hz: float, seconds: float, threads: int
) -> dict[str, Any]:
    """Return latency and rate of the node with a backend.

    Raises:
        TimeoutError: The node answers no pair.
    """
    with (
        tempfile.TemporaryDirectory() as logs,
        rig_and_processes(*size, Path(logs), confidence=False) as (rig, processes),
    ):
        processes.start(NODE, {'backend': backend, 'threads': threads}, large_messages=True)
        rig.wait_until_heard()
        rig.answer(rig.publish())
        stamps: list[int] = []
        begin = time.monotonic()
        first, clouds = 0, 0
        while (elapsed_s := time.monotonic() - begin) < WARM_UP_S + seconds:
            if not first and elapsed_s >= WARM_UP_S:
                first, clouds = len(stamps), rig.clouds
            stamps.append(rig.publish())
            rig.spin_for(begin + len(stamps) / rate_hz - time.monotonic())
        clouds = rig.clouds - clouds
        rig.spin_for(2.0)
        processes.stop(NODE)
    answers = [answer for stamp in stamps[first:] for answer in rig.statuses.get(stamp, [])]
    published = [values for _, text, values in answers if text == 'published']
    if not published:
        raise TimeoutError(f'none of {len(stamps)} pairs was answered with a cloud: {answers[:3]}')
    return {
        'backend': backend,
        'size': '{}x{}'.format(*size),
        'published, Hz': rate_hz,
        'clouds, Hz': round(clouds / seconds, 1),
        'latency, ms': quantiles([float(values['latency [ms]']) for values in published]),
        'stages, median ms': {
            name.removesuffix(' [ms]'): quantiles([float(v[name]) for v in published])['p50']
            for name in published[0]
            if name.endswith(' [ms]') and name in published[-1]
        },
        'pairs sent, published': (len(stamps) - first, len(published)),
    }


def made_up_result() -> Reconstruction:
    """Return the result of a pair of textured ground, 640x480, nearly all of it valid."""
    left, right = timing_pair()
    pair = StereoPair(left, right, calibration(*left.shape[::-1]))
    engine = StereoReconstructor(load_backend('sgbm'), ReconstructionOptions())
    return engine.reconstruct(pair)


def listen(topics: Sequence[tuple[str, str]], received: Any) -> None:
    """Subscribe to topics, (name, type) each; put (name, monotonic time) of each message."""
    rclpy.init()
    node = rclpy.create_node('listener')
    for name, kind in topics:
        node.create_subscription(
            message_class(kind),
            name,
            # The message is a Python object by then.
            lambda message, name=name: received.put((name, time.monotonic())),
            QoSProfile(depth=5),
        )
    rclpy.spin(node)


def cloud_figures(count: int) -> list[dict[str, Any]]:
    """Return bytes and milliseconds of each of `FORMS`, one message at a time.

    Raises:
        TimeoutError: The subscriber is not there.
    """
    os.environ.update({**private_domain(), **large_message_environment()})
    result = made_up_result()
    context = multiprocessing.get_context('spawn')
    received = context.Queue()
    topics = [(f'form_{index}', kind) for index, (kind, _) in enumerate(FORMS.values())]
    listener = context.Process(target=listen, args=(topics, received), daemon=True)
    listener.start()
    rclpy.init()
    node = rclpy.create_node('publisher')
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    figures = []
    try:
        for (name, _), (what, (kind, build)) in zip(topics, FORMS.items(), strict=True):
            publisher = node.create_publisher(message_class(kind), name, QoSProfile(depth=5))
            deadline = time.monotonic() + PATIENCE_S
            while not publisher.get_subscription_count():
                if time.monotonic() > deadline:
                    raise TimeoutError(f'nobody subscribes to {name}')
                executor.spin_once(timeout_sec=0.05)
            time.sleep(0.5)
            times = []
            for _ in range(2 + count):
                moments = [time.monotonic()]
                message = build(result)
                moments.append(time.monotonic())
                publisher.publish(message)
                moments.append(time.monotonic())
                arrival = received.get(timeout=PATIENCE_S)
                assert arrival[0] == name, arrival
                times.append([*np.diff(moments), arrival[1] - moments[1]])
            built, published, arrived = 1e3 * np.median(times[2:], axis=0)
            figures.append(
                {
                    'what': what,
                    'kB': round(len(message.data) / 1e3),
                    'made, ms': round(float(built), 1),
                    'publish, ms': round(float(published), 1),
                    'from publish to the subscriber, ms': round(float(arrived), 1),
                }
            )
            node.destroy_publisher(publisher)
    finally:
        # A node that is told to end may wait for its own threads; this one has nothing to save.
        listener.kill()
        listener.join()
        executor.shutdown()
        rclpy.try_shutdown()
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('what', choices=['node', 'clouds'])
    parser.add_argument('--backend', nargs='+', default=['onnx', 'sgbm'])
    parser.add_argument('--size', default='640x480')
    parser.add_argument('--rate', type=float, default=6.0, help='pairs a second')
    parser.add_argument('--seconds', type=float, default=20.0, help='of each backend')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--count', type=int, default=20, help='messages of each form')
    args = parser.parse_args(arguments)
    width, height = (int(number) for number in args.size.split('x'))
    figures: list[dict[str, Any]] = []
    if args.what == 'clouds':
        figures = cloud_figures(args.count)
    else:
        for backend in args.backend:
            size = width, height
            figures.append(node_figures(backend, size, args.rate, args.seconds, args.threads))
    machine, options = describe_machine(), vars(args)
    print(json.dumps({'machine': machine, 'options': options, 'figures': figures}, indent=2))
    return 0


if __name__ == '__main__':
    sys.exit(main())

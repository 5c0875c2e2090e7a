"""A rig of cameras on a DDS domain of its own, and the nodes that it plays to.

Shared by the programs of this folder. It publishes pairs and collects what is answered for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import os
from pathlib import Path
import time
from typing import Any

import cv2
import numpy as np
from rcl_interfaces.srv import SetParameters
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile

from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.messages import stamp_ns as stamp_of
from lunar_stereo_recon.result_messages import camera_info_message, image_message
from lunar_stereo_recon.ros.node_processes import (
    large_message_environment,
    NodeProcesses,
    private_domain,
)
from lunar_stereo_recon.ros.rclpy_messages import make_message, message_class

NODE = 'reconstruction_node'
FRAME_ID = 'left_optical'
START_NS = 1_000_000_000_000
PERIOD_NS = 100_000_000
VIEWS = 8
# As many as a driver would keep at 200 Hz for a node that is busy for a moment.
IMAGE_DEPTH = 50
PATIENCE_S = 120.0


def views(width: int, height: int) -> list[dict[str, np.ndarray]]:
    """Return pairs of (H, W) uint8 views of textured walls, each at another distance."""
    pairs = []
    for index in range(VIEWS):
        noise = np.random.default_rng(index).standard_normal((height, width + 32))
        texture = cv2.GaussianBlur(noise.astype(np.float32), (0, 0), 1.2)
        grey = np.clip(128 + 100 * texture, 0, 255).astype(np.uint8)
        disparity_px = 4 + 2 * index
        pairs.append(
            {
                'left': grey[:, :width].copy(),
                'right': grey[:, disparity_px : width + disparity_px].copy(),
            }
        )
    return pairs


def calibration(width: int, height: int) -> StereoCalibration:
    """Return the rig's calibration: 0.6 of the width as focal length, 20 cm baseline."""
    center = (width - 1) / 2, (height - 1) / 2
    return StereoCalibration(0.6 * width, 0.6 * width, *center, center[0], 0.2, width, height)


class Rig:
    """The cameras, and who listens to the node.

    Attributes:
        statuses: Answers by stamp, nanoseconds: (level, text, values) in order of arrival.
        health: Newest status on /diagnostics, by task of the node.
        values: What that status counts, by task.
        clouds: Clouds that came.
    """

    def __init__(self, width: int, height: int, confidence: bool = True) -> None:
        """Join the graph; `confidence` subscribes to that image too, not to the cloud alone."""
        self.statuses: dict[int, list[tuple[bytes, str, dict[str, str]]]] = {}
        self.health: dict[str, tuple[bytes, str]] = {}
        self.values: dict[str, dict[str, str]] = {}
        self.clouds = 0
        self.index = 0
        self._views = views(width, height)
        self._calibration = calibration(width, height)
        rclpy.init()
        self.node = rclpy.create_node('rig')
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self.publishers: dict[str, Any] = {}
        self.advertise()
        listen = self.node.create_subscription
        kept = QoSProfile(depth=1000)
        diagnostics = message_class('diagnostic_msgs/msg/DiagnosticArray')
        listen(diagnostics, 'frame_status', self._on_status, kept)
        listen(diagnostics, '/diagnostics', self._on_health, 10)
        cloud, image = (message_class(f'sensor_msgs/msg/{n}') for n in ('PointCloud2', 'Image'))
        listen(cloud, 'points2', self._on_cloud, QoSProfile(depth=5), raw=True)
        if confidence:
            listen(image, 'confidence', lambda data: None, QoSProfile(depth=5), raw=True)

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown()

    def advertise(self) -> None:
        """Make the publishers of images and camera_infos."""
        for side in ('left', 'right'):
            for kind, topic in (('Image', 'image_rect'), ('CameraInfo', 'camera_info')):
                self.publishers[f'{side} {kind}'] = self.node.create_publisher(
                    message_class(f'sensor_msgs/msg/{kind}'),
                    f'{side}/{topic}',
                    QoSProfile(depth=IMAGE_DEPTH),
                )

    def withdraw(self) -> None:
        """Let the publishers go, as a camera driver that ends."""
        for publisher in self.publishers.values():
            self.node.destroy_publisher(publisher)
        self.publishers.clear()

    def publish(
        self,
        stamp_ns: int | None = None,
        sides: tuple[str, ...] = ('left', 'right'),
        infos: bool = True,
        change_info: Callable[[str, Any], None] | None = None,
    ) -> int:
        """Publish a pair and return its stamp, the next of the series where None is given."""
        if stamp_ns is None:
            stamp_ns = START_NS + self.index * PERIOD_NS
        images = self._views[self.index % VIEWS]
        self.index += 1
        for side in sides:
            if infos:
                info = camera_info_message(
                    make_message, self._calibration, stamp_ns, FRAME_ID, right=side == 'right'
                )
                if change_info is not None:
                    change_info(side, info)
                self.publishers[f'{side} CameraInfo'].publish(info)
            image = image_message(make_message, images[side], 'mono8', stamp_ns, FRAME_ID)
            self.publishers[f'{side} Image'].publish(image)
        return stamp_ns

    def spin_until(
        self, done: Callable[[], Any], patience_s: float = PATIENCE_S, what: str = 'it'
    ) -> Any:
        """Spin until `done()` is true and return its value.

        Raises:
            TimeoutError: Patience ended.
        """
        deadline = time.monotonic() + patience_s
        while not (value := done()):
            if time.monotonic() > deadline:
                raise TimeoutError(f'{what} did not happen in {patience_s:g} s')
            self._executor.spin_once(timeout_sec=0.05)
        return value

    def spin_for(self, seconds: float) -> None:
        """Spin for some time."""
        deadline = time.monotonic() + seconds
        while (left_s := deadline - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=min(left_s, 0.05))

    def wait_until_heard(self) -> None:
        """Wait until somebody subscribes to all four inputs."""
        self.spin_until(
            lambda: all(p.get_subscription_count() > 0 for p in self.publishers.values()),
            what='a subscription of the node',
        )
        self.spin_for(0.5)

    def answer(self, stamp_ns: int, patience_s: float = PATIENCE_S) -> str:
        """Return what became of a pair, once that is said.

        Raises:
            TimeoutError: Nothing is said.
        """
        found = self.spin_until(
            lambda: self.statuses.get(stamp_ns), patience_s, f'an answer for the pair {stamp_ns}'
        )
        return found[-1][1]

    def call(self, service: type, name: str, **fields: Any) -> Any:
        """Call a service of the node and return its response.

        Raises:
            TimeoutError: It does not answer.
        """
        client = self.node.create_client(service, f'{NODE}/{name}')
        try:
            self.spin_until(client.service_is_ready, what=f'the service {name}')
            future = client.call_async(service.Request(**fields))
            self.spin_until(future.done, what=f'the answer of {name}')
            return future.result()
        finally:
            self.node.destroy_client(client)

    def set_parameters(self, **values: Any) -> list[Any]:
        """Set parameters of the node; return what it says to each."""
        messages = [Parameter(name, value=v).to_parameter_msg() for name, v in values.items()]
        return self.call(SetParameters, 'set_parameters', parameters=messages).results

    def _on_status(self, message: Any) -> None:
        for status in message.status:
            values = {entry.key: entry.value for entry in status.values}
            self.statuses.setdefault(stamp_of(message), []).append(
                (status.level, status.message, values)
            )

    def _on_health(self, message: Any) -> None:
        for status in message.status:
            if status.name.startswith(f'{NODE}: '):
                task = status.name.removeprefix(f'{NODE}: ')
                self.health[task] = status.level, status.message
                self.values[task] = {entry.key: entry.value for entry in status.values}

    def _on_cloud(self, data: bytes) -> None:
        self.clouds += 1


@contextlib.contextmanager
def rig_and_processes(
    width: int, height: int, logs: Path, confidence: bool = True
) -> Iterator[tuple[Rig, NodeProcesses]]:
    """Give a rig and the starter of nodes, both on a domain of their own."""
    os.environ.update({**private_domain(), **large_message_environment()})
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    with NodeProcesses(os.environ, logs) as processes:
        rig = Rig(width, height, confidence)
        try:
            yield rig, processes
        finally:
            rig.close()

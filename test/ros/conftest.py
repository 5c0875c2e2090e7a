"""Nodes in processes of their own, and a node here that plays the rover's cameras to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
import os
from pathlib import Path
import random
import signal
import subprocess
import sys
import time
from typing import Any

import cv2
import numpy as np
import pytest

from lunar_stereo_recon.datatypes import StereoCalibration
from lunar_stereo_recon.result_messages import camera_info_message, image_message

WIDTH, HEIGHT, DISPARITY_PX = 96, 64, 6
CALIBRATION = StereoCalibration(60.0, 60.0, 47.5, 31.5, 47.5, 0.2, WIDTH, HEIGHT)
START_NS, PERIOD_NS = 1_000_000_000_000, 100_000_000
FRAME_ID = 'left_optical'
# Starting Python and discovery take seconds, on a busy machine far more.
PATIENCE_S = 120.0
DOMAIN = random.randint(1, 101)


def views(seed: int = 0) -> dict[str, np.ndarray]:
    """Return two (H, W) uint8 views of a textured wall at 2 m."""
    noise = np.random.default_rng(seed).standard_normal((HEIGHT, WIDTH + 16))
    texture = cv2.GaussianBlur(noise.astype(np.float32), (0, 0), 1.0)
    grey = np.clip(128 + 90 * texture, 0, 255).astype(np.uint8)
    return {
        'left': grey[:, :WIDTH].copy(),
        'right': grey[:, DISPARITY_PX : WIDTH + DISPARITY_PX].copy(),
    }


class Processes:
    """Nodes of the package as processes; stopped at the end."""

    def __init__(self, directory: Path, namespace: str) -> None:
        self._directory = directory
        self._namespace = namespace
        self._running: list[subprocess.Popen] = []
        self.logs: dict[str, Path] = {}
        self.environment: dict[str, str] = {}

    def start(
        self,
        name: str,
        remap: dict[str, str] | None = None,
        enclave: str = '/',
        **parameters: Any,
    ) -> subprocess.Popen:
        """Start a node in the test's namespace."""
        arguments = ['--ros-args', '--disable-external-lib-logs', '-r', f'__ns:={self._namespace}']
        arguments += ['--enclave', enclave]
        for key, value in parameters.items():
            text = str(value).lower() if isinstance(value, bool) else value
            arguments += ['-p', f'{key}:={text}']
        for source, target in (remap or {}).items():
            arguments += ['-r', f'{source}:={target}']
        self.logs[name] = self._directory / f'{name}_{len(self._running)}.log'
        with self.logs[name].open('wb') as log:
            process = subprocess.Popen(
                [sys.executable, '-m', f'lunar_stereo_recon.ros.{name}', *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    'PYTHONUNBUFFERED': '1',
                    'OMP_NUM_THREADS': '1',
                    **self.environment,
                },
            )
        self._running.append(process)
        return process

    def log(self, name: str) -> str:
        """Return what the newest process of that name has written."""
        return self.logs[name].read_text()

    def stop(self) -> None:
        """Interrupt everything that still runs."""
        for process in self._running:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in self._running:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


class Cameras:
    """Publishes stereo frames and collects whatever the reconstruction node publishes."""

    OUTPUTS = {
        'points2': 'sensor_msgs/msg/PointCloud2',
        'confidence': 'sensor_msgs/msg/Image',
        'confidence/image_mono8': 'sensor_msgs/msg/Image',
        'disparity': 'stereo_msgs/msg/DisparityImage',
        'depth/image': 'sensor_msgs/msg/Image',
        'depth/camera_info': 'sensor_msgs/msg/CameraInfo',
        'frame_status': 'diagnostic_msgs/msg/DiagnosticArray',
        'depth/sigma': 'sensor_msgs/msg/Image',
        'depth/image/compressedDepth': 'sensor_msgs/msg/CompressedImage',
        'hazard': 'nav_msgs/msg/OccupancyGrid',
        'left/image_rect': 'sensor_msgs/msg/Image',
    }
    # The rest wants a calibration of sigma, is made for who asks alone, wants to know gravity, or
    # is there where the node rectifies.
    USUAL_OUTPUTS = tuple(OUTPUTS)[:-4]

    views = staticmethod(views)

    def __init__(self, namespace: str, enclave: str = '/') -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor

        from lunar_stereo_recon.ros.rclpy_messages import make_message

        self._make = make_message
        self._context = rclpy.Context()
        arguments = ['--ros-args', '--enclave', enclave]
        rclpy.init(args=arguments, context=self._context, domain_id=DOMAIN)
        self.node = rclpy.create_node('cameras', namespace=namespace, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self.received: dict[str, list[Any]] = defaultdict(list)
        self.publishers: dict[str, Any] = {}
        self.subscriptions: dict[str, Any] = {}
        self.changed: set[str] = set()
        self._index = 0

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown()
        self.node.destroy_node()
        self._context.try_shutdown()

    def advertise(
        self,
        reliable: bool = True,
        image: str = 'Image',
        suffix: str = '',
        names: dict[str, str] | None = None,
        infos: bool = True,
        image_name: str = 'image_rect',
    ) -> None:
        """Make the input publishers; `names` gives each side's namespace."""
        from rclpy.qos import QoSProfile, ReliabilityPolicy

        from lunar_stereo_recon.ros.rclpy_messages import message_class

        policy = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        qos = QoSProfile(depth=10, reliability=policy)
        for side, name in (names or {'left': 'left', 'right': 'right'}).items():
            self.publishers[f'{side} image'] = self.node.create_publisher(
                message_class(f'sensor_msgs/msg/{image}'), f'{name}/{image_name}{suffix}', qos
            )
            if infos:
                self.publishers[f'{side} info'] = self.node.create_publisher(
                    message_class('sensor_msgs/msg/CameraInfo'), f'{name}/camera_info', qos
                )

    def listen(self, *topics: str, reliable: bool = True) -> None:
        """Subscribe to results, the usual ones where none is named."""
        from rclpy.qos import QoSProfile, ReliabilityPolicy

        from lunar_stereo_recon.ros.rclpy_messages import message_class

        policy = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        for topic in topics or self.USUAL_OUTPUTS:
            self.subscriptions[topic] = self.node.create_subscription(
                message_class(self.OUTPUTS[topic]),
                topic,
                self.received[topic].append,
                QoSProfile(depth=50, reliability=policy),
            )

    def stop_listening(self, *topics: str) -> None:
        """Unsubscribe from results."""
        for topic in topics:
            self.node.destroy_subscription(self.subscriptions.pop(topic))

    def withdraw(self) -> None:
        """Destroy the input publishers."""
        for publisher in self.publishers.values():
            self.node.destroy_publisher(publisher)
        self.publishers.clear()

    def listen_diagnostics(self) -> None:
        """Collect what this test's node says on /diagnostics; others speak there too."""
        from lunar_stereo_recon.ros.rclpy_messages import message_class

        own = self.node.get_namespace() + '/'
        self.node.create_subscription(
            message_class('diagnostic_msgs/msg/DiagnosticArray'),
            '/diagnostics',
            lambda message: self.received['diagnostics'].extend(
                status for status in message.status if status.hardware_id.startswith(own)
            ),
            10,
        )

    def spin_until(self, done: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
        """Spin until `done()` is true and return its value; fail when patience ends."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            value = done()
            if value:
                return value
            self._executor.spin_once(timeout_sec=0.05)
        raise AssertionError(f'not in {patience_s} s; received {self.counts()}')

    def spin_for(self, seconds: float) -> None:
        """Spin for some time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._executor.spin_once(timeout_sec=0.05)

    def counts(self) -> dict[str, int]:
        """Return how many messages came on each topic."""
        return {topic: len(messages) for topic, messages in self.received.items()}

    def wait_until_heard(self) -> None:
        """Wait until somebody subscribes to all four inputs."""
        self.spin_until(
            lambda: all(p.get_subscription_count() > 0 for p in self.publishers.values())
        )
        self.spin_for(0.3)

    def wait_until_served(self, topic: str) -> None:
        """Publish frames until the node knows that this topic is listened to."""

        def came() -> bool:
            self.answer(self.publish())
            return bool(self.received[topic])

        self.spin_until(came)

    def publish(self, stamp_ns: int | None = None, **changes: Any) -> int:
        """Publish one frame and return its stamp.

        Args:
            stamp_ns: Stamp; the next of the series where None.
            changes: left, right (arrays), encoding, right_offset_ns, right_tx, infos, sides;
                change_info(side, info) changes a camera_info.
        """
        if stamp_ns is None:
            stamp_ns = START_NS + self._index * PERIOD_NS
            self._index += 1
        images = views()
        for side in changes.get('sides', ('left', 'right')):
            own = stamp_ns + (changes.get('right_offset_ns', 0) if side == 'right' else 0)
            values = changes.get(side, images[side])
            encoding = changes.get('encoding', 'mono8')
            message = image_message(self._make, values, encoding, own, FRAME_ID)
            if changes.get('infos', True):
                info = camera_info_message(
                    self._make, CALIBRATION, own, FRAME_ID, right=side == 'right'
                )
                if side == 'right' and 'right_tx' in changes:
                    info.p[3] = changes['right_tx']
                if 'change_info' in changes:
                    changes['change_info'](side, info)
                self.publishers[f'{side} info'].publish(info)
            self.publishers[f'{side} image'].publish(changes.get(f'{side}_message', message))
        return stamp_ns

    def image(self, side: str, stamp_ns: int) -> Any:
        """Return the image message of a side as `publish` sends it."""
        return image_message(self._make, views()[side], 'mono8', stamp_ns, FRAME_ID)

    def answer(self, stamp_ns: int) -> Any:
        """Wait for the frame_status of a frame and return its DiagnosticStatus."""
        from lunar_stereo_recon.messages import stamp_ns as stamp_of

        def find() -> Any:
            answers = self.received['frame_status']
            return next((a.status[0] for a in answers if stamp_of(a) == stamp_ns), None)

        return self.spin_until(find)

    def result(self, topic: str, stamp_ns: int) -> Any:
        """Wait for the message of a topic with a stamp."""
        from lunar_stereo_recon.messages import stamp_ns as stamp_of

        return self.spin_until(
            lambda: next((m for m in self.received[topic] if stamp_of(m) == stamp_ns), None)
        )

    def call(self, service: type, name: str, **fields: Any) -> Any:
        """Call a service of the node and return its response."""
        client = self.node.create_client(service, f'reconstruction_node/{name}')
        self.spin_until(client.service_is_ready)
        future = client.call_async(service.Request(**fields))
        self.spin_until(future.done)
        self.node.destroy_client(client)
        return future.result()

    def set_parameters(self, **values: Any) -> list[Any]:
        """Call the node's set_parameters service and return its results."""
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter

        self.changed |= values.keys()
        messages = [Parameter(name, value=v).to_parameter_msg() for name, v in values.items()]
        return self.call(SetParameters, 'set_parameters', parameters=messages).results


@pytest.fixture(scope='session', autouse=True)
def private_graph() -> Iterator[None]:
    """Keep these nodes to themselves: a domain and this machine only."""
    before = dict(os.environ)
    os.environ['ROS_DOMAIN_ID'] = str(DOMAIN)
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    yield
    os.environ.clear()
    os.environ.update(before)


def new_namespace() -> str:
    """Return a namespace that no other test has, even on the same domain."""
    return f'/test_{random.getrandbits(40):x}'


@pytest.fixture
def namespace() -> str:
    return new_namespace()


@pytest.fixture
def processes(tmp_path, namespace) -> Iterator[Processes]:
    group = Processes(tmp_path, namespace)
    yield group
    group.stop()


@pytest.fixture
def join(namespace) -> Iterator[Callable[..., Cameras]]:
    """Return a function that joins the graph under an enclave; all leave in the end."""
    pytest.importorskip('rclpy')
    joined: list[Cameras] = []

    def joining(enclave: str = '/') -> Cameras:
        joined.append(Cameras(namespace, enclave))
        return joined[-1]

    yield joining
    for rig in joined:
        rig.close()


@pytest.fixture
def cameras(join) -> Cameras:
    return join()


@pytest.fixture(scope='module')
def shared_node(tmp_path_factory, private_graph) -> Iterator[tuple[Processes, Cameras]]:
    """Start a node that runs through a module's tests, with everything subscribed."""
    pytest.importorskip('rclpy')
    namespace = new_namespace()
    group = Processes(tmp_path_factory.mktemp('shared_node'), namespace)
    rig = Cameras(namespace)
    rig.advertise()
    rig.listen()
    rig.listen_diagnostics()
    root = tmp_path_factory.getbasetemp()
    group.start('reconstruction_node', backend='sgbm', threads=1, save_root=root)
    rig.wait_until_heard()
    yield group, rig
    rig.close()
    group.stop()


@pytest.fixture
def running(shared_node) -> Iterator[Cameras]:
    """Return the shared node's cameras: nothing received yet, parameters as by default."""
    from lunar_stereo_recon.ros.parameters import ReconstructionParameters

    _, rig = shared_node
    for messages in rig.received.values():
        messages.clear()
    yield rig
    defaults = ReconstructionParameters()
    rig.set_parameters(**{name: getattr(defaults, name) for name in sorted(rig.changed)})
    rig.changed.clear()


@pytest.fixture
def node_log(shared_node) -> Callable[[], str]:
    """Return a function that gives what the shared node has written since the test began."""
    group, _ = shared_node
    before = len(group.log('reconstruction_node'))
    return lambda: group.log('reconstruction_node')[before:]

from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock, ROSClock
from rclpy.context import Context
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from rclpy.timer import Timer

class TopicEndpointInfo:
    @property
    def qos_profile(self) -> QoSProfile: ...

class Node:
    @property
    def executor(self) -> SingleThreadedExecutor | None: ...
    def __init__(
        self,
        node_name: str,
        *,
        context: Context | None = None,
        namespace: str | None = None,
        parameter_overrides: list[Parameter] | None = None,
        **kwargs: Any,
    ) -> None: ...
    def get_name(self) -> str: ...
    def get_fully_qualified_name(self) -> str: ...
    def get_logger(self) -> RcutilsLogger: ...
    def get_clock(self) -> ROSClock: ...
    def resolve_topic_name(self, topic: str, *, only_expand: bool = False) -> str: ...
    def count_publishers(self, topic_name: str) -> int: ...
    def get_publishers_info_by_topic(self, topic_name: str) -> list[TopicEndpointInfo]: ...
    def declare_parameter(self, name: str, value: Any, descriptor: Any) -> Parameter: ...
    # The result is a rcl_interfaces/msg/SetParametersResult.
    def add_on_set_parameters_callback(
        self, callback: Callable[[list[Parameter]], Any]
    ) -> None: ...
    def create_publisher(
        self, msg_type: type[Any], topic: str, qos_profile: QoSProfile | int
    ) -> Publisher: ...
    # A callback of two arguments gets the message's times too.
    def create_subscription(
        self,
        msg_type: type[Any],
        topic: str,
        callback: Callable[[Any], None] | Callable[[Any, Any], None],
        qos_profile: QoSProfile | int,
        *,
        qos_overriding_options: QoSOverridingOptions | None = None,
        event_callbacks: SubscriptionEventCallbacks | None = None,
        raw: bool = False,
    ) -> Subscription: ...
    # Requests, responses and results of a service are its messages.
    def create_service(
        self,
        srv_type: type[Any],
        srv_name: str,
        callback: Callable[[Any, Any], Any],
        *,
        callback_group: CallbackGroup | None = None,
    ) -> object: ...
    def create_timer(
        self, timer_period_sec: float, callback: Callable[[], None], *, clock: Clock | None = None
    ) -> Timer: ...
    def destroy_subscription(self, subscription: Subscription) -> bool: ...
    def destroy_timer(self, timer: Timer) -> bool: ...
    def destroy_node(self) -> None: ...

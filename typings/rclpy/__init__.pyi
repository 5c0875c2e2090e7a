# Types of what this package uses of rclpy, and of no more: rclpy's own annotations differ from
# release to release and leave much open. Messages are Any, whatever their package.

from collections.abc import Sequence
from typing import Any

from rclpy import logging as logging
from rclpy.context import Context
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

def init(
    *,
    args: Sequence[str] | None = None,
    context: Context | None = None,
    domain_id: int | None = None,
    signal_handler_options: SignalHandlerOptions | None = None,
) -> None: ...
def try_shutdown(*, context: Context | None = None) -> None: ...
def create_node(
    node_name: str, *, context: Context | None = None, namespace: str | None = None, **kwargs: Any
) -> Node: ...
def spin_once(node: Node, *, timeout_sec: float | None = None) -> None: ...

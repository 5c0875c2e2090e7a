"""What callbacks of a lifecycle node are wrapped in, so that none fails silently or ends it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
import functools
import traceback
from typing import Any

from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn

from lunar_stereo_recon.errors import ReconError


def transition(
    callback: Callable[[Any, LifecycleState], TransitionCallbackReturn],
) -> Callable[[Any, LifecycleState], TransitionCallbackReturn]:
    """Log what a transition raises: rclpy turns every exception into a silent return code."""

    @functools.wraps(callback)
    def logged(node: Any, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return callback(node, state)
        except ReconError as error:
            node.get_logger().error(f'{callback.__name__}: {error}')
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            node.get_logger().fatal(f'{callback.__name__}: {type(error).__name__}: {error}')
            raise

    return logged


def answered(
    callback: Callable[[Any, Any, Any], Coroutine[Any, Any, Any]],
) -> Callable[[Any, Any, Any], Coroutine[Any, Any, Any]]:
    """Answer a request whatever it raises: without an answer the caller waits without end."""

    @functools.wraps(callback)
    async def answering(node: Any, request: Any, response: Any) -> Any:
        try:
            return await callback(node, request, response)
        except Exception as error:  # noqa: BLE001 (no request may end the node)
            node.get_logger().error(f'{callback.__name__} failed:\n{traceback.format_exc()}')
            response.success = False
            response.message = f'failed: {type(error).__name__}: {error}'
            return response

    return answering

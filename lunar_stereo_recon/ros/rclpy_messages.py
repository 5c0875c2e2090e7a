"""Messages of rclpy from plain fields, and the status message that follows each frame.

How images become a StereoPair is in `lunar_stereo_recon.messages`, how a Reconstruction becomes
messages in `lunar_stereo_recon.result_messages`; both serve DDS and bags alike.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
import functools
import importlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lunar_stereo_recon.result_messages import header

# DiagnosticStatus levels.
OK, WARN, ERROR = b'\x00', b'\x01', b'\x02'
# Sequences of these are copied as they are; each element of a list would be checked in Python.
ARRAY_CODES = {np.dtype(np.int8): 'b', np.dtype(np.float32): 'f'}


@functools.cache
def message_class(type_name: str) -> type:
    """Return the rclpy class of a type named as 'sensor_msgs/msg/Image'.

    Raises:
        ModuleNotFoundError: The message package is not installed.
        AttributeError: The package has no such message.
    """
    package, kind, name = type_name.split('/')
    return getattr(importlib.import_module(f'{package}.{kind}'), name)


def make_message(type_name: str, **fields: Any) -> Any:
    """Make an rclpy message; the `MakeMessage` of DDS. Arrays may be NumPy's."""
    message = message_class(type_name)()
    for name, value in fields.items():
        setattr(message, name, _field_value(value))
    return message


def diagnostic_status(
    level: bytes, name: str, text: str, values: Mapping[str, Any], hardware_id: str = 'none'
) -> Any:
    """Return a DiagnosticStatus with `values` as text."""
    return make_message(
        'diagnostic_msgs/msg/DiagnosticStatus',
        level=level,
        name=name,
        message=text,
        hardware_id=hardware_id,
        values=[
            make_message('diagnostic_msgs/msg/KeyValue', key=key, value=_text(value))
            for key, value in values.items()
        ],
    )


def diagnostic_array(stamp_ns: int, frame_id: str, statuses: list[Any]) -> Any:
    """Return a DiagnosticArray."""
    return make_message(
        'diagnostic_msgs/msg/DiagnosticArray',
        header=header(make_message, stamp_ns, frame_id),
        status=statuses,
    )


class MessageBuffer:
    """Memory for a message's bytes, kept from frame to frame.

    A cloud has 6 MB: asking the system for them anew costs more than filling them. Publishing
    serializes at once, so the buffer is free again when `publish` returns.
    """

    def __init__(self) -> None:
        self._bytes = array('B')

    def floats(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the buffer as float32 of a shape; what was in it before is lost."""
        size = 4 * math.prod(shape)
        if len(self._bytes) != size:
            self._bytes = array('B', bytes(size))
        return np.frombuffer(self._bytes, np.float32).reshape(shape)


def _field_value(value: Any) -> Any:
    """Return NumPy arrays as what rclpy copies fastest: array.array where it can, else a list."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype in ARRAY_CODES:
        return array(ARRAY_CODES[value.dtype], np.ascontiguousarray(value).tobytes())
    if value.dtype != np.uint8:
        return value.tolist()
    owner = value
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    if isinstance(owner, array) and owner.typecode == 'B' and len(owner) == value.size:
        return owner
    data = array('B')
    data.frombytes(np.ascontiguousarray(value).data)
    return data


def _text(value: Any) -> str:
    return f'{value:.6g}' if isinstance(value, float) else str(value)

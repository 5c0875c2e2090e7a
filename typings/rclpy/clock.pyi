from enum import IntEnum

from rclpy.time import Time

class ClockType(IntEnum):
    ROS_TIME = 1
    SYSTEM_TIME = 2
    STEADY_TIME = 3

class Clock:
    def __init__(self, *, clock_type: ClockType = ...) -> None: ...
    def now(self) -> Time: ...

# What a node returns.
class ROSClock(Clock):
    @property
    def ros_time_is_active(self) -> bool: ...

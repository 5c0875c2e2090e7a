from collections.abc import Iterable

from rclpy.qos import QoSPolicyKind

class QoSOverridingOptions:
    def __init__(self, policy_kinds: Iterable[QoSPolicyKind]) -> None: ...
    @classmethod
    def with_default_policies(cls) -> QoSOverridingOptions: ...

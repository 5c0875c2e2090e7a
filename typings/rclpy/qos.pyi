from enum import IntEnum

class HistoryPolicy(IntEnum):
    SYSTEM_DEFAULT = 0
    KEEP_LAST = 1
    KEEP_ALL = 2
    UNKNOWN = 3

class ReliabilityPolicy(IntEnum):
    SYSTEM_DEFAULT = 0
    RELIABLE = 1
    BEST_EFFORT = 2
    UNKNOWN = 3
    BEST_AVAILABLE = 4

class DurabilityPolicy(IntEnum):
    SYSTEM_DEFAULT = 0
    TRANSIENT_LOCAL = 1
    VOLATILE = 2
    UNKNOWN = 3
    BEST_AVAILABLE = 4

class QoSPolicyKind(IntEnum):
    DURABILITY = 2
    HISTORY = 32
    DEPTH = 256
    RELIABILITY = 16

class QoSProfile:
    def __init__(
        self,
        *,
        depth: int = ...,
        history: HistoryPolicy = ...,
        reliability: ReliabilityPolicy = ...,
        durability: DurabilityPolicy = ...,
    ) -> None: ...
    depth: int
    history: HistoryPolicy
    reliability: ReliabilityPolicy
    durability: DurabilityPolicy

qos_profile_sensor_data: QoSProfile

class QoSCompatibility(IntEnum):
    OK = 0
    WARNING = 1
    ERROR = 2

def qos_check_compatible(
    publisher_qos: QoSProfile, subscription_qos: QoSProfile
) -> tuple[QoSCompatibility, str]: ...
def qos_policy_name_from_kind(policy_kind: QoSPolicyKind | int) -> str: ...

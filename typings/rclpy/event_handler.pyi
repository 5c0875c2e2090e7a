from collections.abc import Callable
from typing import Any

class PublisherEventCallbacks:
    def __init__(self, *, incompatible_qos: Callable[[Any], None] | None = None) -> None: ...

class SubscriptionEventCallbacks:
    def __init__(
        self,
        *,
        incompatible_qos: Callable[[Any], None] | None = None,
        message_lost: Callable[[Any], None] | None = None,
    ) -> None: ...

from enum import IntEnum

class SignalHandlerOptions(IntEnum):
    NO = 0
    ALL = 3

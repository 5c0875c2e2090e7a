"""Sends what the core logs through Python's logging to the log of a node."""

from __future__ import annotations

import logging

from rclpy.impl.rcutils_logger import RcutilsLogger

import lunar_stereo_recon


class NodeLogHandler(logging.Handler):
    """Hands records to a logger of rclpy."""

    def __init__(self, logger: RcutilsLogger) -> None:
        """Take the logger of a node."""
        super().__init__(logging.INFO)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record with its severity."""
        text = record.getMessage()
        # rclpy ties a severity to the line of code: each needs its own.
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        else:
            self._logger.info(text)


def log_core_to(logger: RcutilsLogger) -> logging.Handler:
    """Begin to hand over what the package logs, from INFO on; return the handler."""
    core = logging.getLogger(lunar_stereo_recon.__name__)
    core.setLevel(logging.INFO)
    handler = NodeLogHandler(logger)
    core.addHandler(handler)
    return handler


def stop_logging_core(handler: logging.Handler) -> None:
    """End what `log_core_to` began."""
    logging.getLogger(lunar_stereo_recon.__name__).removeHandler(handler)

"""Describes the machine of a measurement; printed beside every time and rate."""

from __future__ import annotations

import os
from pathlib import Path
import platform


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def describe_machine() -> dict[str, str | int]:
    """Return processor, usable cores, operating system and Python version."""
    return {
        'processor': _processor_name(),
        'cores': usable_cores(),
        'system': f'{platform.system()} {platform.release()} {platform.machine()}',
        'python': platform.python_version(),
    }


def _processor_name() -> str:
    cpu_info = Path('/proc/cpuinfo')
    if cpu_info.is_file():
        for line in cpu_info.read_text(encoding='utf-8', errors='replace').splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()

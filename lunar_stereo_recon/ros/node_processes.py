"""Runs nodes of this package as processes of their own, on an unused DDS domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import os
from pathlib import Path
import random
import signal
import subprocess
import sys
from types import TracebackType

from lunar_stereo_recon.errors import ReconError

# Fast DDS settings for a process that publishes clouds; the file says why.
LARGE_MESSAGES_PROFILE = Path(__file__).with_name('fastdds_large_messages.xml')
# What Fast DDS 2 (Humble, Jazzy) reads; a profile that the user has set stays.
PROFILE_VARIABLE = 'FASTRTPS_DEFAULT_PROFILES_FILE'
# Its name since Fast DDS 3 (Kilted and newer).
NEW_PROFILE_VARIABLE = 'FASTDDS_DEFAULT_PROFILES_FILE'
# What a user may have configured Zenoh with.
ZENOH_VARIABLES = ('ZENOH_CONFIG_OVERRIDE', 'ZENOH_SESSION_CONFIG_URI')
ZENOH_SHARED_MEMORY = 'transport/shared_memory/enabled=true'
# Above 101, DDS ports reach into those that Linux gives to outgoing connections.
LAST_DOMAIN_ID = 101
LOG_TAIL_LINES = 15
STOP_TIMEOUT_S = 20.0

ParameterValue = str | int | float | bool | list[str]


def large_message_environment() -> dict[str, str]:
    """Return the variables of a process that publishes images or clouds; what is set stays.

    Fast DDS gets its profile. Zenoh, where it is chosen, gets shared memory: over TCP it drops
    messages of megabytes that the listener does not take at once. CycloneDDS needs nothing.
    """
    given = os.environ.get(PROFILE_VARIABLE) or os.environ.get(NEW_PROFILE_VARIABLE)
    profile = given or str(LARGE_MESSAGES_PROFILE)
    variables = {
        name: os.environ.get(name, profile) for name in (PROFILE_VARIABLE, NEW_PROFILE_VARIABLE)
    }
    zenoh = os.environ.get('RMW_IMPLEMENTATION') == 'rmw_zenoh_cpp'
    if zenoh and not any(os.environ.get(name) for name in ZENOH_VARIABLES):
        variables[ZENOH_VARIABLES[0]] = ZENOH_SHARED_MEMORY
    return variables


def private_domain() -> dict[str, str]:
    """Return the environment of processes that see one another and nothing beyond this machine."""
    return {
        **os.environ,
        'ROS_DOMAIN_ID': str(random.randint(1, LAST_DOMAIN_ID)),
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
        'PYTHONUNBUFFERED': '1',
    }


class NodeProcesses:
    """Starts nodes and ends them all when left. A context manager.

    Each node's output goes to `<log_directory>/<name>.log`.
    """

    def __init__(self, environment: Mapping[str, str], log_directory: Path) -> None:
        self._environment = dict(environment)
        self._log_directory = log_directory
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._shown: dict[str, int] = {}

    def __enter__(self) -> NodeProcesses:
        self._log_directory.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in self._processes.values():
            _end(process)

    def start(
        self,
        name: str,
        parameters: Mapping[str, ParameterValue],
        remappings: Mapping[str, str] | None = None,
        *,
        large_messages: bool = False,
    ) -> None:
        """Start `lunar_stereo_recon.ros.<name>`.

        Args:
            name: Module of the node.
            parameters: ROS parameters.
            remappings: Topic of the node to topic on the wire.
            large_messages: Whether the node publishes clouds.
        """
        environment = dict(self._environment)
        if large_messages:
            environment = {**large_message_environment(), **environment}
        # The output goes to our log; ROS need not write a second one.
        arguments = ['--ros-args', '--disable-external-lib-logs']
        for key, value in parameters.items():
            arguments += ['-p', f'{key}:={_yaml(value)}']
        for source, target in (remappings or {}).items():
            arguments += ['-r', f'{source}:={target}']
        with self._log_path(name).open('wb') as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, '-m', f'lunar_stereo_recon.ros.{name}', *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A Ctrl-C in the terminal must not reach the nodes before they are asked to end.
                start_new_session=True,
            )

    def has(self, name: str) -> bool:
        """Say whether a node was ever started."""
        return name in self._processes

    def status(self, name: str) -> int | None:
        """Return the exit status of a node; None while it runs."""
        return self._processes[name].poll()

    def pid(self, name: str) -> int:
        """Return the process number of a node."""
        return self._processes[name].pid

    def wait(self, name: str) -> int:
        """Return the exit status of a node that is about to end."""
        return _end(self._processes[name])

    def log(self, name: str) -> str:
        """Return what a node has written."""
        return self._log_path(name).read_text(encoding='utf-8', errors='replace')

    def check_running(self, names: Sequence[str]) -> None:
        """Raise when a node that should run has ended.

        Raises:
            ReconError: With the node's last log lines.
        """
        for name in names:
            if self._processes[name].poll() is not None:
                raise self.failure(name, f'ended with status {self._processes[name].returncode}')

    def stop(self, name: str) -> int:
        """Interrupt a node, wait for its end, return its exit status."""
        process = self._processes[name]
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        return _end(process)

    def new_lines(self, name: str) -> list[str]:
        """Return the lines that a node has finished since the last call."""
        text = self._log_path(name).read_text(encoding='utf-8', errors='replace')
        whole = text[: text.rfind('\n') + 1]
        before, self._shown[name] = self._shown.get(name, 0), len(whole)
        return whole[before:].splitlines()

    def failure(self, name: str, what: str) -> ReconError:
        """Return an error about a node that quotes the end of its log."""
        path = self._log_path(name)
        lines = self.log(name).splitlines()
        tail = '\n'.join(f'  {line}' for line in lines[-LOG_TAIL_LINES:]) or '  (empty)'
        return ReconError(f'{name} {what}; its log {path} ends with\n{tail}')

    def _log_path(self, name: str) -> Path:
        return self._log_directory / f'{name}.log'


def _end(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process that was asked to end; insist where it does not."""
    try:
        return process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _yaml(value: ParameterValue) -> str:
    """Return a parameter value as ROS arguments write it; quoted text stays text."""
    if isinstance(value, bool):
        return 'true' if value else 'false'
    if isinstance(value, list):
        return f'[{", ".join(_yaml(item) for item in value)}]'
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value)

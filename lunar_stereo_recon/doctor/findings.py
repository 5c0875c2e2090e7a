"""What the doctor says: one finding for each thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
import enum

from lunar_stereo_recon.visualize import RgbImage


class Severity(enum.IntEnum):
    """How bad a finding is; from `WARNING` on it is a complaint."""

    GOOD = 0
    NOTE = 1
    WARNING = 2
    FAULT = 3


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What it is about, one or two words.
        severity: How bad it is.
        measured: What was seen, with units.
        advice: What to do; empty where nothing has to be done.
    """

    name: str
    severity: Severity
    measured: str
    advice: str = ''


@dataclass(frozen=True)
class Picture:
    """A picture of the report.

    Attributes:
        title: A few words.
        caption: What it shows.
        image: (H, W, 3) uint8 RGB.
    """

    title: str
    caption: str
    image: RgbImage


@dataclass(frozen=True)
class Report:
    """Everything that was found, the worst first.

    Attributes:
        source: Bag or files.
        facts: One line about the rig.
        findings: Sorted by severity, the worst first.
        pictures: In the order they are shown.
    """

    source: str
    facts: str
    findings: list[Finding]
    pictures: list[Picture]

    @property
    def worst(self) -> Severity:
        """Return the severity of the worst finding."""
        return max((finding.severity for finding in self.findings), default=Severity.GOOD)

    def of(self, name: str) -> list[Finding]:
        """Return the findings of one name."""
        return [finding for finding in self.findings if finding.name == name]

"""Define the options of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from totalspineseg_server.cohort.outputs import FOLDERS
from totalspineseg_server.numbering.evidence import Pin
from totalspineseg_server.numbering.naming import Method


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that affect its results.

    Attributes:
        iso: Whether results stay on the 1 mm grid instead of the grid of the input image.
        step1: Whether to stop after step 1.
        keep: Output folders to write.
        method: Method that names the levels.
        pins: Levels that a reader has pinned (for a single scan).
    """

    iso: bool = False
    step1: bool = False
    keep: tuple[str, ...] = FOLDERS
    method: Method = "chain"
    pins: tuple[Pin, ...] = ()

    def as_json(self) -> dict[str, object]:
        """Return the options for the record of a scan, which is processed again if they change."""
        return {
            "iso": self.iso,
            "step1": self.step1,
            "keep": list(self.keep),
            "method": self.method,
            "pins": [[pin.code, *pin.point_mm] for pin in self.pins],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "RunOptions":
        """Return the options from the values of ``as_json``."""
        pins = tuple(Pin(code, (x, y, z)) for code, x, y, z in content["pins"])
        return cls(content["iso"], content["step1"], tuple(content["keep"]), content["method"], pins)

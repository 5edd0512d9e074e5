"""Read what a request asks for: the settings, and the tag under which its result is saved.

Each setting has a default, because some clients send only changed values.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

from totalspineseg_server.anatomy import STRUCTURES, WIRE_ID, Kind
from totalspineseg_server.corrections.correction_store import READER_TAGS, is_safe_tag
from totalspineseg_server.errors import SettingError
from totalspineseg_server.infers import infers_messages
from totalspineseg_server.numbering.chain import Pin
from totalspineseg_server.requested import choice, text
from totalspineseg_server.segments import ARROW, level_at, renamed_level

logger = logging.getLogger(__name__)

Grid = Literal["input", "iso"]

STRUCTURE_CHOICES: Final[Mapping[str, tuple[Kind, ...]]] = {
    "all": tuple(Kind),
    "vertebrae": (Kind.VERTEBRA, Kind.SACRUM),
    "discs": (Kind.DISC,),
    "vertebrae and discs": (Kind.VERTEBRA, Kind.SACRUM, Kind.DISC),
    "cord and canal": (Kind.CORD, Kind.CANAL),
}
CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "output_grid": ("input", "iso"),
    "structures": tuple(STRUCTURE_CHOICES),
    "numbering": ("chain", "iterative"),
    "other_series": ("use", "ignore"),
}
NAMES_SETTING: Final = "doubtful_names"
DoubtfulNames = Literal["marked", "plain"]
DOUBTFUL_NAMES: Final[tuple[DoubtfulNames, ...]] = get_args(DoubtfulNames)
"""How a reply names doubtful levels: "L4 ?", or like all others. The first is the default."""
TEXTS: Final = ("localizer", "pin")
DISPLAYED: Final = ("output_grid", "codes")
"""Settings in a record that change what a reply shows, and not what is computed."""
EXTENSIONS: Final = (".nrrd", ".nii.gz", ".nii")
DEFAULT_EXTENSION: Final = ".nrrd"
"""File ending that 3D Slicer asks for."""
MAX_PINS: Final = 60
"""Largest number of pins, more than there are structures."""


@dataclass(frozen=True)
class Rename:
    """A level that a reader pins by the name that it had in an earlier result.

    Attributes:
        was: Its code in that result.
        now: Its right code.
        point_mm: A point in it, RAS mm; None until it was looked up in that result.
    """

    was: int
    now: int
    point_mm: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Settings:
    """Settings of one request.

    Attributes:
        localizer: Id of another image of the same patient that has a label; empty for none.
        output_grid: Grid of the result: that of the image, or the 1 mm grid.
        codes: Codes of the structures that the result should have.
        numbering: Method that names the levels.
        other_series: Whether named series of the same patient count as evidence.
        pins: Levels the reader pins by a point.
        extension: File ending of the result.
        renames: Levels the reader pins by their earlier names; once these were looked up, they are among the pins.
        marks_doubt: Whether names of doubtful levels have a mark in the reply. It changes no label, so it is not
            recorded.
    """

    localizer: str
    output_grid: Grid
    codes: frozenset[int]
    numbering: Literal["chain", "iterative"]
    other_series: bool
    pins: tuple[Pin, ...]
    extension: str
    renames: tuple[Rename, ...] = ()
    marks_doubt: bool = True

    def as_json(self) -> dict[str, Any]:
        """Return the settings for the record of the prediction."""
        return {
            "localizer": self.localizer,
            "output_grid": self.output_grid,
            "codes": sorted(self.codes),
            "numbering": self.numbering,
            "other_series": self.other_series,
            "pins": [{"code": pin.code, "point_mm": list(pin.point_mm)} for pin in self.pins],
            **({"renames": [asdict(rename) for rename in self.renames]} if self.renames else {}),
        }


def doubtful_names_of(text: str) -> DoubtfulNames:
    """Return how a server names doubtful levels by default; the project's default for "".

    Raises:
        SettingError: The text is not one of the choices.
    """
    chosen = choice({NAMES_SETTING: text}, NAMES_SETTING, DOUBTFUL_NAMES)
    return "plain" if chosen == "plain" else "marked"


def client_config(doubtful_names: DoubtfulNames = "marked") -> dict[str, Any]:
    """Return the settings for clients: a list is a choice with its default first, a text is free.

    Args:
        doubtful_names: The server's default.
    """
    choices = {**CHOICES, NAMES_SETTING: _default_first(doubtful_names)}
    return {**{name: list(values) for name, values in choices.items()}, **dict.fromkeys(TEXTS, "")}


def _default_first(doubtful_names: DoubtfulNames) -> tuple[str, ...]:
    return tuple(sorted(DOUBTFUL_NAMES, key=lambda names: names != doubtful_names))


def read_settings(request: Mapping[str, Any], doubtful_names: DoubtfulNames = "marked") -> Settings:
    """Return the settings of a request, with defaults for those that it leaves out.

    Args:
        request: The request. Not modified.
        doubtful_names: The server's default.

    Raises:
        SettingError: A setting has an invalid value.
    """
    chosen = {name: choice(request, name, choices) for name, choices in CHOICES.items()}
    localizer, pin = (text(request, name) for name in TEXTS)
    pins, renames = read_pins(pin)
    return Settings(
        localizer=localizer,
        output_grid="iso" if chosen["output_grid"] == "iso" else "input",
        codes=_codes(chosen["structures"], request.get("label_prompt")),
        numbering="iterative" if chosen["numbering"] == "iterative" else "chain",
        other_series=chosen["other_series"] == "use",
        pins=pins,
        extension=_extension(request.get("result_extension")),
        renames=renames,
        marks_doubt=choice(request, NAMES_SETTING, _default_first(doubtful_names)) == "marked",
    )


def _codes(structures: str, prompt: object) -> frozenset[int]:
    codes = frozenset(s.code for s in STRUCTURES if s.kind in STRUCTURE_CHOICES[structures])
    if not prompt:
        return codes
    known = {wire_id: code for code, wire_id in WIRE_ID.items()}
    if not isinstance(prompt, list) or any(not isinstance(i, int) or i not in known for i in prompt):
        raise SettingError(f"label_prompt must be a list of published label ids, got {prompt!r}")
    return codes & frozenset(known[i] for i in prompt)


def _extension(value: object) -> str:
    if not value:
        return DEFAULT_EXTENSION
    if value not in EXTENSIONS:
        raise SettingError(f"result_extension must be one of {', '.join(EXTENSIONS)}, got {value!r}")
    return str(value)


def read_pins(pins: str) -> tuple[tuple[Pin, ...], tuple[Rename, ...]]:
    """Read the pins of a reader: ``L5 3.5 -12 80; L1 -> T12`` (a name and a point in it, RAS mm; or the former and the
        right name of a level).

    Returns:
        Those with a point, and those with an earlier name; both are empty if the text is.

    Raises:
        SettingError: The text cannot be read.
    """
    parts = [part for part in pins.split(";") if part.strip()]
    if len(parts) > MAX_PINS:
        raise SettingError(infers_messages.TOO_MANY_PINS.format(count=len(parts), limit=MAX_PINS))
    renames, named = [], []
    for part in parts:
        if ARROW.search(part):
            renames.append(_rename(part))
        else:
            named.append(_pin(part))
    return tuple(named), tuple(renames)


def pins_from_json(pins: Iterable[Mapping[str, Any]]) -> tuple[Pin, ...]:
    """Return the pins of ``Settings.as_json``; none if another version of this software wrote them in another form."""
    try:
        return tuple(Pin(int(pin["code"]), _point(*pin["point_mm"])) for pin in pins)
    except (KeyError, TypeError, ValueError):
        logger.warning("The pins of a prediction cannot be read and are ignored")
        return ()


def renames_from_json(renames: Iterable[Mapping[str, Any]]) -> tuple[Rename, ...]:
    """Return the renames of ``Settings.as_json``; none if they were written in another form."""
    try:
        return tuple(Rename(int(one["was"]), int(one["now"]), _point(*one["point_mm"])) for one in renames)
    except (KeyError, TypeError, ValueError):
        logger.warning("The renamed levels of a prediction cannot be read and are ignored")
        return ()


def _point(x: float, y: float, z: float) -> tuple[float, float, float]:
    return float(x), float(y), float(z)


def _pin(pin: str) -> Pin:
    if (found := level_at(pin)) is None:
        raise SettingError(
            "a pin must read like 'L1 -> T12' (what was drawn as L1 is T12) or 'L5 3.5 -12 80' (name, then a point in "
            f"RAS mm), got {' '.join(pin.split())!r}"
        )
    return Pin(*found)


def _rename(pin: str) -> Rename:
    if (found := renamed_level(pin)) is None:
        raise SettingError(
            "a pin with an arrow must name two vertebrae or two discs, like 'L1 -> T12' (what was drawn as L1 is T12), "
            f"got {' '.join(pin.split())!r}"
        )
    return Rename(*found)


SOME_STRUCTURES: Final = "part"
ISO_GRID: Final = "iso"


def saves_label(request: Mapping[str, Any]) -> bool:
    """Return whether a request asks to save its result as a label of the image."""
    return request.get("save_label") in (True, "true", "True")


def result_tag(request: Mapping[str, Any], part: str) -> str:
    """Return the tag to save a result under.

    Readers of ``original`` (the next sample, a localizer, step 2) expect all structures under their names on the grid
    of
    the image. Other results never replace it: they are saved under ``original-step1``, ``original-review``,
    ``original-part`` or ``original-iso``.

    Args:
        request: ``save_label``, ``label_tag`` and the settings.
        part: Word for a model's partial result; empty for a complete one.

    Returns:
        The tag; empty if nothing is to be saved.

    Raises:
        SettingError: The tag is not a word, is too long with its additions, or belongs to readers.
    """
    if not saves_label(request):
        return ""
    tag = str(getattr(request.get("label_tag"), "value", request.get("label_tag")) or "original")
    settings = read_settings(request)
    some = SOME_STRUCTURES if len(settings.codes) < len(STRUCTURES) else ""
    grid = ISO_GRID if settings.output_grid == "iso" else ""
    whole = "-".join(filter(None, (tag, part, some, grid)))
    # The joined tag can be too long although the given one is not.
    if tag in READER_TAGS or not is_safe_tag(whole):
        raise SettingError(infers_messages.RESERVED_TAG.format(tag=tag, whole=whole))
    return whole

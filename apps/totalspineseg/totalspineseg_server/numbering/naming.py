"""Name a raw step map and report on the names, without running the networks; collect the names of step 1 for step 2."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from totalspineseg_server.anatomy import BACKGROUND, C1, DISCS, NAME_OF, SACRUM, VERTEBRAE, Kind, Step1, Step2
from totalspineseg_server.clock import Clock, no_clock
from totalspineseg_server.errors import GridError, LabelError
from totalspineseg_server.geometry import AnyArray, LabelArray, Volume
from totalspineseg_server.numbering import numbering_messages
from totalspineseg_server.numbering.chain import Numbering, Pin, number_chain
from totalspineseg_server.numbering.evidence import Localizer, Step1Names, landmark_shares
from totalspineseg_server.numbering.evidence_weights import MOSTLY
from totalspineseg_server.numbering.linter import lint
from totalspineseg_server.numbering.pins import PIN_REACH_MM
from totalspineseg_server.numbering.report import report
from totalspineseg_server.transforms.canal import fill_canal
from totalspineseg_server.transforms.components import Labels
from totalspineseg_server.transforms.labeling import Naming, name_iteratively, paint
from totalspineseg_server.transforms.pieces import Step, find_pieces, one_spine, require_spine
from totalspineseg_server.trust import UNMEASURED, Trust

Method = Literal["chain", "iterative"]
OTHER_SHARE: Final = 0.01
"""Smallest probability that the right name is one that step 1 did not consider, whatever it saw as a landmark."""


def label_map(
    raw: Volume,
    step: Step,
    *,
    localizer: npt.NDArray[np.integer[Any]] | None = None,
    pins: Sequence[Pin] = (),
    method: Method = "chain",
) -> tuple[Labels, dict[str, Any]]:
    """Name the levels of a network's raw map.

    Args:
        raw: Classes of the step's network, integer (X, Y, Z) nearest RAS, about 1 mm. Not modified.
        step: 1 or 2.
        localizer: Codes of another series of the patient on the same grid, or None. Not modified.
        pins: Levels that a reader fixed (chain only).
        method: "chain" weighs all evidence; "iterative" follows TotalSpineSeg's own rule.

    Returns:
        uint8 codes on the grid of ``raw``, and the report (see ``report``).

    Raises:
        LabelError: The map has values that are not classes of the step, or pins come with the iterative method, which
            cannot follow them.
        NoSpineError: The map has no disc or no canal.
        GridError: The localizer has another shape.
        ValueError: A pin does not name a level, or the method is unknown.
    """
    labels, numbering = name_map(raw, step, localizer=localizer, pins=pins, method=method)
    return labels, report(numbering, lint(labels, raw.spacing), affine=raw.affine)


def name_map(
    raw: Volume,
    step: Step,
    *,
    localizer: npt.NDArray[np.integer[Any]] | None = None,
    siblings: Sequence[Localizer] = (),
    pins: Sequence[Pin] = (),
    step1: Step1Names | None = None,
    trust: Trust = UNMEASURED,
    method: Method = "chain",
    clock: Clock = no_clock,
) -> tuple[Labels, Numbering | None]:
    """Return the codes as ``label_map`` does, with the numbering instead of its report (None for "iterative").

    ``siblings`` are other series of the patient, with the probabilities of their names (chain only). ``step1`` are the
    names of step 1 in this scan; if a reader gave them, the iterative method follows them before a localizer. ``trust``
    has the measured errors of the network (chain only). ``clock`` measures the stages.
    """
    if method not in ("chain", "iterative"):
        raise ValueError(f"method must be 'chain' or 'iterative', got {method!r}")
    if pins and method == "iterative":
        raise LabelError(numbering_messages.ITERATIVE_PINS)
    _require_classes(raw.data, step)
    series = (*siblings, *(() if localizer is None else (Localizer(_named(localizer)),)))
    for other in (*series, *(() if step1 is None else (step1.discs,))):
        if other.codes.shape != raw.data.shape:
            raise GridError(numbering_messages.LOCALIZER_SHAPE.format(localizer=other.codes.shape, map=raw.data.shape))
    with clock(f"step {step} spine"):
        classes = one_spine(raw.data.astype(np.uint8, copy=False), step)
    require_spine(classes, step)
    with clock(f"step {step} labeling"):
        pieces = find_pieces(classes, step)
        numbering: Numbering | None = None
        naming: Naming
        if method == "chain":
            numbering = number_chain(
                pieces, classes, step, affine=raw.affine, localizers=series, pins=pins, step1=step1, trust=trust
            )
            pieces, naming = numbering.pieces, numbering.naming
        else:
            named = step1.discs.codes if step1 is not None and step1.by_reader else localizer
            naming = name_iteratively(pieces, localizer=named)
        labels = paint(pieces, classes, naming, step)
    with clock(f"step {step} fill canal"):
        return fill_canal(labels), numbering


def step_of(raw: AnyArray) -> Step:
    """Return the step of a raw map: step 2 has more classes, and its canal and cord have values that step 1 lacks."""
    return 2 if raw.max() > max(member.value for member in Step1) else 1


def require_met(numbering: Numbering | None) -> None:
    """Check that every pin has met a structure.

    Raises:
        LabelError: A pin has not.
    """
    if numbering is not None and numbering.unmet:
        names = ", ".join(NAME_OF[code] for code in numbering.unmet)
        raise LabelError(numbering_messages.PINS_UNMET.format(mm=PIN_REACH_MM, names=names))


def _named(localizer: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.integer[Any]]:
    """Return the names of a localizer; in a step-1 map only those of discs and C1, because the sacrum's code stands for
    every vertebra."""
    if np.isin(localizer, [code for code in VERTEBRAE if code != C1]).any():
        return localizer
    return np.where(localizer == SACRUM, BACKGROUND, localizer)


def _require_classes(raw: AnyArray, step: Step) -> None:
    """Check that a map is not a finished label map, whose cord and canal would be mistaken for discs."""
    last = max(member.value for member in (Step1 if step == 1 else Step2))
    if raw.size and (raw.max() > last or raw.min() < 0):
        strange = [value for value in np.unique(raw).tolist() if not 0 <= value <= last]
        raise LabelError(numbering_messages.NO_RAW_MAP.format(values=strange[:5], step=step, last=last))


def step1_names(labels: LabelArray, numbering: Numbering | None) -> Step1Names | None:
    """Return the names of a step-1 result with their probabilities.

    Args:
        labels: Its codes (X, Y, Z). Not modified.
        numbering: Its numbering; None for the iterative method, which has no probabilities.

    Returns:
        The names of its discs; None without a numbering or without a disc.
    """
    if numbering is None:
        return None
    names = {level.code: _chances(numbering, k) for k, level in enumerate(numbering.levels) if level.kind is Kind.DISC}
    if not names:
        return None
    own = np.full(256, BACKGROUND, dtype=np.uint8)
    own[list(names)] = list(names)
    return Step1Names(
        Localizer(own[labels], names),
        numbering.probability,
        numbering.certainty,
        numbering.usual,
        numbering.as_usual,
        frozenset(
            code
            for code, piece in zip(numbering.naming.discs, numbering.pieces.discs, strict=True)
            if landmark_shares(piece).get(code, 0.0) > MOSTLY
        ),
    )


def names_by_reader(labels: LabelArray) -> Step1Names:
    """Return the names of a step-1 map that a reader corrected; they are certain.

    Args:
        labels: Its codes (X, Y, Z), or those of a finished map. Not modified.

    Returns:
        The names of its discs only: in step 1 the sacrum's code stands for every vertebra but C1.
    """
    discs = np.where(np.isin(labels, DISCS), labels, BACKGROUND)
    return Step1Names(Localizer(discs, by_reader=True), 1.0, "certain", 1.0, 1.0)


def _chances(numbering: Numbering, k: int) -> Mapping[int, float]:
    """Return disc code -> probability that it is the name of the k-th level; every disc has some."""
    chances = dict.fromkeys(DISCS, OTHER_SHARE / len(DISCS))
    chances[numbering.levels[k].code] += numbering.levels[k].probability
    for alternative in numbering.alternatives:
        if alternative.codes[k] in chances and alternative.codes[k] != numbering.levels[k].code:
            chances[alternative.codes[k]] += alternative.probability
    total = sum(chances.values())
    return {code: chance / total for code, chance in chances.items()}

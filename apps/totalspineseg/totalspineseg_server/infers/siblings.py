"""Use other series of the patient that are already named as evidence for the levels of this one."""

from collections.abc import Mapping

import numpy as np

from totalspineseg_server.anatomy import BACKGROUND, CODE_OF, DISCS, SACRUM, VERTEBRAE, Kind
from totalspineseg_server.corrections.correction_store import FINAL_TAG
from totalspineseg_server.corrections.label_files import UNCONFIRMED
from totalspineseg_server.files import sha256_of
from totalspineseg_server.geometry import Volume
from totalspineseg_server.infers.services import Services
from totalspineseg_server.io.volumes import read_labels
from totalspineseg_server.numbering.chain import CONFIDENT_PROBABILITY, Numbering
from totalspineseg_server.pipeline import Sibling
from totalspineseg_server.segments import from_wire


def level_chances(numbering: Numbering | None) -> Mapping[int, Mapping[int, float]]:
    """Return how much each name of a prediction counts as evidence for other series: code -> {code: probability}.

    Returns:
        Each name with at most ``CONFIDENT_PROBABILITY``, and the neighboring levels with the rest; empty unless the
        prediction was confident. A doubtful prediction mostly repeats the usual numbers (five lumbar vertebrae), and
        two series that confirm this to each other would become certain without reason.
    """
    if numbering is None or not numbering.confident:
        return {}
    result: dict[int, Mapping[int, float]] = {}
    for level in numbering.levels:
        row = DISCS if level.kind is Kind.DISC else (*VERTEBRAE, SACRUM)
        place = row.index(level.code)
        beside = [row[k] for k in (place - 1, place + 1) if 0 <= k < len(row)]
        sure = min(level.probability, CONFIDENT_PROBABILITY)
        result[level.code] = {level.code: sure} | {code: (1 - sure) / len(beside) for code in beside}
    return result


def siblings_of(services: Services, image_id: str, localizer: str, versions: Mapping[str, str]) -> tuple[Sibling, ...]:
    """Return the named series of the same patient.

    A finished label is certain. A prediction counts only if it was confident without the help of other series, so that
    no image confirms its own evidence. Predictions of replaced weights do not count: their errors would outlast these
    weights.

    Args:
        services: Services that tasks share.
        image_id: The image; empty for one that is not among the studies.
        localizer: Image that the request names as localizer already; empty for none.
        versions: Weights in use, by step.

    Returns:
        One sibling for each named series; no network runs for it.
    """
    if not image_id:
        return ()
    others = [other for other in services.studies.siblings(image_id) if other not in (image_id, localizer)]
    found = [_sibling(services, other, versions) for other in others]
    return tuple(sibling for sibling in found if sibling is not None)


def _sibling(services: Services, image_id: str, versions: Mapping[str, str]) -> Sibling | None:
    if file := services.studies.label_file(image_id, FINAL_TAG):
        wire = read_labels(file)
        unconfirmed = services.studies.get_label_info(image_id, FINAL_TAG).get(UNCONFIRMED) or ()
        codes = from_wire(wire.data)
        # Names that nobody confirmed prove nothing.
        codes[np.isin(codes, [CODE_OF[name] for name in unconfirmed])] = BACKGROUND
        return Sibling(Volume(codes, wire.affine), {}, image_id, by_reader=True)
    if services.predictions.latest(image_id) is None:
        return None  # Check before its file is requested, which may have to be fetched.
    image = services.studies.image_file(image_id)
    maps = None if image is None else services.maps.latest(sha256_of(image), 2)
    if maps is None or maps.series_used or not maps.levels:
        return None
    if any(versions.get(step, version) != version for step, version in maps.versions.items()):
        return None
    return Sibling(maps.codes, maps.levels, image_id)

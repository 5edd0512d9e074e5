"""Other series of the patient that have names already: evidence for the levels of this one."""

from collections.abc import Mapping

from lib.corrections import history
from lib.corrections.wire import from_wire
from lib.geometry import Volume
from lib.infers.services import Services
from lib.numbering.chain import Numbering
from lib.pipeline import Sibling
from lib.volume_io import read_labels

READER_TAG = "final"
"""Datastore tag of what a reader finished: its names are certain."""


def level_chances(numbering: Numbering) -> Mapping[str, Mapping[str, float]]:
    """How probable each name is for each level, JSON native: code -> {code: probability}."""
    result = {}
    for level in numbering.levels:
        chances = {str(level.code): level.probability}
        if level.runner_up:
            chances[str(level.runner_up)] = level.runner_up_probability
        result[str(level.code)] = chances
    return result


def siblings_of(services: Services, image_id: str, localizer: str) -> tuple[Sibling, ...]:
    """The named series beside an image.

    A finished label is certain; a prediction counts as much as it was sure of itself, and only if no other series
    helped to make it: an image must not confirm what it was told by this one.

    Args:
        services: What tasks share.
        image_id: The image; empty for one that is not among the studies.
        localizer: Image the request names as localizer already; empty for none.

    Returns:
        One for each series with names; none runs through a network for it.
    """
    if not image_id:
        return ()
    found = [_sibling(services, other) for other in services.siblings(image_id) if other not in (image_id, localizer)]
    return tuple(sibling for sibling in found if sibling is not None)


def _sibling(services: Services, image_id: str) -> Sibling | None:
    if file := services.label_file(image_id, READER_TAG):
        wire = read_labels(file)
        return Sibling(Volume(from_wire(wire.data), wire.affine), {}, image_id)
    image = services.image_file(image_id)
    kept = None if image is None else services.maps.latest(history.sha256_of(image), 2)
    if kept is None or kept.helped_by or not kept.levels:
        return None
    names = {int(code): {int(name): p for name, p in chances.items()} for code, chances in kept.levels.items()}
    return Sibling(Volume(kept.drawn.labels, kept.drawn.raw.affine), names, image_id)

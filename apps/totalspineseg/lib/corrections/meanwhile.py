"""Find out whether somebody else submitted a label of the same image in the meantime."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lib.anatomy import BACKGROUND
from lib.corrections import answers
from lib.corrections.store import Correction, Received
from lib.numbering.findings import Finding


def finished_meanwhile(in_force: Sequence[Correction], received: Received) -> tuple[Mapping[str, Any], ...]:
    """Return a finding if somebody else submitted the same kind of label after the corrected prediction was made.

    Most clients use the name that their program was installed with. Therefore a sender of the same name counts as
    somebody else, too, unless both labels correct the same prediction, as when a reader submits again.

    Args:
        in_force: Accepted corrections of the image that count and are shown under the same tag, oldest first.
        received: The submission. Not modified.

    Returns:
        One finding or none; none if the corrected prediction is not known.
    """
    predicted, sender = received.prediction, received.sender
    if predicted is None:
        return ()
    for other in reversed(in_force):
        same_name = (other.user, other.client) == (sender.user, sender.client)
        if other.id > predicted.id and not (same_name and (other.prediction or {}).get("id") == predicted.id):
            message = answers.somebody_else(other.client or other.user, other.received)
            return (Finding("finished_meanwhile", BACKGROUND, message).as_dict(np.eye(4)),)
    return ()

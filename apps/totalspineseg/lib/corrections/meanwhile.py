"""What others did with an image while its label was drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lib.anatomy import BACKGROUND
from lib.corrections.store import Correction, Received
from lib.numbering.findings import Finding


def finished_meanwhile(standing: Sequence[Correction], received: Received) -> tuple[Mapping[str, Any], ...]:
    """A finding where somebody else submitted the same since the prediction that is corrected was made.

    Most clients go by the name their program was installed with. So one of the same name counts as somebody else, too,
    if it corrected another prediction: who goes on with a label of one's own has corrected the same one.

    Args:
        standing: Accepted corrections of the image that count and were shown where this one is, oldest first.
        received: What was submitted. Not modified.

    Returns:
        One finding, or none; none where it is not known which prediction was corrected.
    """
    predicted, sender = received.prediction, received.sender
    if predicted is None:
        return ()
    for other in reversed(standing):
        same_name = (other.user, other.client) == (sender.user, sender.client)
        if other.id > predicted.id and not (same_name and (other.prediction or {}).get("id") == predicted.id):
            who = other.client or other.user
            message = (
                f"{who!r} submitted another label of this image at {other.received}, after the prediction that you "
                "corrected was made. Both labels are kept and the newer one is shown. Compare them."
            )
            return (Finding("finished_meanwhile", BACKGROUND, message).as_dict(np.eye(4)),)
    return ()

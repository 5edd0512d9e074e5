"""Tests of step 2's rule: a vertebra below a marked disc is odd, even in a column with a fused disc."""

import numpy as np
import pytest

from block_spines import block_spine
from totalspineseg_server.anatomy import CODE_OF, DISCS, SACRUM, Step2, column
from totalspineseg_server.nnunet.odd_channel import marked_discs, training_variant
from totalspineseg_server.nnunet.targets import step_target

VARIANTS = {"usual": (12, 5), "T11": (11, 5), "T13": (13, 5), "L4": (12, 4), "L6": (12, 6), "T11+L4": (11, 4)}
FUSED = {"none": (), "chest": ("T9-T10",), "three": ("C5-C6", "C6-C7", "L2-L3")}


@pytest.mark.parametrize("swapped", [False, True], ids=["plain", "swapped"])
@pytest.mark.parametrize("fused", FUSED.values(), ids=FUSED)
@pytest.mark.parametrize("first", ["C1", "T1", "T10", "T11", "last", "L1", "L3"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_what_lies_below_a_marked_disc_is_odd(
    variant: tuple[int, int], first: str, fused: tuple[str, ...], swapped: bool
) -> None:
    """Below a disc that was not drawn, every vertebra was taught with the class of its neighbor. In a lumbar scan of a
    column with 11 or 13 thoracic vertebrae, all of them were, in one variant or in both."""
    thoracic, lumbar = variant
    codes = block_spine(thoracic=thoracic, lumbar=lumbar)
    codes[np.isin(codes, [CODE_OF[name] for name in fused])] = 0
    top = CODE_OF[f"T{thoracic}" if first == "last" else first]
    codes[:, :, np.argwhere(codes == top)[:, 2].max() + 1 :] = 0
    swapped = training_variant(codes, swapped=swapped)
    marked = marked_discs(codes, swapped=swapped)
    target = step_target(codes, 2, swapped=swapped)
    spine = column(thoracic, lumbar)
    below = dict(zip(spine.discs, (*spine.vertebrae[1:], SACRUM), strict=True))
    painted = [code for code in DISCS if (codes == code).any() and below[code] != SACRUM]
    odd = [code for code in painted if (target[codes == below[code]] == Step2.VERTEBRA_ODD.value).all()]
    assert odd == [code for code in painted if code in marked]
    assert marked
    assert first != "C1" or 0 < len(odd) < len(painted)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("disc", ["L3-L4", "L4-L5"])
def test_one_disc_alone_is_marked_whatever_variant_is_asked_for(disc: str, swapped: bool) -> None:
    """Step 2 learned from an empty channel, which it never gets at inference, or from one channel with both answers."""
    codes = np.array([0, CODE_OF[disc]], np.uint8)
    assert marked_discs(codes, swapped=training_variant(codes, swapped=swapped)) == (CODE_OF[disc],)


def test_a_label_without_any_disc_marks_none() -> None:
    codes = np.array([0, CODE_OF["L3"]], np.uint8)
    assert not any(marked_discs(codes, swapped=training_variant(codes, swapped=s)) for s in (False, True))

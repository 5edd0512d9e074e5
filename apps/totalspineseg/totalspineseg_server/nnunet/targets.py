"""Make the training targets of both networks from maps of output codes: step classes and regions."""

from collections.abc import Collection, Iterable, Mapping
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from totalspineseg_server.anatomy import (
    BACKGROUND,
    LUMBAR,
    STEP1_FROM_CODE,
    STEP1_REGIONS,
    STEP2_FROM_CODE,
    STEP2_REGIONS,
    T12,
    T13,
    UNREVIEWED,
    Step2,
)
from totalspineseg_server.geometry import LabelArray
from totalspineseg_server.transforms.discs import column_showing

Step = Literal[1, 2]
TABLE_SIZE: Final = 256
"""Number of values of a uint8 map."""
REGIONS: Final[Mapping[int, Mapping[str, tuple[int, ...]]]] = {1: STEP1_REGIONS, 2: STEP2_REGIONS}
IGNORE_CLASS: Final[Mapping[int, int]] = {step: len(regions) + 1 for step, regions in REGIONS.items()}
"""Value of nnU-Net's ignore label: the class after the last one."""


def step_target(
    codes: LabelArray,
    step: Step,
    *,
    swapped: bool = False,
    uneven_thoracic: bool | None = None,
    unreviewed: Collection[int] = (),
) -> LabelArray:
    """Return the label map that a network should predict for a map of codes.

    Args:
        codes: uint8 output codes, any shape; ``UNREVIEWED`` where nobody checked. Not modified.
        step: 1 or 2.
        swapped: In step 2, whether odd and even are exchanged because the other set of discs is marked.
        uneven_thoracic: From ``thoracic_is_uneven`` of the whole scan, if ``codes`` is a part of it; None to use
            ``codes``.
        unreviewed: Codes whose voxels nobody checked.

    Returns:
        uint8 classes of the step, ``IGNORE_CLASS[step]`` where nobody checked; all 0 for an empty map.

    Source:
        The training maps of TotalSpineSeg. Different here: in a column with 11 or 13 thoracic vertebrae the lumbar
        classes are exchanged, because neighbors must always differ.
    """
    uneven = uneven_thoracic if uneven_thoracic is not None or step == 1 else thoracic_is_uneven(codes)
    table = step_table(step, swapped=swapped, uneven_thoracic=bool(uneven))
    return look_up(codes, {**table, **dict.fromkeys((*unreviewed, UNREVIEWED), IGNORE_CLASS[step])})


def step_table(step: int, *, swapped: bool = False, uneven_thoracic: bool = False) -> Mapping[int, int]:
    """Return the class of a step for each output code; see ``step_target``."""
    table = dict(STEP1_FROM_CODE if step == 1 else STEP2_FROM_CODE)
    if step == 2:
        lumbar = swapped != uneven_thoracic
        exchange = {code for code in table if (lumbar if code in LUMBAR else swapped)}
        table |= {code: _other_parity(table[code]) for code in exchange}
    return table


def thoracic_is_uneven(codes: LabelArray) -> bool:
    """Return whether the column has 11 or 13 thoracic vertebrae, so that odd and even lumbar vertebrae are exchanged.

    A vertebra that may be missing because nobody checked does not count.
    """
    return is_uneven(column_showing(present_codes(codes), whole=not has_unreviewed(codes)).vertebrae)


def is_uneven(vertebrae: Collection[int]) -> bool:
    """Return whether a column has 11 or 13 thoracic vertebrae."""
    return T13 in vertebrae or T12 not in vertebrae


def has_unreviewed(codes: LabelArray) -> bool:
    """Return whether a region of the map was not reviewed."""
    return bool((codes == UNREVIEWED).any())


def present_codes(codes: LabelArray) -> frozenset[int]:
    """Return the codes that have voxels."""
    counts = np.bincount(codes.ravel(order="K"), minlength=TABLE_SIZE)
    return frozenset(int(code) for code in np.flatnonzero(counts) if code not in (BACKGROUND, UNREVIEWED))


def look_up(codes: LabelArray, table: Mapping[int, int]) -> LabelArray:
    """Return the map with each value replaced by that in ``table``, or by 0 if the table has none."""
    values = np.zeros(TABLE_SIZE, dtype=np.uint8)
    for code, value in table.items():
        values[code] = value
    result: LabelArray = values[codes]
    return result


def mark(codes: LabelArray, marked: Iterable[int]) -> npt.NDArray[np.float32]:
    """Return step 2's second channel: 1 on the marked codes, 0 elsewhere, float32."""
    return look_up(codes, dict.fromkeys(marked, 1)).astype(np.float32)


def region_masks(target: torch.Tensor, step: Step) -> torch.Tensor:
    """Return the regions of a batch of label maps.

    Args:
        target: (N, ...) uint8 classes. Not modified.
        step: 1 or 2.

    Returns:
        (N, R, ...) bool in the order of the network's channels; False where the target is ignored.
    """
    rows = torch.zeros((len(REGIONS[step]), TABLE_SIZE), dtype=torch.bool, device=target.device)
    for row, classes in zip(rows, REGIONS[step].values(), strict=True):
        row[list(classes)] = True
    return rows[:, target.long()].transpose(0, 1)


def region_shares(classes: torch.Tensor, step: Step, fine: tuple[int, int, int] = (1, 1, 1)) -> torch.Tensor:
    """Return the target of a network: the share of each region in each of its voxels.

    Args:
        classes: (A, B, C) uint8 of a step, on a grid that is ``fine`` times as fine along each axis. Not modified.
        step: 1 or 2.
        fine: Fine voxels in a network voxel, along each axis; the sides of ``classes`` are multiples of it.

    Returns:
        (R + 1, A / fine, ..) float16: shares in the order of the network's channels, then the share that nobody
        checked.
    """
    masks = torch.cat([region_masks(classes[None], step)[0], (classes == IGNORE_CLASS[step])[None]])
    if max(fine) == 1:
        return masks.half()
    return torch.nn.functional.avg_pool3d(masks.float()[None], fine)[0].half()


def exchanged() -> list[int]:
    """Return the order of the regions in step 2's ``region_shares`` after odd and even vertebrae are exchanged."""
    places = {frozenset(classes): place for place, classes in enumerate(STEP2_REGIONS.values())}
    other = [places[frozenset(map(_other_parity, classes))] for classes in STEP2_REGIONS.values()]
    return [*other, len(other)]


def _other_parity(value: int) -> int:
    pair = {
        Step2.VERTEBRA_ODD.value: Step2.VERTEBRA_EVEN.value,
        Step2.VERTEBRA_EVEN.value: Step2.VERTEBRA_ODD.value,
    }
    return pair.get(value, value)

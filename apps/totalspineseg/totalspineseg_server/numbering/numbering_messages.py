"""Hold the sentences that people read about a numbering or a label map; ``str.format`` fills in the names in braces."""

from types import MappingProxyType
from typing import Final

from totalspineseg_server.anatomy import Kind

# Maps, localizers and pins that cannot be used
ITERATIVE_PINS: Final = "The method 'iterative' cannot follow pins. Use the method 'chain', or leave the pins out."
LOCALIZER_SHAPE: Final = (
    "The localizer has shape {localizer}, but the map has {map}. Resample it to the grid of the map first (nearest "
    "neighbor)."
)
PINS_UNMET: Final = (
    "The pin was not used, because no structure of its kind is at its height within {mm:.0f} mm: {names}. Place it "
    "inside the structure; for a vertebra, inside its body (patient coordinates, RAS mm)."
)
NO_RAW_MAP: Final = (
    "The map has values {values!r}, but a raw map of step {step} has only the classes 0 to {last}. Use the map that "
    "the network made, not a finished label map."
)

# Findings about a numbering
A_KIND: Final = MappingProxyType({Kind.DISC: "a disc", Kind.VERTEBRA: "a vertebra", Kind.SACRUM: "the sacrum"})
LEFT_OUT: Final = "A piece segmented as {kind} ({voxels} voxels) fits no level and was left out."
BELOW_L5_S: Final = (
    "A disc ({voxels} voxels) was segmented below the one named L5-S. Check whether it is L5-S; if it is, all names "
    "are one level too low."
)
LANDMARK_DIFFERS: Final = (
    "The network segmented this disc as {landmark}, but the other evidence indicates that it is {name}."
)
STEPS_DIFFER: Final = (
    "The two networks disagree: step 1 named this disc {step1} and the others to match, but step 2 named it {step2}."
)
PIN_UNMET: Final = "The pin {name} was not used: no structure of its kind is near it. Place it inside the structure."
ELSEWHERE: Final = (
    "{series} was not used: {why}. It is from another patient, or the patient moved between the two scans."
)
SERIES: Final = "The series {source}"
LOCALIZER: Final = "The localizer"
CANAL_BESIDE: Final = "its canal lies {mm:.0f} mm beside the canal of this scan"
DISCS_BETWEEN: Final = "its discs lie at the height of this scan's vertebrae"

# Findings of the linter
READ_AS: Final = "The numbers were read as {table}: {levels}."
OWN_CODES: Final = "TotalSpineSeg's codes"
NUMBERS_OF: Final = "those of {program}"
LEVELS: Final = "{first} to {last}"
NO_LEVEL: Final = "no level"
EMPTY: Final = "The map is empty, so nothing was checked."
NO_MAP: Final = (
    "The map has {count} values that are not codes of structures, such as {values}. Nothing was checked: it is an "
    "image, or a map with the codes of another program."
)
NO_LEVELS: Final = "The map has no vertebra and no disc in TotalSpineSeg's codes, so order and gaps were not checked."
STEP_CODE: Final = "Value {value} ({voxels} voxels) is a class of the networks, not the code of a structure."
UNKNOWN_CODE: Final = "Value {value} ({voxels} voxels) is not the code of any structure."
DUPLICATE: Final = "{name} appears twice, {mm:.0f} mm apart along the canal (the smaller part has {voxels} voxels)."
FRAGMENT: Final = "A fragment of {name} ({voxels} voxels) is separate from the rest of it."
TOO_SMALL: Final = "{name} has only {voxels} voxels, too few for a level."
GAP: Final = "{name} is missing between {above} and {below}."
ORDER: Final = "{name} is out of order: it comes after {above}."
ORDER_FIRST: Final = "{name} is out of order: it is the topmost level, but others should be above it."
DISC_BETWEEN: Final = "{name} lies next to {neighbors}: these names do not fit together."
REACH_DOWN: Final = "{name} reaches down to {other}: their outlines are mixed up."
REACH_UP: Final = "{name} reaches up to {other}: their outlines are mixed up."
WIDE: Final = "{upper} and {lower} are {mm:.0f} mm apart, {times:.1f} times as far as usual: a level may be missing."
UNUSUAL_STEP: Final = (
    "The vertebrae are {percent:.0f}% as far apart as in most adults. Check the voxel size in the header, from head to "
    "foot."
)
UNUSUAL_WIDTH: Final = (
    "The width of the discs is {percent:.0f}% of their depth; in people it is about 140%. Check the voxel size in the "
    "header, from left to right."
)
CORD_OUTSIDE: Final = "The cord lies outside the canal in {slices} axial slices ({voxels} voxels)."
UPSIDE_DOWN: Final = (
    "Most levels are named from bottom to top instead of from top to bottom. If the label is upside down, turn it. If "
    "it uses another table's numbers, convert it."
)
LACKS_KINDS: Final = (
    "There is no {kinds} in the label. Draw it, or mark what nobody labeled as 'unreviewed' ({unreviewed})."
)

# The sentence of the report; REASONS has the findings that contradict all names, in short
CERTAIN: Final = "the names are certain"
COUNTED: Final = "the names are counted {counted_from}; nothing in view contradicts them"
COUNTED_UNLESS: Final = ", but they would be wrong in people with {variants}"
VARIANT: Final = "{what} ({share})"
DOUBTFUL: Final = "the names are doubtful"
PROBABILITY: Final = ", with a probability of {share} that all are right"
ALSO_POSSIBLE: Final = "; also possible: {shift} ({share})"
CONTRADICTED: Final = "some evidence contradicts them"
COUNTED_ONLY: Final = "no reliable landmark is in view"
BRIDGED: Final = "a whole level between them was not found"
REASONS: Final = MappingProxyType(
    {
        "pin_unmet": "no structure of its kind is near a pin",
        "below_l5_s": "a disc below L5-S may be L5-S",
        "steps_differ": "step 1 and step 2 name the discs differently",
    }
)
CONTRADICTIONS: Final = MappingProxyType(
    {
        "landmark_differs": "a landmark was segmented on another disc",
        "left_out": "a piece as large as a level has no name",
    }
)
"""Findings that are the reason for a contradiction if there is no other one."""

# Competing numberings, and what would decide between them
SAME_NAMES: Final = "the same names"
SHIFT: Final = "{levels} {count} {unit} {direction}"
ALL_BELOW: Final = "{start} and all below"
UP_TO: Final = "{start} to {end}"
BOTH_ENDS: Final = "a localizer or a scan of the same patient that shows C2-C3 or the sacrum"
WHOLE_COLUMN: Final = "a localizer from C2 to the sacrum, to count all vertebrae"
SACRUM_IN_VIEW: Final = "a localizer that reaches the sacrum"
LARGER_VIEW: Final = "another series of the same patient with a larger field of view"
PIN: Final = "a pin: one level that a reader names"

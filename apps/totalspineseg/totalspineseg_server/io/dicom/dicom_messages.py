"""Hold the sentences about unusable series and segmentations; ``str.format`` fills in the names in braces."""

from typing import Final

# files
NO_IMAGE_FILES: Final = "There is no DICOM image in {name!r}. Choose the folder of one DICOM series."
SEVERAL_SERIES: Final = "There are {count} DICOM series in {name!r}. Put each series in its own folder."
SEVERAL_OWNERS: Final = (
    "The files of {name!r} share a series UID, but have {count} {owners}, for instance in {examples}. Put the files"
    " of each into a separate folder."
)
DAMAGED: Final = "The DICOM file {name!r} is damaged. Copy it again."
UNPACKS_TOO_LARGE: Final = "The DICOM file unpacks to more than {limit} MiB. Send fewer frames."
UNREADABLE_FILE: Final = "{name!r} is not a readable NIfTI, NRRD or DICOM image. Export it again."
NO_PIXELS: Final = "The slices have no pixels. Send the complete DICOM files."
UNREADABLE_PIXELS: Final = "The pixels of the DICOM file {name!r} cannot be read. Export it again."

# slices
SCREENSHOTS: Final = (
    "These are secondary captures (screenshots) without a position in the patient. Send the series they were taken "
    "from."
)
COLORS: Final = "The image has {values} values per voxel (colors) instead of one gray value. Send the original series."
FRAMES_MISCOUNTED: Final = (
    "A multi-frame DICOM object has {count} frames, but describes {described}. Export the series again."
)
FRAMES_WITHOUT_PLACE: Final = "The {count} frames have no positions in the patient. Send the original series."
SLICES_WITHOUT_PLACE: Final = "Some DICOM slices have no position or orientation. Export the series again."
NOT_PERPENDICULAR: Final = (
    "The orientation of some DICOM slices ({orientation}) does not have two perpendicular directions. Export the "
    "series again."
)
NO_SPACING: Final = "Some DICOM slices have no pixel spacing. Export the series again."

# stacks
NOT_MR: Final = (
    "The modality of the DICOM series is {modality}, but the networks have only seen MR images. Check every outline "
    "and every name of this result."
)
SLICES_MISSING: Final = (
    "The slices are {spacing:.1f} mm apart, but their header says {stated:.1f} mm: some are missing. Send the whole"
    " series."
)
SEVERAL_SIZES: Final = "The slices of the DICOM series have several sizes: {sizes}. Put each stack in its own folder."
SEVERAL_SPACINGS: Final = (
    "The slices of the DICOM series have several pixel spacings, {lowest:g} to {highest:g} mm. Put each stack in "
    "its own folder."
)
MAYBE_LOCALIZER: Final = "perhaps a three-plane localizer"
MAYBE_TWO_STACKS: Final = "perhaps two stacks in one series"
NOT_PARALLEL: Final = (
    "The slices of the DICOM series are not parallel: {count} orientations ({orientations}; {cause}). Send one stack."
)
SEVERAL_AT_ONE_PLACE: Final = (
    "The DICOM series has {count} images at {places} positions (copies, or several echoes or phases). Send one "
    "image for each position."
)
UNEVEN: Final = (
    "The slices of the DICOM series are not evenly spaced: gaps from {lowest:.2f} to {highest:.2f} mm. A slice is "
    "missing or two stacks are mixed. Send one complete stack."
)
SHEARED: Final = (
    "The slices of the DICOM series are shifted sideways by {aside:.2f} mm (sheared, or two series mixed). Send a "
    "series that is not sheared or mixed."
)

# segmentations
OTHER_MODALITY: Final = (
    "The object is not a DICOM segmentation (its modality is {modality!r}). Export the segmentation as DICOM SEG."
)
NO_FRAMES: Final = "The DICOM SEG has no frames. Draw a segment and export again."
OTHER_ENCODING: Final = (
    "The encoding of the segmentation's pixels is not supported. Export the segmentation without compression."
)
TRUNCATED: Final = "The file is truncated: it has pixels for {present} of {count} frames. Export it again."
FRACTIONS: Final = "The segmentation has fractions ({values} of {full}) instead of masks. Export it as binary segments."
NO_SEGMENTATION: Final = "The file is not a DICOM segmentation (SEG). Export the segmentation again."
NO_SEGMENT_LABEL: Final = "Frames of segment {number} have no segment label. Export the segmentation again."
TWO_SEGMENTS: Final = "Two segments have the number {number}. Export the segmentation again."
NO_SEGMENTS: Final = "The DICOM SEG has no named segments. Export it again."
TOO_MANY_SEGMENTS: Final = "Too many segments: {count} (limit {limit}). Submit only the spine."
FRAMES_NOT_DESCRIBED: Final = "Only {described} of {count} frames are described. Export the segmentation again."
OTHER_POSITION: Final = (
    "The segmentation belongs to another examination or position of the patient (its frame of reference is "
    "{frame_of_reference!r}). Export the segmentation of this series."
)
SEG_FRAMES_WITHOUT_PLACE: Final = (
    "{missing} of {count} frames of the DICOM SEG have no position. Export the segmentation of this series."
)
OFF_THE_VOXELS: Final = (
    "The segmentation does not lie on the voxels of its series: pixels of its frames ({columns} x {rows} of "
    "{across:g} x {down:g} mm) lie between or across them, up to {offset:.3g} mm away. Export the segmentation of "
    "this series."
)
OUTSIDE: Final = (
    "The segmentation has voxels outside its series (shape {shape}). Export the segmentation of this series."
)
EMPTY_MAP: Final = "The label map is empty, so no DICOM SEG can be written. Check that the series shows the spine."
NO_UID: Final = (
    "Some DICOM images have no study, series or instance UID, so no DICOM SEG can refer to them. Export the series "
    "again."
)

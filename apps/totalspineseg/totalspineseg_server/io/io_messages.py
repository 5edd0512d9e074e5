"""Hold the sentences about files of images, label maps and archives; ``str.format`` fills in the names in braces."""

from typing import Final

# files that cannot be read
NO_FILE: Final = "The image file {name!r} does not exist. Check the path."
UNREADABLE: Final = "{name!r} is not a readable NIfTI, NRRD or DICOM image ({reason}). Export it again."
NO_MEMORY: Final = "There is not enough free memory for the image {name!r}. Close other programs."
INCOMPLETE: Final = (
    "The image file {name!r} is incomplete: it has {size} bytes, but its header describes {described} bytes of voxels. "
    "Copy it again."
)
UNPACKS_TOO_LARGE: Final = (
    "The compressed image {name!r} unpacks to {mib} MiB of voxels (limit {limit} MiB). Send one volume of it, or a "
    "file that is not compressed."
)
DAMAGED_COMPRESSION: Final = "The compression of {name!r} is damaged or incomplete. Copy the NIfTI file again."
BAD_FILE_NAME: Final = "The name of {name!r} or of one of its folders is not written in UTF-8. Rename it."
OTHER_KINDS: Final = (
    "Not read because of their format: {names}{more}. Convert images to {endings} or {last}, and unpack archives."
)

# content that is elsewhere; the name of the file stands before the sentence
BROKEN_LINK: Final = "is a link to a file that does not exist: restore the file, or correct the link"
NO_REGULAR_FILE: Final = (
    "is neither a file nor a folder, but a pipe or a device: remove it, or copy its content into a file"
)
GIT_LFS_POINTER: Final = "is a pointer of Git LFS, not the file itself: fetch it with 'git lfs pull'"
GIT_ANNEX_POINTER: Final = (
    "is a pointer of git-annex, not the file itself: fetch it with 'datalad get' or 'git annex get'"
)
GIT_ANNEX_LINK: Final = (
    "is a link of git-annex whose content is not here: fetch it with 'datalad get' or 'git annex get'"
)

# geometry
NO_PLACE: Final = (
    "{name!r} does not say how it lies in the patient: it has neither a qform nor an sform. Export it again."
)
NO_SPACE: Final = "{name!r} does not say how it lies in the patient: its header needs {field}. Export it again."
SPACE_FIELDS: Final = "a space such as 'left-posterior-superior' and space directions"
NEGATIVE_SPACING: Final = "The header of {name!r} has a negative voxel size, which programs read in two ways. {remedy}"
TWO_PLACES: Final = (
    "The header of {name!r} places the image in two ways (its qform, sform and voxel size disagree{ways}), which put a "
    "corner of it {mm:.1f} mm apart. {remedy}"
)
EXPORT_AGAIN: Final = (
    "Export the image again as it was scanned. If 3D Slicer shows it in the right place, save it there under another "
    "name and use that file."
)

# images that cannot be segmented
NO_VOXELS: Final = "{name!r} has no voxels (shape {shape}). Export it again."
NOT_3D: Final = "The image is neither 3D nor 4D: its shape is {shape}. Send the whole series."
TOO_FEW_SLICES: Final = (
    "The image has {slices} slices (shape {shape}), but at least {needed} slices are needed to tell levels apart. Send "
    "the whole series."
)
COLOR_IMAGE: Final = "The image is a color image, without one gray value per voxel. Send the original series."
SEVERAL_VALUES: Final = "The image has {count} values per voxel instead of one gray value. Send the original series."
NOT_GRAY: Final = "The image has values of type {kind}, not one gray value per voxel. Send the magnitude image."
NOT_FINITE: Final = (
    "The image has voxels without a gray value: NaN or infinite ({bad} of {size}). Export the series again."
)
TOO_LARGE_VALUES: Final = (
    "The image has values that no scanner makes, such as {value:.6g}, in {bad} of its {size} voxels. Replace them (a "
    "fill value with the value of air), or export the series again."
)
NO_CONTRAST: Final = "The image has no contrast: its voxels are {kind}. Check the series."

# label maps
SEVERAL_MAPS: Final = "The file has {count} maps instead of one 3D label map. Send one of them."
OUT_OF_RANGE: Final = "The label map has values outside 0 to 255. Export it as a label map."
NOT_WHOLE: Final = "The label map has values that are not whole numbers. Export it as a label map."
FRACTIONS: Final = "The label map has fractions instead of whole numbers. Send the segmentation, not a probability map."
OTHER_CODES: Final = (
    "{name} has the values {strangers!r}, which are not TotalSpineSeg's codes (L1 is {l1}). Convert it to these "
    "codes.{hint}"
)
UPSIDE_DOWN: Final = (
    "Most levels in {name} run from inferior to superior: it is upside down, or does not use TotalSpineSeg's codes. "
    "Turn it, or convert it.{hint}"
)
NAME_PROGRAM: Final = "Name the program that made it with --numbers."
OTHER_NUMBERS: Final = (
    "{name!r} has the values {strangers!r}, which are not numbers of the table {numbers!r}. Choose the table of the "
    "program that made the map, or give its map of whole vertebrae."
)

# archives
UNREADABLE_ZIP: Final = "This is not a readable .zip without a password. Pack it again, or download it again."
ZIP_TOO_LARGE: Final = "The .zip unpacks to more than {limit:g} MiB. Send fewer files."
TOO_MANY_ENTRIES: Final = "The .zip has more than {most} entries. Send fewer files."
NOTHING_NEEDED: Final = "The .zip contains no files that are needed here. Pack the right folder."
NO_DISK_SPACE: Final = (
    "There is too little disk space in {folder!r}: {needed} MiB are needed and {free} MiB are free. Free space and try "
    "again."
)
UNSAFE_ENTRY: Final = "The .zip has an unsafe entry: {name!r} {problem}. Pack it again."
EXPANDS: Final = "unpacks to far more than its size"
LINK_OR_DEVICE: Final = "is a link or device"
OTHER_COMPRESSION: Final = "is neither stored nor deflated"

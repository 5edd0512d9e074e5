"""Hold the sentences about runs over folders and clusters; ``str.format`` fills in the names in braces."""

from typing import Final

# input and output
NO_INPUT: Final = "{path!r} does not exist. Give an image or a folder of images."
NO_IMAGES: Final = (
    "There are no images{wanted} in {path!r}. The command looks for images ({formats} or DICOM) directly in the "
    "folder, in sub-*/anat and in sub-*/ses-*/anat."
)
SKIPPED_FOLDERS: Final = "Skipped folders with images: {folders}{more}. Name one of them as INPUT."
NO_LOCALIZER: Final = "The localizer {path!r} does not exist. Give a label map or a folder of label maps."
ONE_LOCALIZER: Final = (
    "One localizer file, {name!r}, cannot be used for {subjects} subjects. Give a folder of label maps that have the "
    "names of the scans, or run one subject's scans (sub-..) alone."
)
SCAN_IN_OUTPUT: Final = (
    "The scan {scan!r} is in a folder that OUTPUT uses and would be overwritten. Choose another OUTPUT."
)
LOCALIZER_IN_OUTPUT: Final = (
    "The localizer {localizer!r} is the result of a scan to be processed and would be overwritten. Copy it to another "
    "folder, or choose another OUTPUT."
)
OTHER_RESULTS: Final = (
    "OUTPUT has results of another scan named {name!r}: {source!r}. Choose another OUTPUT, or replace them with "
    "--overwrite."
)
DAMAGED_RECORD: Final = (
    "the record of earlier results with this name cannot be read, so they may be those of another scan; they are "
    "replaced. The record is kept as {file!r}: look into it if scans of different folders have the same name"
)
SCAN_GONE: Final = "The scan {scan!r} does not exist. Download or restore it."
ABOUT_MAP: Final = "Levels of the spine, segmented and named by a network. {caveat}"
NO_SEG: Final = "No DICOM SEG was written: {error}"
NO_MEMORY: Final = "This machine has too little free memory. Use fewer --max-workers, or a smaller scan."
CORD_CAVEAT: Final = "Not validated for cord cross-sectional area."

# warnings beside a result
NO_LOCALIZER_FOUND: Final = "no localizer was found for this scan"
LOCALIZER_APART: Final = "the localizer does not overlap this scan and was not used; use one of the same examination"
LOCALIZER_UNCERTAIN: Final = (
    "the localizer of this scan was not used: its own names are counted or doubtful, or it is not finished; correct "
    "its label map, copy it to another folder, and name that folder with --loc"
)

# clusters
UNREADABLE_PROFILE: Final = "--profile: {profile!r} is not a readable YAML file ({error}). Correct it."
NO_SCHEDULER: Final = (
    "No Dask scheduler answers at --scheduler {address!r} ({error}). Start it, or correct the address."
)
NO_CLUSTER_COMMAND: Final = "{command!r} was not found. Run this on a login node of the cluster."
JOBS_REFUSED: Final = "{command} refused the jobs: {reply!r}. Correct --profile."
CLUSTER_FAILED: Final = "The {cluster} cluster could not be started: {error}. Correct --profile."
WORKERS_FAILED: Final = (
    "The workers could not start ({kind}: {error}). Make the app available to them under the same path as here."
)
WORKERS_LOST: Final = "{count} workers were lost while they processed this scan. Give them more memory and time."
SCHEDULER_LOST: Final = "The connection to the Dask scheduler was lost. Run the same command to continue."
APP_NOT_SEEN: Final = "A worker does not find the app under the path {app}. Install it there on every machine."
OUTPUT_NOT_SEEN: Final = (
    "A worker does not find the output folder {output!r}. Use input and output folders that all machines have under "
    "the same path."
)
OTHER_PACKAGES: Final = "The machines have different packages: {pairs}. Install the same versions on all of them."
OTHER_WEIGHTS: Final = "A machine uses the weights {found!r} instead of {version!r}. Copy {version!r} to it."

"""Hold the sentences of the command; ``str.format`` fills in the names in braces."""

from typing import Final

# options that do not go together
ONE_SCAN_FOR_PIN: Final = "--pin can be used for one scan only. Give one file as IN."
PIN_FOR_SCANS: Final = "--pin can be used for one scan only, but INPUT has {count} scans. Give one image as INPUT."
NO_STEP2: Final = (
    "--step1 writes no step2 folder, but --keep-only names only those: {folders}. Leave one of the options out."
)
MAPS_NEEDED: Final = (
    "--{option} passes on the maps in {labels}, which this run does not write. Leave --step1 out, or name {labels} in "
    "--keep-only."
)
SR_NEEDS_SEG: Final = "--sr measures the objects that --seg writes. Add --seg."
SEG_NEEDS_GRID: Final = "--seg needs label maps on the grid of the series. Leave --iso out."
NEEDS_DASK: Final = "--{option} needs --executor dask. Add it, or leave --{option} out."
SCHEDULER_OR_PROFILE: Final = "--scheduler and --profile cannot be used together. Leave one of them out."
NO_DASK: Final = (
    "Runs over many processes need Dask, which is not installed. Install '{name}[cluster]', or leave --executor out."
)
NO_DATA_DIR: Final = "--data-dir: {folder!r} is not a folder. Give a folder of models."

# inputs and outputs
OUTPUT_IS_FILE: Final = "OUTPUT is a file: {output!r}. Give a folder."
OUT_IS_IN: Final = "OUT is the same file as IN: {output!r}. Choose another OUT."
CANNOT_WRITE: Final = "Cannot write to the folder {folder!r} ({error}). Choose another OUT."
NO_MAPS: Final = "There is no label map ({endings}) in {source!r}. Name the folder of the label maps."
NO_LABEL_MAPS: Final = "There is no label map in {folder!r}. Name the folder of the label maps."
NO_IMAGE: Final = "There is no image named {name!r} in {folder!r}. Rename the image or the label map."
NO_LABELED_SCANS: Final = (
    "There are no scans with labels in {folder!r}. See '{command} prepare --help' for how to arrange them."
)
NOTHING_MEASURED: Final = (
    "Nothing could be measured for step {steps}, so nothing was changed: no labeled disc was found in any scan. The "
    "lines above say which scans were left out, if any. Use other scans."
)
NOTHING_TO_PREPARE: Final = "There are {required} in {folder!r}. {remedy}"
NO_CORRECTIONS: Final = "no finished corrections of subjects that are not held out"
SUBMIT_FIRST: Final = "Submit some first."
NO_LABELED_IMAGES: Final = "no images below sub-*/ with labels IMAGE{suffix} below {derivatives}/"
CHECK_SUFFIX: Final = "Check --label-suffix."
NOTHING_TO_BACK_UP: Final = "There is nothing to back up in {folder!r}. Name the folder that a server wrote to."

# what goes on
LOOK_AT: Final = "Look at {x:.0f}, {y:.0f}, {z:.0f} mm (RAS)."
LICENSE_NOTE: Final = (
    "The official weights belong to their authors, who state no license for them: ask them before you pass the weights "
    "on or use them in a product."
)
DOWNLOADING: Final = (
    "Downloading release {release}: two files of just under 1 GiB each; with unpacking they take about {gb:.1f} GB of "
    "disk."
)
MEASURING_RUNTIMES: Final = "Measuring which runtime is faster for step {step}; this takes some minutes, once."
BOX_PASSED: Final = "The box passed. It is used from now on; --whole-image switches it off."
BOX_FAILED: Final = "The box did not pass, so it is not used."
NO_BOX: Final = "The box was not compared, because these networks are coarse and fast themselves."
INT8_PASSED: Final = "INT8 passed. It is used with --runtime {runtime}."
INT8_FAILED: Final = "INT8 did not pass, so it cannot be used with these weights."
HALF_PASSED: Final = "Half precision passed. It is used on GPUs from now on; --runtime torch switches it off."
HALF_FAILED: Final = "Half precision did not pass, so GPUs compute in single precision."

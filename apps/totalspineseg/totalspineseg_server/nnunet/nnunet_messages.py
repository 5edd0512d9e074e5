"""Hold the sentences about weights, runtimes and cases of a training; ``str.format`` fills in the names in braces."""

from typing import Final

# weights that cannot be used
NO_MODEL_FOLDER: Final = "The model folder {folder!r} does not exist. Run '{command} weights install'."
NO_MODEL: Final = (
    "There is no model folder of {wanted} in {folder!r}: none has a plans.json and a dataset.json of TotalSpineSeg. "
    "Run '{command} weights install'."
)
SEVERAL_MODELS: Final = "There are several model folders in {folder!r}: {names!r}. Name the one to use."
NO_CHECKPOINT: Final = "{folder!r} has no checkpoint such as fold_0/{name}. Install the weights again."
UNUSABLE_VERSION: Final = "Version {name!r} has no usable model. Install it again."
UNUSABLE_PLANS: Final = (
    "{folder!r} has no usable plans.json and dataset.json of nnU-Net 2 ({error!r}). Install the weights again."
)
OTHER_REGIONS: Final = (
    "{folder!r} has regions_class_order {found!r} instead of {expected!r}. It is another network: install the weights "
    "of TotalSpineSeg."
)
NO_STOCK_NETWORK: Final = (
    "{folder!r} is not a 3D nnU-Net model of step {step} with a stock network: it has {problem}. Install the weights "
    "of TotalSpineSeg."
)
PATCH_AND_SPACING: Final = "patch {patch!r} and spacing {spacing!r}"
OTHER_PLANS: Final = (
    "The checkpoint {checkpoint!r} does not fit the plans in {folder!r} ({reason}). Install the weights again."
)
CHANGED_PLANS: Final = (
    "The plans.json and dataset.json in {folder!r} are not those that {checkpoint!r} was trained with ({key} "
    "{value!r}). Install the weights again."
)
NOT_A_CHECKPOINT: Final = (
    "{name!r} is not an nnU-Net checkpoint: it has no 'network_weights'. Install the weights again."
)
UNSAFE_CHECKPOINT: Final = (
    "The checkpoint {name!r} would run other code or is damaged: it has more than tensors and plain values. Do not use "
    "it. Download it again from its source."
)
UNREADABLE_CHECKPOINT: Final = "The checkpoint {name!r} cannot be read ({reason}). Install the weights again."
NO_TENSOR: Final = "The network weights {name!r} are not a tensor but {kind}. Install the weights again."
WEIGHTS_NOT_FINITE: Final = "The network weights {name!r} contain NaN or infinity. Install the weights again."
OUTPUT_NOT_FINITE: Final = "The output of the network {name!r} contains NaN or infinity. Install the weights again."
INSTALL_AGAIN: Final = "Install the weights again."
CALIBRATE_AGAIN: Final = "Run '{command} calibrate' again, or delete the file."

# installing weights
NO_ZIP: Final = "The zip {path!r} does not exist. Check the path."
OTHER_HASH: Final = "{name!r} has the SHA-256 {found} instead of {wanted}. Do not use it. Download it again."
UNKNOWN_RELEASE: Final = (
    "{names} is of release {release}, but the release of {others} is not known. Give both zips of one release under "
    "their original names."
)
ONE_ZIP: Final = "The zip of step {step} of release {release} is missing. Give both zips."
OTHER_TILE: Final = (
    "The zip of step 1 is named {release}, but its tile of {tile} voxels is that of {tile_release}. Download both zips "
    "of one release again, and keep their names."
)
RECORD_AGAIN: Final = "Delete it to record the hashes again."
HTTP_ERROR: Final = "The server answered HTTP {code} for {url!r}. {advice}"
NO_CONNECTION: Final = "The connection to {host} failed ({reason}). {advice}"
TOO_LARGE: Final = "The file at {url!r} has {total} bytes (limit {limit} GiB). {advice}"
TOO_LARGE_SO_FAR: Final = "The file at {url!r} has more than {limit} GiB. {advice}"
ADVICE: Final = "Try again (it continues where it stopped), or download the files elsewhere and pass them with --zip."
ENDED_EARLY: Final = "the connection ended early"

# importing and exporting models
NOTHING_IMPORTED: Final = "{name!r} was not imported. {error}"
RESERVED_NAME: Final = (
    "The name {name!r} begins with {prefix!r}, which is reserved for 'weights install'. Choose another name with "
    "--name."
)
NO_MODEL_OF_STEPS: Final = "{name!r} has no model of step 1 or 2. Choose a zip that 'models export' or nnU-Net wrote."
NO_MODEL_IN_FOLDER: Final = "{name!r} has no model of step 1 or 2. Name the folder of nnU-Net's results."
INCOMPLETE_MODEL: Final = (
    "{checkpoint!r} in {name!r} has no plans.json, or no dataset.json with the regions of step 1 or 2, beside it. "
    "Export it again, or leave that model out."
)
NO_READABLE_ZIP: Final = "{name!r} cannot be read as a zip ({error}). Export it again."
NAME_OF_REMOVED: Final = (
    "A version named {name!r} with other weights was here and was removed. Choose another name with --name."
)

# runtimes
NO_PACKAGE: Final = (
    "{needed_by} needs the package {package}, which is not usable ({reason!r}). Install '{app}[openvino]'{else_do}."
)
OR_TORCH: Final = ", or choose runtime 'torch'"
NO_INT8: Final = (
    "The INT8 network of {folder!r} is missing or damaged. Run '{command} weights quantize' again, or choose another "
    "runtime."
)
INT8_NOT_COMPARED: Final = (
    "INT8 was not compared with the exact results for the weights {name!r}, or differed too much. Run '{command} "
    "weights quantize' first, or choose another runtime."
)
WEIGHTS_CHANGED: Final = "The weights {folder!r} changed while they were converted. Try again."
OPENVINO_FAILED: Final = "OpenVINO cannot run the network {folder!r} ({reason}). Choose runtime 'torch'."
GPU_ONLY: Final = (
    "The run computes in half precision, which needs a GPU, but this machine has none. Use runtime 'torch' on machines"
    " with and without a GPU."
)
CPU_ONLY: Final = "Runtime {runtime!r} runs on the CPU only, not on {device!r}. Use device 'cpu' or runtime 'torch'."
NO_GPU: Final = "Device {device!r} needs a CUDA GPU, and there is none. Use 'auto' or 'cpu'."
NO_MEMORY: Final = (
    "There is too little free memory for an image of {size} voxels at 1 mm. Close other programs, or crop the scan to "
    "the spine."
)

# cases of a training
ONLY_ZEROS: Final = "The image has only zeros where the spine is. Check the series."
OTHER_CODES: Final = "The label has the values {strangers!r}, which are not codes of structures. Submit it again."
TOO_LITTLE_LABELED: Final = (
    "The label covers only {mm3} cubic millimeters. A training needs at least {needed}. Finish the label first."
)
NO_DISC: Final = "The label has no disc, which step 2 needs. Draw or name a disc."
CASE_FAILED: Final = "The case {case} could not be prepared. {error} Then train again."
SCAN_FAILED: Final = "The scan {scan} could not be measured. {error} Then start again."
NO_USABLE_CASE: Final = "There is no usable case to train on. Submit a corrected label first."
TWO_SCANS: Final = "There are two scans named {scan!r}. Rename one of them."
TOO_FEW_SUBJECTS: Final = (
    "A fold for validation needs at least {needed} subjects, and there are only {people}. Train on everything with the "
    "fold 'all'."
)
FOREIGN_FILES: Final = (
    "{folder!r} has {count} file{plural} that '{command} prepare' did not write, such as {name!r}. Move such files "
    "away, or write the dataset elsewhere."
)
PREPARE_AGAIN: Final = "Remove its folder, and prepare the dataset again."
NO_TRAINING_CASES: Final = "{folder!r} has no training cases ({suffix}). Name the folder with the cases."
UNREADABLE_CASE: Final = "{name!r} cannot be read as a training case. Write the cases again."
SHAPES_DIFFER: Final = "The image and the labels of {name!r} differ in shape. Write the cases again."
OTHER_GRID: Final = (
    "This training is on a grid of {grid} mm, but its stored state is on {stored} mm. Start over in another folder. To "
    "keep these weights, name this folder with --start-from."
)
STARTER_NOTE: Final = "Starter weights; docs/model-card.md says what they were trained on."

# trainings
LOSS_NOT_FINITE: Final = "The loss was not finite for {count} iterations. Train again with a lower learning rate."
TOO_LITTLE_MEMORY: Final = (
    "There is too little memory on {device} for {what}. Stop other programs on the device, or train on another one."
)

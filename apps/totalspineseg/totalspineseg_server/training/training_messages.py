"""Hold the sentences about trainings and the gate; ``str.format`` fills in the names in braces."""

from typing import Final

# what the trainings are
DESCRIPTION: Final = (
    "Fine-tunes {what} on the submitted corrections, mixed with synthetic cases to prevent forgetting. The new version "
    "is put into use only if nothing became worse on the reference set and on the site's hold-out."
)

# labels and images
IMAGE_GONE: Final = "The image {image!r} is no longer in the studies. Restore it."
IMAGE_REPLACED: Final = (
    "The image {image!r} was replaced after it was labeled. Restore the earlier one, or label the new one."
)
NOT_FINAL: Final = "the label was submitted as {tag!r}, not as {final_tag!r}. Submit it as final when it is finished"
ACCEPTED_HOLDOUT: Final = (
    "The result was accepted unchanged, and its subject is held out from training, so it is used neither for training "
    "nor for comparing models. Correct the scan to use it."
)
TRAINED_TOO: Final = (
    "this image is also used for training under another name, so it cannot be used for comparing models. Give the "
    "images of one person the same subject (sub-..)"
)
LEARNED: Final = "one of the two versions was trained on this image"
NO_CORRECTION: Final = (
    "There is no accepted correction to train these steps on, apart from subjects that are held out ({count} "
    "corrections are for other steps). Submit a corrected label first."
)
NO_USABLE_CORRECTION: Final = "There is no usable correction for step {step}. The log has the reason for each."
WEIGHTS_FAIL: Final = "The weights in use could not be tried. {error} Then train again."
TRAINING_RUNS: Final = "A training is already running on these studies. Wait for it to finish, or stop it."
DAMAGED_HOLDOUT: Final = (
    "The hold-out list {path!r} is damaged or cannot be read. Restore it from a backup before training: without it, "
    "scans that are kept for comparing models would be used for training."
)
OTHER_HOLDOUT: Final = "The hold-out list {file!r} was made by another rule. Restore the original file."

# versions
NOTHING_TO_COMPARE: Final = (
    "There is nothing to compare {name!r} with: it is in use now and was in use before. First activate the version to "
    "compare it with."
)
DAMAGED_RECORD: Final = "The record of version {name!r} is damaged. Start a new training with --restart."
NOT_SERVED: Final = (
    "passed the gate, but is not in use: it was compared with {there}, and now other weights are in use ({here}). To "
    "use it anyway: {command} models activate {name}"
)
REFUSED_SINCE: Final = "passed the gate when it was made, but was not put into use: {refusal}"
TAKEN_BACK: Final = (
    "passed the gate and was in use, but is not put into use again, because somebody has put other weights into use "
    "since. To use it anyway: {command} models activate {name}"
)
FIXED_WEIGHTS: Final = (
    "this server was started with the weights {weights!r}; start it without --weights to use {version}"
)

# the gate's reasons
PASSED_ON: Final = "passed on the {sets} alone: {reason}"
PASSED_ON_REFERENCE: Final = "passed on the reference set alone: {reason}"
PASSED: Final = "passed: nothing fell by more than is allowed, on either set"
TOO_FEW: Final = "the {name} set needs {needed} subjects and has {count}"
FELL: Final = "on the {name} set these fell too far: {measures}"
FELL_BY: Final = "{measure} {change:+.3f} (worst {lower:+.3f}, allowed -{margin:g})"
NOTHING_FELL: Final = "nothing fell by more than is allowed on the {name} set"
UNHANDLED: Final = "{reason}; {unhandled} synthetic spines were not counted, because the weights in use fail on them"
DOUBTED: Final = (
    "{reason}; {doubted} synthetic spines were not counted, because both versions call their names doubtful"
)
LEFT_OUT: Final = "{reason}; {count} of the scans could not be used"
UNTOUCHED: Final = (
    "{reason}; {untouched} structures of the hold-out were not counted, because readers left them as the weights in "
    "use or earlier ones predicted them"
)
SHARE: Final = "{reason}; it has {share:.0%} of the trained weights, because with more of them it did not pass"
TOO_FEW_DEFAULT: Final = (
    "with too few hold-out subjects the reference set alone decides, and the report says so; with too few reference "
    "subjects nothing is published"
)

# trainings from scratch
UNKNOWN_PLAN: Final = "Delete it to plan again. If another training uses this plan, write the cases to another folder."
START_OVER: Final = "Start over with --restart."
NO_CASES: Final = "There are no labeled cases in {folder!r}. Write them with '{command} prepare'."
UNFINISHED_DATASET: Final = (
    "The dataset in {dataset!r} is not finished: {file!r} is missing. Let '{command} prepare' finish."
)
TOO_FEW_GPUS: Final = "--gpus asks for {asked} GPUs, but this machine has {found}. Ask for fewer."
OTHER_PLAN: Final = (
    "The cases have changed since {trained} of {dataset} were trained, and these use the same plan. Remove those "
    "folders below {results!r} to plan for the new cases, or write the new cases to another folder."
)
OTHER_CASES: Final = (
    "The cases have changed since the training of {dataset} began. Start over with --restart, or write the new cases "
    "to another folder."
)
CASES_CHANGED: Final = (
    "The cases have changed while {dataset} was planned. Train again after '{command} prepare' has finished."
)
OTHER_SETTINGS: Final = (
    "This training began with other settings ({first}) than the present ones ({now}). Use the first settings again, or "
    "start over with --restart."
)
NNUNET_FAILED: Final = "nnU-Net failed with exit code {code} ({reason}). {remedy} Run the same command to continue."
SMALLER_SIZE: Final = "Choose a smaller --size."
OUTPUT_AT: Final = "Its output is in {file}."

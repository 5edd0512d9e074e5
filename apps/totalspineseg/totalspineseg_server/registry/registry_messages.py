"""Hold the sentences about versions of weights; ``str.format`` fills in the names in braces."""

from typing import Final

# names of versions
NO_VERSION: Final = "There is no version {name!r}{gone}. Choose one of {known}; see 'models list'."
REMOVED_WEIGHTS: Final = " (its weights were removed)"
BAD_NAME: Final = (
    "{name!r} cannot be the name of a version: it is reserved, or has characters other than letters, digits, '.', '_' "
    "and '-'. Choose another name."
)
UNKNOWN_WEIGHTS: Final = (
    "Weights must be 'starter', 'official', an installed version{known} or a folder, got {weights!r}. List what is "
    "installed with 'weights list'."
)
NOT_INSTALLED: Final = (
    "Version {name!r} is not installed in {folder!r}. Run '{command} weights install', or choose the weights 'starter'."
)
NO_OFFICIAL_WEIGHTS: Final = "The official weights are not installed. Run '{command} weights install'."
DAMAGED_POINTER: Final = "{file!r} is damaged: {strangers!r} cannot be names of versions. {remedy}"
REPAIR: Final = "Delete the file to return to the starter weights, or activate a version again."

# putting versions into use
REFUSED: Final = (
    "Version {name!r} was refused by the gate: {verdict}. Read its report with 'models show', or use --force to "
    "activate it anyway."
)
NOTHING_TO_ROLL_BACK: Final = (
    "There is nothing to roll back to: no version was in use before, or its weights no longer exist. Choose a version "
    "with 'models activate'."
)
JUDGE_AGAIN: Final = "Remove it, and judge the version again."
DAMAGED_FILE: Final = "The file {file!r} is damaged. {remedy}"

# removing versions
NOT_REMOVABLE: Final = "Version {name!r} {reason}. {remedy}"
SHIPPED: Final = "ships with the project and cannot be removed"
OTHERS_ONLY: Final = "Remove only versions that were installed or trained."
IN_USE: Final = "is in use and cannot be removed"
ACTIVATE_ANOTHER: Final = "Activate another version first."
BEFORE_THIS: Final = "would be put into use by 'models rollback'"
ORIGIN: Final = "is the origin of the weights in use, and the gate compares new versions with it"
FORCE: Final = "Use --force to remove it anyway."
LOST_RECORD: Final = (
    "Restore it from a backup. If there is none, delete it: what the version learned from is then not known."
)

# releases, and what the weights are good for
WEIGHTS_IN_USE: Final = "Weights in use: {names}."
STARTER_WARNING: Final = (
    "The starter weights were trained on synthetic spines and 18 people: good for trying the software, not for "
    "patients."
)
DESCENDANT_WARNING: Final = (
    "The weights {name!r} were trained here with {count} from the starter weights, which have seen only synthetic "
    "spines and 18 people: good for trying the software, not for patients."
)
NEWEST_RELEASE: Final = "They come from the official release {release}, the newest that this software supports."
OLDER_RELEASE: Final = (
    "They come from the official release {release}. This software supports the newer {newest}: '{command} weights "
    "install' installs it."
)
NEWER_RELEASE: Final = (
    "They come from the official release {release}; this software was made for {newest} and earlier ones."
)
TOO_OLD: Final = (
    "Release {release} is too old: this software supports {releases}. Install {newest} with '{command} weights "
    "install'."
)
TWO_RELEASES: Final = (
    "The two steps come from different releases: {pair}. Use both steps of one release, for example with '{command} "
    "weights install'."
)

"""Hold the sentences about backups and sets of labeled images; ``str.format`` fills in the names in braces."""

from typing import Final

# sets of labeled images
PAIR_COUNT: Final = (
    "There are {images} images and {labels} labels named {name!r} instead of one each. Rename or remove the extra "
    "files."
)
UNNAMED_VALUE: Final = (
    "{table!r} does not say which structure {value} is, or gives it a name that is not known here ({name!r}). Correct "
    "the table."
)
UNREADABLE_TABLE: Final = "The table {table!r} cannot be read ({error}). Give it the columns index and name."
NO_LABELED_IMAGES: Final = (
    "There are no images below sub-*/ with labels below derivatives/ in {source!r}. Name the folder of the data set, "
    "and check --label-suffix."
)
NOTHING_TO_EXPORT: Final = "There is no finished label to export. Readers finish labels by submitting them."
FOLDER_IN_USE: Final = "The folder {folder!r} is not empty. Choose an empty one."
DAMAGED_KEY: Final = "The key {key!r} is damaged. Restore it from a backup. If you delete it, subjects get other names."

# backups
NO_BACKUP: Final = (
    "It is not a backup that this version can restore. Choose a file that '{command} backup' wrote, or update the "
    "software."
)
BACKUP_EXISTS: Final = "{file!r} exists already. Choose another name for the backup."
TWO_SETTINGS_FILES: Final = "There are two settings files named {name!r}. Rename one of them."
COPY_DIFFERS: Final = "{name!r} differs in the backup from the file that was read. Check the disk, and try again."
NO_FOLDER: Final = "{path!r} is a file. Give a folder."
NOT_RESTORED: Final = "{name!r} cannot be restored, and nothing was changed. {error}"
NOT_EMPTY: Final = "{folder!r} already contains {names}. {remedy}"
OTHER_FOLDER: Final = "Nothing was changed. Choose an empty folder, or one that holds only images."
OTHER_MODELS: Final = "Nothing was changed. Choose another folder of models with --data-dir."
DAMAGED_BACKUP: Final = "{name!r} is missing from the backup or damaged. Use another backup."

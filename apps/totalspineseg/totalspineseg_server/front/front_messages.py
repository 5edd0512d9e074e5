"""Hold the sentences that clients read in answers of the server; ``str.format`` fills in the names in braces."""

from typing import Final

# sign-in
NO_PUBLIC_KEY: Final = "The realm's answer has no 'public_key'. Check MONAI_LABEL_AUTH_REALM_URI."
OTHER_KEY: Final = "The token is signed with another kind of key than the realm's. Sign in again."
NO_USER_NAME: Final = "The token has no user name. Sign in again, or check MONAI_LABEL_AUTH_TOKEN_USERNAME."
OTHER_ISSUER: Final = "The token was issued by {stated!r}, not by {expected!r}. Sign in again."
OTHER_AUDIENCE: Final = "The token is for {stated!r}, not for {expected!r}. Sign in again."
NOT_SIGNED_IN: Final = "The user name or password was not accepted. Check them and sign in again."
ROLE_NEEDED: Final = "Only the role {role!r} may save labels. Run the model without save_label."

# faults
BAD_REQUEST: Final = "{place}: {fault}. Correct the request."
NO_ANSWER: Final = "A server behind this one (sign-in or PACS) did not answer. Try again later."
CANNOT_WRITE: Final = "The server cannot write to its disk ({reason}). Free space, or make it writable, and try again."
OWN_FAULT: Final = "Internal server error. Details are in the server's log."
NO_LOG: Final = "This server writes no log file. Look at its terminal output."
NO_DRIVER: Final = "This machine has no NVIDIA driver ({program} was not found). Install it, or run on the CPU."
DRIVER_SILENT: Final = "{program} did not answer within {seconds:g} s. Restart the GPU's driver."

# refused requests
TOO_LARGE: Final = "The request is larger than the limit of {limit:g} MiB. Send less, or raise --max-upload-mb."
UNSAFE_PATH: Final = "The path contains '..', a backslash or a control character. Correct it."
NO_SESSION_ID: Final = "{text!r} is not a session id. Use the id that the server returned when the session was made."
FOREIGN_NAME: Final = (
    "{host!r} is not a name of this server. Use its machine's name or IP address. The person who runs the server "
    "can add names with --name."
)
FOREIGN_PAGE: Final = (
    "Pages of {origin!r} may not change anything on this server. Use its own pages, or add the origin to "
    "MONAI_LABEL_CORS_ORIGINS."
)
NO_RELOAD: Final = "The app cannot be reloaded over the network. Restart the server."
NO_MODEL_CHANGE: Final = "Models cannot be changed over the network. Use the command '{command} weights'."
NO_SLIDES: Final = "This server segments volumes, not slides. Use /infer/MODEL."
NO_PACS: Final = "There is no PACS behind this server; its studies are in a folder."
RUN_SYNC: Final = "Batch inference and scoring run in the background. Leave run_sync out."
UNKNOWN_NAME: Final = "There is no {kind} {name!r}. Choose one of: {known}."
NO_FILE: Final = "The page has no file {name!r}."

# images, labels and sessions
BUSY_SERVER: Final = "The server is busy ({waiting} requests waiting). Try again later."
NO_IMAGE: Final = "The request names no image. Give an image id, a session or a file."
NO_SESSION: Final = "There is no session {session!r}. It may have expired; start another one."
BAD_IMAGE_ID: Final = "The image id {image!r} is too long or has control characters. Give a short id without them."
ONE_ZIP: Final = "'uncompress' needs exactly one .zip file. Send the series as one .zip."
SESSION_OF_FILES: Final = (
    "The image of this session is a series of files, which cannot be sent back. Leave 'image' out."
)
NO_ARCHIVES: Final = "This server does not make archives of the studies. Copy the studies folder instead."
NO_SESSIONS: Final = "This server has no sessions. Upload the image to the studies instead."
PACS_REFUSED_LABEL: Final = (
    "The PACS did not accept the label. It is stored on this server and counts. The server sends it to the PACS "
    "again when somebody asks for the next sample."
)
OFFER_NOT_RECORDED: Final = (
    "The server could not record that it offered you this image (its log says why). Somebody else may get it, too."
)
NO_LABEL: Final = "The image {image!r} has no label with the tag {tag!r}. Choose one from the list of labels."
RESULT_REPLACED: Final = (
    "The result for {label!r} was replaced a moment ago by one with other structures. Ask again for the next "
    "sample, or for the list of labels."
)
UNREADABLE_LABEL: Final = "The label's file cannot be read. Delete the label, and make it again."
FINISHED_BEFORE_PIN: Final = "This scan is finished already. Undo that first, then pin."
REJECTED: Final = "Rejected. The scan has to be drawn in 3D Slicer or OHIF."
CHOSEN: Final = "This label counts from now on. The others are kept."

# trainings and versions
TRAINING_RUNS: Final = "A training is already running on these studies. Wait for it to finish, or stop it."
BATCH_RUNS: Final = "A batch inference is already running on these studies. Wait for it to finish, or stop it."
SCORING_RUNS: Final = "Scoring is already running on these studies. Wait for it to finish, or stop it."
JUDGING_RUNS: Final = "Version {version!r} is being judged. Wait for it to finish, or stop it."
NOT_JUDGED: Final = "Version {version!r} could not be judged: {reason}"
LOG_SAYS: Final = "the server's log has the reason"
NETWORKS_LOADED: Final = "The networks are loaded."
TRAINING_BEFORE_JUDGING: Final = "A training is running on these studies. Judge the version when it has finished."
FIXED_WEIGHTS: Final = (
    "This server was started with the weights {weights!r}, so another version would not be used. Start it without "
    "--weights (WEIGHTS=) first."
)

# the PACS and its viewer
OTHER_VIEWER: Final = (
    "This viewer cannot {missing}: it is not the version that this server expects. Use it only to look at images, "
    "and install the pinned requirements."
)
NOT_STORED_HERE: Final = "No segmentation with this id was stored here. Store it again."
PACS_REDIRECTS: Final = "The PACS answered with a redirect, which is not followed. Check the address of --studies."
INSTANCES_ONLY: Final = (
    "Instances are stored at 'studies'. Other resources of the PACS cannot be changed through this server."
)
READ_AND_STORE_ONLY: Final = "Only reading (GET) and storing (POST) are passed on to the PACS."
NOTHING_HERE: Final = "There is nothing at this address. Use one below {prefix}/wado or {prefix}/qido."
FAILED_TO_COUNT: Final = "Not counted: the server failed to process this segmentation. Details are in the server's log."
NO_VIEWER: Final = "The viewer is not installed. Run 'make setup' with access to npm, or install a wheel that has it."

# the start
NO_PORT: Final = "Port {port} does not exist. Choose one from {lowest} to {highest} with --port."
FOREIGN_ADDRESS: Final = (
    "{host!r} is not an address of this machine. Choose --host 127.0.0.1 for this machine only, or --host 0.0.0.0 "
    "for its network."
)
TAKEN_PORT: Final = (
    "Port {port} of {host} is taken by another program. Stop that program, or choose another port with --port."
)
UNUSABLE_PORT: Final = "Port {port} of {host} cannot be used ({reason}). Choose another port with --port."

"""Run the annotator's loop unattended: serve synthetic studies, segment, correct, submit, look, train, segment again.

It drives the server with the client module that 3D Slicer ships, in Slicer's order of calls. It writes pictures to
demo/.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import requests

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "apps" / "totalspineseg"), str(ROOT / "tools")]

from local_server import TrainingFailedError, own_app, serving, train  # noqa: E402
from monailabel.client.client import MONAILabelClient, MONAILabelClientException  # noqa: E402

from totalspineseg_server.corrections.correction_store import CorrectionStore  # noqa: E402
from totalspineseg_server.geometry import Volume  # noqa: E402
from totalspineseg_server.io.volumes import read_image, read_labels, write_volume  # noqa: E402
from totalspineseg_server.preview import mid_sagittal, save_picture  # noqa: E402
from totalspineseg_server.processes import unwind_on_signals  # noqa: E402
from totalspineseg_server.segments import (  # noqa: E402
    from_names,
    from_wire,
    without_mark,
)
from totalspineseg_server.synthesis import demo_studies  # noqa: E402
from totalspineseg_server.trust import is_doubtful  # noqa: E402

SEED = 7
PUBLISHED = "published"
NOT_SERVED = ("refused", "kept")
"""Status of a training whose version exists but was not put into use, for a reason that its message states."""
MIN_VOXELS = 50
"""A structure of the truth with fewer voxels is a sliver at the edge and does not count."""
TRAINING = {"iterations": "4", "batch_size": "1", "learning_rate": "1e-5", "replay_cases": "1"}
"""A short training, so gentle that the gate finds nothing worse; `make bench-retrain` has a real one."""


@dataclass(frozen=True)
class Row:
    """The result of one study."""

    study: str
    seconds: float
    named: str
    dice: float
    certainty: str
    sent: str
    back: str
    models: Mapping[str, str]


@dataclass(frozen=True)
class Trained:
    """The result of the training: whether it went well, and its description."""

    well: bool
    text: str


def main() -> int:
    """Run the loop; return 0 if every study came back as it was sent, and the training got its verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="", help="as for 'totalspineseg serve'")
    parser.add_argument("--studies", type=int, default=3, help="number of synthetic studies")
    parser.add_argument("--out", type=Path, default=ROOT / "demo", help="folder for the pictures")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="totalspineseg-demo-") as name:
        folder = Path(name)
        demo_studies(folder / "made", arguments.studies, SEED, labels=True)
        studies = folder / "studies"
        studies.mkdir()
        for image in sorted((folder / "made").glob("*.nii.gz")):
            image.rename(studies / image.name)
        print(f"{arguments.studies} synthetic studies made; starting the server")
        # Use separate models, because the next `make serve` must not serve what the demo trains.
        own_app(folder / "app", arguments.weights)
        with serving(studies, folder / "app", arguments.out / "server.log") as url:
            client = MONAILabelClient(url, tmpdir=str(folder), client_id="demo")
            rows = loop(client, url, studies, folder, arguments.out)
            refusal = refused(client, studies, folder)
            trained = retrained(client, rows) if rows else Trained(False, "NOT TRAINED: there is no finished study")
    print_table(rows)
    print(f"\nA label with an unknown name is kept, not used: {refusal}")
    print(trained.text)
    print(f"Pictures and the server's log: {arguments.out}")
    whole = len(rows) == arguments.studies and all(row.back == "same" for row in rows)
    return 0 if whole and trained.well else 1


def loop(client: MONAILabelClient, url: str, studies: Path, folder: Path, out: Path) -> list[Row]:
    """Ask for the next sample, fetch it, run the model, correct the result and submit it, until no study is left."""
    info = client.info()
    print(f"connected: {info['name']} {info['version']}; models {', '.join(info['models'])}")
    print(info["description"].split(" Cite:")[0])
    rows: list[Row] = []
    for _ in range(len(list(studies.glob("*.nii.gz")))):
        sample = client.next_sample("first", {})
        if not sample:
            break
        try:
            rows.append(one_study(client, url, sample["id"], studies, folder, out))
        except MONAILabelClientException as error:
            print(f"{sample['id']}: {error.msg}")
            break
    print(f"finished: {client.info()['datastore']['completed']} of {len(rows)} studies have a final label")
    return rows


def one_study(client: MONAILabelClient, url: str, study: str, studies: Path, folder: Path, out: Path) -> Row:
    """Run the model, submit its result as Slicer would, and compare it with what the server keeps."""
    requests.get(f"{url}/datastore/image", params={"image": study}, timeout=60).raise_for_status()
    start = time.perf_counter()
    file, report = client.infer("totalspineseg", study, {"result_extension": ".nrrd", "result_dtype": "uint8"})
    seconds = time.perf_counter() - start
    wire = read_labels(Path(file))
    codes = from_names(wire.data, report["label_names"])
    label = folder / "label.nii.gz"
    label_info = as_slicer_sends(label, wire, report["label_names"])
    reply = client.save_label(study, str(label), params={"label_info": label_info})
    store = CorrectionStore(studies / ".totalspineseg")
    correction = store.latest_accepted(study)
    label_map = read_labels(Path(client.download_label(study, "final")))
    same = correction is not None and bool(
        (store.codes(correction) == codes).all() and (from_wire(label_map.data) == codes).all()
    )
    picture(studies / f"{study}.nii.gz", codes, report, out / f"{study}.png")
    truth = read_labels(folder / "made" / "truth" / f"{study}.nii.gz").data
    named, dice = compare(codes, truth)
    certainty = str(report["numbering"]["certainty"])
    back = "same" if same else reply["label"]
    return Row(study, seconds, named, dice, certainty, f"{len(label_info)} segments", back, report["models"])


def as_slicer_sends(path: Path, wire: Volume, names: Mapping[str, int]) -> list[dict[str, Any]]:
    """Write voxel values 1..K in the order of the scene, and return the names in that order."""
    scene = sorted(name for name, value in names.items() if (wire.data == value).any())
    data = np.zeros(wire.data.shape, dtype=np.uint8)
    for value, name in enumerate(scene, start=1):
        data[wire.data == names[name]] = value
    write_volume(path, data, wire.grid)
    # The reader confirms the names: no mark of doubt stays.
    return [{"name": without_mark(name), "idx": value} for value, name in enumerate(scene, start=1)]


def picture(image: Path, codes: npt.NDArray[np.uint8], report: Mapping[str, Any], path: Path) -> None:
    """Write the mid-sagittal picture; levels with doubtful names are striped."""
    known = report["numbering"]
    doubtful = [level["code"] for level in known["levels"]] if is_doubtful(known) else []
    save_picture(path, mid_sagittal(read_image(image), codes, doubtful=doubtful))


def compare(codes: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]) -> tuple[str, float]:
    """Return how many structures of the truth have their name in the result, and the mean Dice over them."""
    present = [int(c) for c in np.unique(truth) if c and (truth == c).sum() >= MIN_VOXELS]
    named, dice = 0, []
    for code in present:
        found = codes[truth == code]
        found = found[found > 0]
        named += bool(len(found)) and int(np.bincount(found).argmax()) == code
        both = int(((codes == code) & (truth == code)).sum())
        dice.append(2 * both / (int((codes == code).sum()) + int((truth == code).sum())))
    return f"{named} of {len(present)}", float(np.mean(dice)) if dice else 0.0


def refused(client: MONAILabelClient, studies: Path, folder: Path) -> str:
    """Submit a label with an unknown name; return the server's answer."""
    study = sorted(studies.glob("*.nii.gz"))[0]
    image = read_image(study)
    label = folder / "unknown.nii.gz"
    write_volume(label, (image.data > image.data.mean()).astype(np.uint8), image.grid)
    try:
        client.save_label(study.name.removesuffix(".nii.gz"), str(label), params={"label_info": [{"name": "tumor"}]})
    except MONAILabelClientException as error:
        answer: str = error.msg.split("Response: ", 1)[-1]
        detail: str = json.loads(answer)["detail"]
        return detail
    return "it was accepted, which is wrong"


def retrained(client: MONAILabelClient, rows: list[Row]) -> Trained:
    """Train on the submitted labels, as Slicer's Train button does, and request the first study again."""
    print(f"training on the {len(rows)} submitted labels:")
    try:
        stats = train(client, "totalspineseg", TRAINING, show=lambda line: print(f"  {line}", flush=True))
        _, report = client.infer("totalspineseg", rows[0].study, {"result_extension": ".nrrd"})
    except TrainingFailedError as error:
        return Trained(False, f"THE TRAINING FAILED: {error}")
    except MONAILabelClientException as error:
        return Trained(False, f"THE TRAINING FAILED: {error.msg}")
    return verdict(stats, rows[0].models, report["models"])


def verdict(stats: Mapping[str, Any], before: Mapping[str, str], after: Mapping[str, str]) -> Trained:
    """Return whether the training did what it reports: a published version is used, a refused one is not.

    Args:
        stats: The trainers' report at the end.
        before: Step -> version that made a result before the training.
        after: The same after the training.
    """
    status, reason = stats.get("status"), stats.get("message") or "no reason given"
    served = f"Made by before: {', '.join(before.values())}\nMade by now:    {', '.join(after.values())}"
    text = f"Trained in {stats.get('seconds')} s; {reason}\n{served}"
    if status == PUBLISHED:
        if all(after[step] != before[step] for step in before):
            return Trained(True, text)
        return Trained(
            False, f"THE TRAINING FAILED: a version was published, but the earlier one is still in use. {text}"
        )
    if status in NOT_SERVED:
        if dict(after) == dict(before):
            return Trained(True, f"The new version is kept, but not in use. {text}")
        return Trained(
            False, f"THE TRAINING FAILED: the new version must not be used, but the weights in use have changed. {text}"
        )
    return Trained(False, f"THE TRAINING FAILED: it ended as {status!r} instead of published or refused. {text}")


def print_table(rows: list[Row]) -> None:
    """Print one line for each study."""
    titles = ("study", "seconds", "names right", "mean Dice", "names", "submitted", "came back")
    lines = [titles]
    for r in rows:
        lines.append((r.study, f"{r.seconds:.1f}", r.named, f"{r.dice:.2f}", r.certainty, r.sent, r.back))
    widths = [max(len(line[k]) for line in lines) for k in range(len(titles))]
    print()
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    unwind_on_signals()
    sys.exit(main())

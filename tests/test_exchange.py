"""Tests of backups of a site, and of BIDS sets of finished labels that leave it or come to it."""

import gzip
import json
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from phantom import image_of
from totalspineseg_server.anatomy import CODE_OF, UNREVIEWED
from totalspineseg_server.bids import LABEL_SUFFIX
from totalspineseg_server.cli import main
from totalspineseg_server.cli.prepare import labeled_scans
from totalspineseg_server.corrections.correction_store import CorrectionStore
from totalspineseg_server.errors import ArchiveError, StorageError
from totalspineseg_server.exchange import site_backup
from totalspineseg_server.exchange.received_set import import_set
from totalspineseg_server.exchange.shared_set import KEY_FILE, export_set
from totalspineseg_server.exchange.site_archive import MANIFEST
from totalspineseg_server.exchange.site_backup import write_backup
from totalspineseg_server.exchange.site_restore import read_backup, restore
from totalspineseg_server.files import write_json
from totalspineseg_server.io.volumes import read_labels, write_volume
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.training.material import is_of_line
from totalspineseg_server.training.site import Site, site_of

GOLDEN = Path(__file__).parent / "golden" / "lower_lumbar_clean" / "step2_output.nii.gz"
PATIENT, BORN = "DoeJohn", "19700131"
NAMES = (f"sub-{PATIENT}{BORN}_ses-20260102_T2w", f"sub-{PATIENT}{BORN}_ses-20260102_T1w")
ID = "20260131T120000.123456Z-1a2b3c4d"


def write_set(folder: Path) -> Path:
    """Write a BIDS set of one patient, whose name and birthday are in every place that a program fills."""
    labels = read_labels(GOLDEN)
    subject, session = NAMES[0].split("_")[:2]
    for k, name in enumerate(NAMES):
        image, codes = image_of(labels.data).astype(np.int16) + k, labels.data.copy()
        if k:
            codes[:, :, :3] = UNREVIEWED
        for part, ending, data in (("", "", image), ("derivatives/labels", LABEL_SUFFIX, codes)):
            place = folder / part / subject / session / "anat"
            place.mkdir(parents=True, exist_ok=True)
            nifti = nib.Nifti1Image(data, labels.affine)
            nifti.header["descrip"] = f"{PATIENT} {BORN}".encode()
            nifti.header.extensions.append(nib.nifti1.Nifti1Extension("comment", f"{PATIENT} {BORN}".encode()))
            nib.save(nifti, place / f"{name}{ending}.nii.gz")
    return folder


def site_at(studies: Path, models: Path) -> Site:
    return site_of(studies, ModelStore(models))


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Studies with the finished labels of an imported set."""
    folder = tmp_path_factory.mktemp("site")
    done = import_set(write_set(folder / "set"), folder / "studies", suffix=LABEL_SUFFIX)
    assert (set(done.added), done.left_out) == (set(NAMES), {})
    return folder / "studies"


def contents(folder: Path) -> dict[str, bytes]:
    """Return path -> content, unpacked."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        found[path.relative_to(folder).as_posix()] = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    return found


def test_an_exported_set_has_no_name_date_or_identifier(studies: Path, tmp_path: Path) -> None:
    done = export_set(site_at(studies, tmp_path), tmp_path / "out")
    assert (done.images, done.subjects, done.left_out) == (2, 1, {})
    for path, data in contents(tmp_path / "out").items():
        for secret in (PATIENT, BORN, "20260102", "import", str(tmp_path), KEY_FILE):
            assert secret.casefold() not in path.casefold()
            assert secret.casefold().encode() not in data.lower()


def test_exported_labels_are_used_for_training_and_can_be_imported_elsewhere(studies: Path, tmp_path: Path) -> None:
    export_set(site_at(studies, tmp_path), tmp_path / "out")
    sources, _ = labeled_scans(tmp_path / "out", LABEL_SUFFIX)
    scans = {scan.name.rpartition("_")[2]: scan for scan in (source.read() for source in sources)}
    truth = read_labels(GOLDEN).data
    np.testing.assert_array_equal(scans["T2w"].codes.data, truth)
    assert set(np.unique(scans["T1w"].codes.data[:, :, :3])) == {UNREVIEWED}
    assert len({scan.subject for scan in scans.values()}) == 1
    done = import_set(tmp_path / "out", tmp_path / "elsewhere", suffix=LABEL_SUFFIX)
    assert len(done.added) == 2
    store = CorrectionStore(tmp_path / "elsewhere" / ".totalspineseg")
    labels = {name.rpartition("_")[2]: store.latest_accepted(name) for name in done.added}
    assert labels["T2w"] is not None and labels["T1w"] is not None
    assert not labels["T2w"].unchanged
    np.testing.assert_array_equal(store.codes(labels["T2w"]), truth)
    assert set(np.unique(store.codes(labels["T1w"])[:, :, :3])) == {UNREVIEWED}


def rewritten(studies: Path, **changes: Any) -> None:
    """Change the records of all labels of some studies."""
    for record in (studies / ".totalspineseg" / "corrections").rglob("record.json"):
        write_json(record, json.loads(record.read_text(encoding="utf-8")) | changes)


def test_a_name_that_nobody_confirmed_leaves_the_site_as_unchecked(studies: Path, tmp_path: Path) -> None:
    """A level left as "L4 ?" was exported as L4, and another site learned from it."""
    l4 = CODE_OF["L4"]
    shutil.copytree(studies, tmp_path / "site")
    rewritten(tmp_path / "site", unconfirmed=[l4])
    export_set(site_at(tmp_path / "site", tmp_path), tmp_path / "out")
    (label,) = (tmp_path / "out").rglob("*desc-T2w_dseg.nii.gz")
    truth = read_labels(GOLDEN).data
    np.testing.assert_array_equal(read_labels(label).data, np.where(truth == l4, UNREVIEWED, truth))


def test_a_result_that_was_accepted_unchanged_is_no_drawn_label_elsewhere(studies: Path, tmp_path: Path) -> None:
    """It went out as drawn by hand, and the gate of the other site compared weights with it."""
    shutil.copytree(studies, tmp_path / "site")
    rewritten(tmp_path / "site", unchanged=True)
    export_set(site_at(tmp_path / "site", tmp_path), tmp_path / "out")
    done = import_set(tmp_path / "out", tmp_path / "elsewhere", suffix=LABEL_SUFFIX)
    store = CorrectionStore(tmp_path / "elsewhere" / ".totalspineseg")
    assert [store.of_image(name)[-1].unchanged for name in done.added] == [True, True]


def test_what_a_reader_left_as_predicted_is_no_truth_elsewhere(studies: Path, tmp_path: Path) -> None:
    """It went out like a drawn structure, and the other gate compared weights with their own answer."""
    shutil.copytree(studies, tmp_path / "site")
    made = {"id": "a", "model": "m", "versions": {"step1": "ours-1a2b3c4d@openvino", "step2": "ours-5e6f7a8b"}}
    rewritten(tmp_path / "site", untouched=[CODE_OF["L4"]], renamed=[CODE_OF["L5"]], prediction=made)
    export_set(site_at(tmp_path / "site", tmp_path), tmp_path / "out")
    done = import_set(tmp_path / "out", tmp_path / "elsewhere", suffix=LABEL_SUFFIX)
    there = site_at(tmp_path / "elsewhere", tmp_path)
    for name in done.added:
        label = there.corrections.of_image(name)[-1]
        assert (label.untouched, label.renamed) == ((CODE_OF["L4"],), (CODE_OF["L5"],))
        assert is_of_line(label.prediction, frozenset({"5e6f7a8b"}))
        # A version of the other site may have the same name.
        assert not is_of_line(label.prediction, frozenset({"ours"}))
    export_set(there, tmp_path / "again")
    back = import_set(tmp_path / "again", tmp_path / "third", suffix=LABEL_SUFFIX)
    third = site_at(tmp_path / "third", tmp_path).corrections
    assert {third.of_image(name)[-1].untouched for name in back.added} == {(CODE_OF["L4"],)}


def test_pseudonyms_are_the_same_at_each_export_of_a_site_and_of_no_other(studies: Path, tmp_path: Path) -> None:
    names = []
    shutil.copytree(studies, tmp_path / "other")
    (tmp_path / "other" / ".totalspineseg" / KEY_FILE).unlink(missing_ok=True)
    for place, out in ((studies, "a"), (studies, "b"), (tmp_path / "other", "c")):
        export_set(site_at(place, tmp_path), tmp_path / out)
        names.append(sorted(contents(tmp_path / out)))
    assert names[0] == names[1] != names[2]
    assert stat.S_IMODE((studies / ".totalspineseg" / KEY_FILE).stat().st_mode) == 0o600


def test_a_set_is_imported_once(studies: Path) -> None:
    done = import_set(studies.parent / "set", studies, suffix=LABEL_SUFFIX)
    assert (done.added, set(done.known)) == ((), set(NAMES))


def test_the_table_of_a_set_says_what_its_numbers_mean(tmp_path: Path) -> None:
    """Another site's map with numbers of its own was read with ours."""
    write_set(tmp_path / "set")
    labels = read_labels(GOLDEN)
    present = [code for code in np.unique(labels.data).tolist() if code]
    rows = [
        f"{k}\tvertebrae_{name}" if name[0] == "L" and "-" not in name else f"{k}\t{name}" for k, name in named(present)
    ]
    table = tmp_path / "set" / "derivatives" / "labels" / "dseg.tsv"
    table.write_text("\n".join(["index\tname", *rows]) + "\n", encoding="utf-8")
    lookup = np.zeros(256, dtype=np.uint8)
    lookup[present] = np.arange(1, len(present) + 1)
    for file in (tmp_path / "set" / "derivatives").rglob("*T2w*.nii.gz"):
        write_volume(file, lookup[labels.data], labels.grid)
    done = import_set(tmp_path / "set", tmp_path / "studies", suffix=LABEL_SUFFIX)
    assert done.added == (NAMES[0],)
    assert "dseg.tsv" in done.left_out[NAMES[1]]
    assert str(CODE_OF["L1"]) in done.left_out[NAMES[1]]
    store = CorrectionStore(tmp_path / "studies" / ".totalspineseg")
    label = store.latest_accepted(NAMES[0])
    assert label is not None
    np.testing.assert_array_equal(store.codes(label), labels.data)


def named(codes: list[int]) -> list[tuple[int, str]]:
    names = {code: name for name, code in CODE_OF.items()}
    return [(k, names[code]) for k, code in enumerate(codes, start=1)]


def test_an_image_that_was_replaced_is_not_exported(studies: Path, tmp_path: Path) -> None:
    shutil.copytree(studies, tmp_path / "studies")
    image = tmp_path / "studies" / f"{NAMES[0]}.nii.gz"
    shutil.copy(tmp_path / "studies" / f"{NAMES[1]}.nii.gz", image)
    done = export_set(site_at(tmp_path / "studies", tmp_path), tmp_path / "out")
    assert done.images == 1
    assert "replaced" in done.left_out[NAMES[0]]
    with pytest.raises(StorageError, match="not empty"):
        export_set(site_at(tmp_path / "studies", tmp_path), tmp_path / "out")


def test_a_set_without_labels_says_what_to_check(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="label-suffix"):
        import_set(tmp_path, tmp_path / "studies", suffix=LABEL_SUFFIX)


# Backups


def a_site(folder: Path) -> Path:
    """Write what a server leaves: corrections, caches, a submission that waits, an index, an image; and versions."""
    history = folder / "studies" / ".totalspineseg"
    for path in (
        f"corrections/a/{ID}/record.json",
        f"corrections/a/{ID}/raw.seg.nrrd",
        "received/20260131T130000.000000Z-00000000/received.json",
        "holdout.json",
        "training/run/run.json",
        "training/run/checkpoint.pth",
        "maps/x/y/raw.nii.gz",
        "thumbnails/x.png",
        "sessions/x/meta.info",
        ".partial-abc/record.json",
        "../datastore_v2.json",
        "../labels/final/.a.nii.gz.json",
        "../labels/final/a.nii.gz",
        "../a.nii.gz",
        "../../model/versions/v1/version.json",
        "../../model/starter/plans.json",
        "../../model/active.json",
    ):
        (history / path).parent.mkdir(parents=True, exist_ok=True)
        (history / path).write_bytes(b'{"101": "v1", "102": "v1"}' if "active" in path else path.encode() * 50)
    return folder / "studies"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return a_site(tmp_path)


def models(folder: Path) -> ModelStore:
    return ModelStore(folder / "model")


@pytest.fixture
def backup(site: Path, tmp_path: Path) -> Path:
    (tmp_path / ".env").write_text("PASSWORD=x\n", encoding="utf-8")
    write_backup(site, models(tmp_path), tmp_path / "site.zip", settings=[tmp_path / ".env"])
    return tmp_path / "site.zip"


def test_a_backup_is_restored_as_it_was(backup: Path, site: Path, tmp_path: Path) -> None:
    there = ModelStore(tmp_path / "new" / "model")
    restore(backup, tmp_path / "new" / "studies", there)
    before, after = contents(site), contents(tmp_path / "new" / "studies")
    settings = after.pop(".totalspineseg/settings/.env")
    assert settings == b"PASSWORD=x\n"
    left_out = before.keys() - after.keys()
    assert after == {path: before[path] for path in before.keys() - left_out}
    parts = {path.removeprefix(".totalspineseg/").split("/")[0] for path in left_out}
    assert parts == {"maps", "thumbnails", "sessions", ".partial-abc", "training", "a.nii.gz"}
    assert ".totalspineseg/training/run/run.json" in after
    assert (there.versions(), there.active()) == (("v1",), {1: "v1", 2: "v1"})
    assert not (there.model_dir / "starter").exists()


def test_images_are_in_a_backup_on_request(site: Path, tmp_path: Path) -> None:
    write_backup(site, models(tmp_path), tmp_path / "all.zip", images=True)
    restore(tmp_path / "all.zip", tmp_path / "new", ModelStore(tmp_path / "m"))
    assert (tmp_path / "new" / "a.nii.gz").is_file()


def test_a_work_folder_is_backed_up_without_the_series_of_the_pacs(tmp_path: Path) -> None:
    work = tmp_path / "work"
    for path in (
        f"corrections/a/{ID}/record.json",
        "pacs/images/a.json",
        "pacs/labels/final/a.nii.gz",
        "pacs/a.nii.gz",
    ):
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        (work / path).write_text("{}", encoding="utf-8")
    write_backup(work, models(tmp_path), tmp_path / "w.zip")
    restore(tmp_path / "w.zip", tmp_path / "new", ModelStore(tmp_path / "m"))
    assert set(contents(tmp_path / "new")) == set(contents(work)) - {"pacs/a.nii.gz"}


def test_a_backup_replaces_no_file_and_is_private(backup: Path, site: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    before = backup.read_bytes()
    with pytest.raises(StorageError, match="Choose another name"):
        write_backup(site, models(tmp_path), backup)
    assert backup.read_bytes() == before


def test_nothing_is_left_of_a_backup_that_failed(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk must not leave half an archive under its name."""
    monkeypatch.setattr(
        site_backup, "_require_same", lambda path, manifest: (_ for _ in ()).throw(StorageError("disk"))
    )
    before = set(tmp_path.iterdir())
    with pytest.raises(StorageError, match="disk"):
        write_backup(site, models(tmp_path), tmp_path / "site.zip")
    assert set(tmp_path.iterdir()) == before


def test_a_submission_that_is_read_during_a_backup_is_in_it_once(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was restored as a correction and as a submission that waits, and would have been read twice."""
    waiting = "20260131T130000.000000Z-00000000"
    add = site_backup._add

    def moving(archive: zipfile.ZipFile, name: str, file: Path) -> Any:
        entry = add(archive, name, file)
        folder = site / ".totalspineseg" / "received" / waiting
        if folder.is_dir():
            target = site / ".totalspineseg" / "corrections" / "b" / waiting
            target.parent.mkdir(parents=True)
            folder.rename(target)
        return entry

    monkeypatch.setattr(site_backup, "_add", moving)
    write_backup(site, models(tmp_path), tmp_path / "site.zip")
    restore(tmp_path / "site.zip", tmp_path / "new", ModelStore(tmp_path / "m"))
    places = [path for path in contents(tmp_path / "new") if waiting in path]
    assert places == [f".totalspineseg/corrections/b/{waiting}/received.json"]


@pytest.mark.parametrize("taken", ["corrections", "versions", "labels"])
def test_nothing_is_restored_over_something(backup: Path, tmp_path: Path, taken: str) -> None:
    new = tmp_path / "new"
    place = {
        "corrections": "studies/.totalspineseg/corrections/b",
        "versions": "model/versions/v0",
        "labels": "studies/labels/final",
    }
    (new / place[taken]).mkdir(parents=True)
    (new / place[taken] / "x.json").write_text("{}", encoding="utf-8")
    before = contents(new)
    with pytest.raises(StorageError, match="Nothing was changed"):
        restore(backup, new / "studies", ModelStore(new / "model"))
    assert contents(new) == before


def test_images_that_were_copied_back_first_stay(backup: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.nii.gz").write_bytes(gzip.compress(b"image"))
    restore(backup, tmp_path / "new", ModelStore(tmp_path / "m"))
    assert contents(tmp_path / "new")["a.nii.gz"] == b"image"


def remade(backup: Path, **changes: Any) -> Path:
    """Write a backup again with other ``files`` (path -> content, None for none) and a change of its ``manifest``."""
    target = backup.with_name("hostile.zip")
    change = changes.pop("manifest", lambda manifest: None)
    with zipfile.ZipFile(backup) as old, zipfile.ZipFile(target, "w") as new:
        manifest = json.loads(old.read(MANIFEST))
        change(manifest)
        files = {name: old.read(name) for name in old.namelist() if name != MANIFEST} | changes.get("files", {})
        for name, content in {**files, MANIFEST: json.dumps(manifest).encode()}.items():
            if content is not None:
                new.writestr(name, content, changes.get("kind", zipfile.ZIP_STORED))
    return target


def link(manifest: dict[str, Any]) -> None:
    entry = manifest["files"].pop("site/.totalspineseg/holdout.json")
    manifest["files"]["site//tmp/holdout.json"] = entry


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"files": {"site/.totalspineseg/holdout.json": b"other"}}, "missing from the backup or damaged"),
        ({"files": {"site/.totalspineseg/holdout.json": None}}, "missing from the backup or damaged"),
        ({"files": {"../outside": b"x"}}, "unsafe"),
        ({"manifest": link}, "not a backup"),
        ({"manifest": lambda m: m.update(format=99)}, "update"),
        ({"manifest": lambda m: m.update(files=[])}, "not a backup"),
        ({"files": {"site/zeros": bytes(3 << 20)}, "kind": zipfile.ZIP_DEFLATED}, "unpacks to"),
    ],
    ids=["changed", "missing", "outside", "absolute", "future", "no list", "bomb"],
)
def test_a_hostile_or_damaged_backup_changes_nothing(
    backup: Path, tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    hostile = remade(backup, **changes)
    with pytest.raises(ArchiveError, match=text):
        restore(hostile, tmp_path / "new", ModelStore(tmp_path / "m"))
    with pytest.raises(ArchiveError, match=text):
        read_backup(hostile)
    assert contents(tmp_path / "new") == {}
    assert not (tmp_path / "m").exists() or contents(tmp_path / "m") == {}


def test_half_a_backup_is_refused(backup: Path, tmp_path: Path) -> None:
    backup.write_bytes(backup.read_bytes()[:-200])
    with pytest.raises(ArchiveError, match="cannot be restored"):
        restore(backup, tmp_path / "new", ModelStore(tmp_path / "m"))


def test_a_file_that_the_list_does_not_name_is_not_restored(backup: Path, tmp_path: Path) -> None:
    hostile = remade(backup, files={"site/.bashrc": b"evil"})
    restore(hostile, tmp_path / "new", ModelStore(tmp_path / "m"))
    assert not (tmp_path / "new" / ".bashrc").exists()


def test_the_commands_say_what_they_did(site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data-dir", str(tmp_path / "model")]
    write_json(site / ".totalspineseg" / "corrections" / "a" / ID / "record.json", {})
    assert main(["backup", str(site), str(tmp_path / "b.zip"), *data]) == 0
    printed = capsys.readouterr().out
    assert "1 submissions of 1 images, 1 versions" in printed and "running" in printed and "no images" in printed
    assert main(["restore", str(tmp_path / "b.zip"), "--check"]) == 0
    assert "sound" in capsys.readouterr().out
    assert main(["restore", str(tmp_path / "b.zip"), str(tmp_path / "s"), "--data-dir", str(tmp_path / "m")]) == 0
    assert "serve --studies" in capsys.readouterr().out
    assert main(["restore", str(tmp_path / "b.zip"), str(site), *data]) == 2
    assert "already" in capsys.readouterr().err
    assert main(["backup", str(tmp_path), str(tmp_path / "c.zip"), *data]) == 2

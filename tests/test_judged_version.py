"""Tests of ``totalspineseg models judge`` for versions that no training here has published."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from test_trainers import scores_of
from tiny_models import write_model_folder
from totalspineseg_server.cli import main
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.registry.records import VersionRecord, images_trained_on, read_record, write_record
from totalspineseg_server.training import holdout, judged_version, judging, scoring
from totalspineseg_server.training.compare import SubjectScores
from totalspineseg_server.training.material import site_material
from totalspineseg_server.training.scoring import JudgedCase, score_models
from totalspineseg_server.training.site import Site
from training_site import SPACING_MM, make_site, tiny_reference

pytestmark = pytest.mark.slow


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Two corrected scans, starter networks in use, and a version from elsewhere with a step-2 network."""
    made = make_site(tmp_path, scans=2)
    with made.models.publish("theirs") as staging:
        write_model_folder(staging, 2, spacing=SPACING_MM, seed=3)
    return made


@pytest.fixture(autouse=True)
def change(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """By how much the judged version differs from the one in use, in place of networks that run."""
    values = {"reference": 0.0, "sub": 0.0}

    def score(cases: Iterable[JudgedCase], **_: Any) -> tuple[SubjectScores, ...]:
        kinds = [case.name.split("-")[0] for case in cases]
        return scores_of(values[kinds[0]]) if kinds else ()

    monkeypatch.setattr(judging, "score_models", score)
    monkeypatch.setattr(judged_version, "reference_cases", lambda _: tiny_reference())
    return values


def run(site: Site, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["models", *words, "--data-dir", str(site.models.model_dir)])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_a_version_from_elsewhere_can_be_judged_before_it_is_used(
    site: Site, capsys: pytest.CaptureFixture[str], change: dict[str, float]
) -> None:
    """Weights from elsewhere were put into use without a gate and without a word, and no command could judge them."""
    assert "the gate has not judged it" in run(site, capsys, "activate", "theirs")[1]
    run(site, capsys, "rollback")
    before = read_record(site.models, "theirs")
    code, out, _ = run(site, capsys, "judge", "theirs", "--device", "cpu")
    assert code == 0, out
    rows = [line.split() for line in out.splitlines()]
    assert rows[1] == ["measure", "active", "candidate", "change", "lower", "margin", "subjects", "allowed"]
    assert ["discs", "0.800", "0.800", "0.000", "0.000", "0.020", "5", "yes"] in rows
    assert "theirs passed" in out
    assert "hold-out set needs 3" in out
    assert (site.models.active()[2], read_record(site.models, "theirs")) == ("starter", before)
    assert "judged 20" in run(site, capsys, "list")[1]
    assert "no gate" not in run(site, capsys, "activate", "theirs")[1]
    assert site.models.active() == {1: "starter", 2: "theirs"}


def test_what_the_gate_refuses_later_is_refused(
    site: Site, capsys: pytest.CaptureFixture[str], change: dict[str, float]
) -> None:
    change["reference"] = -0.2
    code, out, _ = run(site, capsys, "judge", "theirs")
    assert (code, "vertebrae -0.200" in out) == (1, True), out
    displayed: Any = json.loads(run(site, capsys, "show", "theirs")[1])
    (judgment,) = displayed["judgments"]
    assert (judgment["passed"], judgment["report"]["publish"], judgment["report"]["candidate"]) == (
        False,
        False,
        "theirs",
    )
    assert judgment["report"]["active"].startswith("starter-")
    code, _, error = run(site, capsys, "activate", "theirs")
    assert (code, "reference set" in error) == (2, True), error
    change["reference"] = 0.0
    assert run(site, capsys, "judge", "theirs")[0] == 0
    assert run(site, capsys, "activate", "theirs")[0] == 0, "beside what is in use now nothing fell"


def test_what_is_in_use_is_judged_beside_what_was_before(
    site: Site, capsys: pytest.CaptureFixture[str], change: dict[str, float]
) -> None:
    """A version that another server had put into use could be judged only after going back from it."""
    code, _, error = run(site, capsys, "judge", "starter")
    assert (code, "in use before" in error) == (2, True), error
    site.models.activate("theirs", steps=[2])
    change["reference"] = -0.2
    code, out, _ = run(site, capsys, "judge", "theirs")
    assert (code, "theirs compared with starter-" in out, "rollback" in out) == (1, True, True), out
    site.models.activate("theirs", steps=[1, 2])
    code, _, error = run(site, capsys, "judge", "theirs")
    assert (code, "nothing to compare" in error) == (2, True), error


def test_a_hold_out_is_used_without_being_chosen(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, float], monkeypatch: Any
) -> None:
    """Of two servers that share their models, one used a version that its own hold-out had never judged."""
    monkeypatch.setattr(holdout, "FIRST_TO_TRAINING", 1)
    monkeypatch.setattr(holdout, "hash_holds_out", lambda subject: True)
    change["sub"] = -0.2
    code, out, _ = run(site, capsys, "judge", "theirs", str(tmp_path / "studies"))
    assert (code, "vertebrae -0.200" in out and "hold-out" in out) == (1, True), out
    assert not site.holdout_file.exists()
    assert run(site, capsys, "judge", "theirs")[0] == 0
    assert run(site, capsys, "activate", "theirs")[0] == 2, "the reference set alone does not outvote the hold-out"
    (judge,) = site_material(site).holdout
    assert judge.name.startswith("sub-1")


def test_a_version_is_not_compared_on_what_it_learned_from(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, float], monkeypatch: Any
) -> None:
    """Another server with the same models had trained on scans that are held out here, so the version did well on
    them."""
    monkeypatch.setattr(holdout, "FIRST_TO_TRAINING", 1)
    monkeypatch.setattr(holdout, "hash_holds_out", lambda subject: True)
    (judge,) = site_material(site).holdout
    learned = {"correction": "of another server", "image_sha256": judge.provenance["image_sha256"]}
    with site.models.publish("other") as staging:
        write_model_folder(staging, 2, spacing=SPACING_MM, seed=4)
        write_record(staging, VersionRecord("other", "2026", (2,), {}, {}, [learned]))
    change["sub"] = -0.2
    code, out, _ = run(site, capsys, "judge", "other", str(tmp_path / "studies"))
    assert (code, judge.name in out and "was trained on this image" in out) == (0, True), out


@pytest.mark.parametrize("training", [[1], "x", {"image_sha256": "x"}, [{"image_sha256": None}]])
def test_an_imported_version_is_not_compared_on_what_it_says_it_learned_from(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any, training: Any
) -> None:
    """Weights from elsewhere were judged on the scans on which they had been trained, although their record named
    these."""
    monkeypatch.setattr(holdout, "FIRST_TO_TRAINING", 1)
    monkeypatch.setattr(holdout, "hash_holds_out", lambda subject: True)
    (judge,) = site_material(site).holdout
    sha256 = judge.provenance["image_sha256"]
    for name, claim in (("odd", training), ("other", [{"image_sha256": sha256}])):
        with site.models.publish(name) as staging:
            write_model_folder(staging, 2, spacing=SPACING_MM, seed=4)
            imported = {"imported": {"record": {"training": claim}}}
            write_record(staging, VersionRecord(name, "2026", (2,), {}, {}, settings=imported))
        assert run(site, capsys, "judge", name, str(tmp_path / "studies"))[0] == 0
    assert (sha256 in images_trained_on(site.models, "other"), sha256 in images_trained_on(site.models, "odd")) == (
        True,
        False,
    )


def test_a_refusal_holds_under_another_name(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, float]
) -> None:
    """A version that the gate had refused was put into use after an export and an import."""
    change["reference"] = -0.2
    archive = str(tmp_path / "theirs.zip")
    run(site, capsys, "export", "theirs", archive)
    run(site, capsys, "import", archive, "--name", "one")
    run(site, capsys, "judge", "one")
    run(site, capsys, "import", archive, "--name", "two")
    code, _, error = run(site, capsys, "activate", "two")
    assert (code, "reference set" in error) == (2, True), error
    change["reference"] = 0.0
    assert run(site, capsys, "judge", "two")[0] == 0
    assert run(site, capsys, "activate", "one")[0] == 0


def test_real_networks_are_judged(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The networks in use are judged under another name, so nothing can fall."""
    with site.models.publish("same") as staging:
        write_model_folder(staging, 2, spacing=SPACING_MM)
    monkeypatch.setattr(judging, "score_models", score_models)
    # Random weights handle nothing, and would judge by nothing.
    monkeypatch.setattr(scoring, "HANDLED", 0.0)
    monkeypatch.setattr(holdout, "hash_holds_out", lambda subject: True)
    monkeypatch.setattr(holdout, "FIRST_TO_TRAINING", 1)
    (tmp_path / "studies" / "sub-1.nii.gz").unlink()
    code, out, error = run(site, capsys, "judge", "same", str(tmp_path / "studies"), "--device", "cpu")
    assert (code, "same passed" in out) == (0, True), out
    assert "could not be used: sub-1" in out
    assert "comparing on reference-2" in error


def test_a_version_that_does_not_exist_is_not_judged(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run(site, capsys, "judge", "none")
    assert (code, "There is no version 'none'" in error) == (2, True)
    assert not list(ModelStore(site.models.model_dir).model_dir.glob("judgments/*"))


def test_an_unreadable_verdict_of_the_gate_is_not_forgotten(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """A refusal in a damaged file would have let the version into use."""
    run(site, capsys, "judge", "theirs")
    (file,) = site.models.model_dir.glob("judgments/*.json")
    file.write_text(file.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    code, _, error = run(site, capsys, "activate", "theirs")
    assert (code, "judge the version" in error, site.models.active()) == (2, True, {}), error
    file.unlink()
    assert run(site, capsys, "activate", "theirs")[0] == 0

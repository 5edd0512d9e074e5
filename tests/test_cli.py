"""Tests of the command line, mostly in this process: exit codes, messages, files."""

import argparse
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tiny_models
from totalspineseg_server.anatomy import CODE_OF
from totalspineseg_server.cli import COMMANDS, main, prepare
from totalspineseg_server.cohort.outputs import FOLDERS
from totalspineseg_server.geometry import Grid, Volume, labels_to_iso, to_ras
from totalspineseg_server.io.volumes import read_image, read_labels, write_volume
from totalspineseg_server.registry.registry_messages import STARTER_WARNING

GOLDEN = Path(__file__).parent / "golden"
APP = Path(__file__).parents[1] / "apps" / "totalspineseg"
LAUNCHER = f"import sys; sys.path.insert(0, {str(APP)!r}); from totalspineseg_server.cli import main; sys.exit(main())"
SHAPE = (24, 32, 40)


def noise_scan(path: Path, seed: int, first: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(seed).normal(100, 30, SHAPE).astype(np.int16)
    data[0, 0, 0] = first
    write_volume(path, data, Grid(SHAPE, np.diag([-1.0, 1.0, 1.2, 1.0])))
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def small_golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of raw maps."""
    folder = tmp_path_factory.mktemp("maps")
    for case in ("cervical_noise", "lower_lumbar_clean"):
        (folder / f"{case}.nii.gz").write_bytes((GOLDEN / case / "step2_raw.nii.gz").read_bytes())
    return folder


@pytest.mark.parametrize("words", [["--help"], *([command, "--help"] for command in COMMANDS)], ids=" ".join)
def test_help_of_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    assert "usage: totalspineseg" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    """`--help` took ten seconds, because PyTorch was imported first."""
    program = (
        f"import sys; sys.path.insert(0, {str(APP)!r})\n"
        "from totalspineseg_server.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'monailabel', 'numpy', 'nibabel', 'SimpleITK'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.golden
@pytest.mark.parametrize("command", ["label", "lint"])
def test_numbering_commands_import_no_network(command: str, tmp_path: Path) -> None:
    source = str(GOLDEN / "cervical_noise" / ("step2_raw.nii.gz" if command == "label" else "step2_output.nii.gz"))
    words = [command, source, *([str(tmp_path / "out.nii.gz")] if command == "label" else [])]
    program = (
        f"import sys; sys.path.insert(0, {str(APP)!r})\n"
        "from totalspineseg_server.cli import main\n"
        f"assert main({words!r}) == 0\n"
        "heavy = {'torch', 'monailabel', 'monai', 'nnunetv2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere", "out"], "does not exist"),
        (["IN", "out", "--keep-only", "step3"], "--keep-only"),
        (["IN", "out", "--step1", "--keep-only", "step2_output"], "--step1"),
        (["IN", "FILE"], "OUTPUT"),
        (["IN", "out", "--suffix", "_T9w"], "_T9w"),
        (["IN", "out", "--pin", "L5@1,2,3"], "--pin"),
        (["IN", "out", "--loc", "nowhere"], "localizer"),
        (["IN", "out", "--data-dir", "nowhere"], "--data-dir"),
        (["IN", "out", "--device", "gpu", "--data-dir", "MODELS"], "gpu"),
        (["IN", "out", "--scheduler", "tcp://127.0.0.1:1"], "--scheduler"),
        (["IN", "out", "--executor", "dask", "--scheduler", "x", "--profile", "FILE"], "--scheduler and --profile"),
        (["IN", "out", "--executor", "dask", "--profile", "FILE", "--data-dir", "MODELS"], "profile"),
        (["IN", "out", "--weights", "missing"], "'missing'"),
        (["label", "FILE", "out.png"], "ending in"),
        (["label", "FILE", "FILE"], "same file"),
        (["lint", "FILE"], "Export it again"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_requests_that_cannot_be_served(
    words: list[str], sentence: str, tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        noise_scan(tmp_path / "in" / f"{name}.nii.gz", 0)
    (tmp_path / "file.nii.gz").write_bytes(b"no image")
    known = {"IN": tmp_path / "in", "FILE": tmp_path / "file.nii.gz", "MODELS": models, "out": tmp_path / "out"}
    assert main([str(known.get(word, word)) for word in words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("totalspineseg: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["only-input"],
        ["label", "nowhere", "x"],
        ["in", "out", "--pin", "X9@1,2,3"],
        ["in", "out", "--max-workers", "0"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.golden
@pytest.mark.parametrize("method", ["chain", "iterative"])
def test_label_gives_the_golden_names(tmp_path: Path, method: str) -> None:
    source = GOLDEN / "cervicothoracic_clean"
    out, report = tmp_path / "labels.nii.gz", tmp_path / "reports" / "labels.json"
    words = ["label", str(source / "step2_raw.nii.gz"), str(out), "--step", "2", "--method", method]
    assert main([*words, "--report", str(report)]) == 0
    raw, labels = read_labels(source / "step2_raw.nii.gz"), read_labels(out)
    np.testing.assert_allclose(labels.affine, raw.affine, atol=1e-4)
    np.testing.assert_array_equal(labels.data, golden_crop(source, labels))
    content = json.loads(report.read_text(encoding="utf-8"))
    assert content["confident"] is (True if method == "chain" else None)


@pytest.mark.golden
def test_label_keeps_the_grid_of_a_turned_map(tmp_path: Path) -> None:
    """A map with P, I, R axes was returned with R, A, S axes."""
    raw = read_labels(GOLDEN / "cervical_noise" / "step2_raw.nii.gz")
    turned = Volume(np.ascontiguousarray(raw.data.transpose(1, 2, 0)[::-1, ::-1]), _turned_affine(raw))
    write_volume(tmp_path / "turned.nii.gz", turned.data, turned.grid)
    write_volume(tmp_path / "plain.nii.gz", raw.data, raw.grid)
    for name in ("turned", "plain"):
        assert main(["label", str(tmp_path / f"{name}.nii.gz"), str(tmp_path / f"{name}_out.nii.gz")]) == 0
    result = read_labels(tmp_path / "turned_out.nii.gz")
    assert result.data.shape == turned.data.shape
    np.testing.assert_array_equal(to_ras(result).data, read_labels(tmp_path / "plain_out.nii.gz").data)


def _turned_affine(raw: Volume) -> np.ndarray:
    """The affine of the map transposed to (y, z, x), with the first two axes flipped."""
    _, y, z = raw.data.shape
    turn = np.array([[0, 0, 1, 0], [-1, 0, 0, y - 1], [0, -1, 0, z - 1], [0, 0, 0, 1]], dtype=float)
    affine: np.ndarray = raw.affine @ turn
    return affine


@pytest.mark.golden
def test_label_takes_a_folder_and_goes_on_after_a_bad_map(
    small_golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "maps"
    source.mkdir()
    for path in small_golden.iterdir():
        # Endings in capitals were not found.
        name = path.name.replace(".nii.gz", ".NII.GZ") if "lower" in path.name else path.name
        (source / name).write_bytes(path.read_bytes())
    write_volume(source / "empty.nii.gz", np.zeros(SHAPE, dtype=np.uint8), Grid(SHAPE, np.eye(4)))
    assert main(["label", str(source), str(tmp_path / "out"), "--report", str(tmp_path / "reports")]) == 1
    assert "empty.nii.gz" in capsys.readouterr().err
    names = {"cervical_noise", "lower_lumbar_clean"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"cervical_noise.nii.gz", "lower_lumbar_clean.NII.GZ"}
    assert {p.stem for p in (tmp_path / "reports").iterdir()} == names


@pytest.mark.golden
def test_a_pin_renames_the_column(small_golden: Path, tmp_path: Path) -> None:
    """All levels are counted from the pinned one."""
    source = small_golden / "lower_lumbar_clean.nii.gz"
    plain, pinned = tmp_path / "plain.nii.gz", tmp_path / "pinned.nii.gz"
    assert main(["label", str(source), str(plain)]) == 0
    labels = read_labels(plain)
    l4 = np.argwhere(labels.data == CODE_OF["L4"])
    x, y, z = labels.affine[:3, :3] @ l4[len(l4) // 2] + labels.affine[:3, 3]
    assert main(["label", str(source), str(pinned), f"--pin=L3@{x:.2f},{y:.2f},{z:.2f}"]) == 0
    assert read_labels(pinned).data[tuple(l4[len(l4) // 2])] == CODE_OF["L3"]


@pytest.mark.golden
def test_label_uses_a_localizer_on_another_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the localizer, a guess was written without a warning."""
    source = GOLDEN / "thoracic_localizer"
    words = ["label", str(source / "step2_raw.nii.gz"), str(tmp_path / "out.nii.gz")]
    assert main(words) == 0
    doubt = capsys.readouterr().err
    assert "step2_raw.nii.gz: the names are doubtful" in doubt
    assert "a localizer" in doubt
    assert main([*words, "--loc", str(source / "localizer.nii.gz")]) == 0
    assert capsys.readouterr().err == ""
    labels = read_labels(tmp_path / "out.nii.gz")
    expected = golden_crop(source, labels)
    named = expected > 0
    assert CODE_OF["T7"] in expected
    # Cut-off pieces at both ends, which TotalSpineSeg leaves out, may have names.
    np.testing.assert_array_equal(labels.data[named], expected[named])


def golden_crop(case: Path, like: Volume) -> np.ndarray:
    """The reference's step-2 result on the grid of its raw map."""
    whole = read_labels(case / "step2_output.nii.gz")
    start = np.rint(np.linalg.inv(whole.affine) @ like.affine[:, 3])[:3].astype(int)
    return whole.data[tuple(slice(s, s + n) for s, n in zip(start, like.data.shape, strict=True))]


@pytest.mark.golden
def test_lint_reads_maps_of_other_tools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A map with values above 255 ended the command before it read the next file."""
    write_volume(tmp_path / "other.nii.gz", np.full((9, 9, 9), 1007, np.uint16), Grid((9, 9, 9), np.eye(4)))
    write_volume(tmp_path / "empty.nii.gz", np.zeros((9, 9, 9), np.uint8), Grid((9, 9, 9), np.eye(4)))
    sound = GOLDEN / "cervicothoracic_clean" / "step2_output.nii.gz"
    assert main(["lint", str(tmp_path / "other.nii.gz"), str(tmp_path / "empty.nii.gz"), str(sound)]) == 1
    lines = [line.split(":")[:2] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["other.nii.gz", " unknown_code"],
        ["other.nii.gz", " not_checked"],
        ["empty.nii.gz", " not_checked"],
    ]


@pytest.mark.parametrize(
    ("codes", "levels"),
    [
        ((21, 22, 23, 24), "T1 to T4"),
        ((71, 63, 2), "C2-C3 to C7-T1"),
        ((50, 45, 100), "L5 to sacrum"),
        ((43,), ": L3."),
    ],
    ids=str,
)
def test_lint_names_the_levels_that_it_read(
    tmp_path: Path, codes: tuple[int, ...], levels: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """VerSe numbers L2 to L5 as 21 to 24, which is a sound map of T1 to T4 here, and nobody noticed."""
    data = np.zeros((30, 30, 90), np.uint8)
    for k, code in enumerate(codes):
        data[10:20, 10:20, 70 - 20 * k : 80 - 20 * k] = code
    write_volume(tmp_path / "a.nii.gz", data, Grid(data.shape, np.eye(4)))
    main(["lint", str(tmp_path / "a.nii.gz")])
    assert levels in capsys.readouterr().err


def test_label_names_the_values_of_a_finished_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message did not say what is wrong with the map."""
    data = np.zeros((9, 9, 9), np.uint8)
    data[4, 4, 4], data[4, 4, 6] = 43, 50
    write_volume(tmp_path / "a.nii.gz", data, Grid(data.shape, np.eye(4)))
    assert main(["label", str(tmp_path / "a.nii.gz"), str(tmp_path / "b.nii.gz")]) == 2
    error = capsys.readouterr().err
    assert "[43, 50]" in error and "is required" not in error


@pytest.mark.golden
def test_lint_takes_a_folder_and_goes_on_after_a_bad_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of maps was refused as one without DICOM images, and an unreadable map ended the command."""
    shutil.copy(GOLDEN / "cervicothoracic_clean" / "step2_output.nii.gz", tmp_path / "b.nii.gz")
    assert main(["lint", str(tmp_path)]) == 0
    (tmp_path / "a.nii.gz").write_bytes(b"text")
    (tmp_path / "c.mgz").touch()
    write_volume(tmp_path / "d.nii.gz", np.zeros((9, 9, 9), np.uint8), Grid((9, 9, 9), np.eye(4)))
    assert main(["lint", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "d.nii.gz: not_checked" in printed.out
    assert "a.nii.gz: " in printed.err and "'c.mgz'" in printed.err


@pytest.mark.golden
@pytest.mark.parametrize(("file", "code"), [("step2_output", 0), ("step2_raw", 1)])
def test_lint_exits_with_1_if_it_finds_something(file: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", str(GOLDEN / "cervicothoracic_clean" / f"{file}.nii.gz")]) == code
    lines = capsys.readouterr().out.splitlines()
    assert bool(lines) is bool(code)
    assert all("mm (RAS)." in line for line in lines if not line.startswith("not_checked"))


@pytest.mark.slow
def test_run_over_a_folder_with_networks(tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command is run: BIDS in, all folders out, one bad scan, and nothing left to do the second time."""
    source = tmp_path / "in"
    noise_scan(source / "sub-01" / "anat" / "sub-01_T2w.nii.gz", 1, first=32000)
    noise_scan(source / "sub-02" / "ses-a" / "anat" / "sub-02_ses-a_T2w.nii.gz", 2)
    noise_scan(source / "sub-02" / "ses-a" / "anat" / "sub-02_ses-a_T1w.nii.gz", 2)
    (source / "bad_T2w.nii.gz").write_bytes(b"")
    words = [str(source), str(tmp_path / "out"), "--suffix", "_T2w", "--data-dir", str(models), "--device", "cpu"]
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert "2 done, 0 finished before, 1 failed" in out
    assert re.search("sub-01_T2w: .*32000", out)
    assert "is not a readable NIfTI" in err
    for folder in FOLDERS:
        assert len(list((tmp_path / "out" / folder).glob("sub-02_ses-a_T2w*"))) == (13 if folder == "preview" else 1)
    document = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert document["options"]["suffix"] == ["_T2w"]
    assert list(csv.DictReader((tmp_path / "out" / "measurements.csv").read_text(encoding="utf-8").splitlines()))
    (source / "bad_T2w.nii.gz").unlink()
    assert main([*words, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_run_of_the_starter_weights_ends_with_a_warning(
    tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the server's page and a column of the report said that results are not for patients."""
    noise_scan(tmp_path / "in" / "a.nii.gz", 1)
    shutil.copytree(models, tmp_path / "model" / "starter")
    words = [str(tmp_path / "in"), str(tmp_path / "out"), "--step1", "--keep-only", "step1_output", "--device", "cpu"]
    for folder, warns in ((models, False), (tmp_path / "model", True), (tmp_path / "model", True)):
        assert main([*words, "--data-dir", str(folder)]) == 0
        assert (capsys.readouterr().out.splitlines()[-1] == STARTER_WARNING) is warns
        assert (STARTER_WARNING in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")) is warns


@pytest.mark.slow
def test_nothing_left_to_do_is_seen_without_torch(tmp_path: Path, models: Path) -> None:
    """A run over finished scans took ten seconds, because it loaded the networks, or Dask, first."""
    noise_scan(tmp_path / "in" / "a.nii.gz", 1)
    words = [tmp_path / "in", tmp_path / "out", "--step1", "--keep-only", "step1_output", "--data-dir", models]
    words = [*map(str, words), "--device", "cpu"]
    assert main(words) == 0
    program = (
        f"import sys; sys.path.insert(0, {str(APP)!r})\n"
        "from totalspineseg_server.cli import main\n"
        f"assert main({words!r}) == 0\n"
        "heavy = {'torch', 'monailabel', 'monai', 'nnunetv2', 'dask', 'distributed'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, encoding="utf-8")
    assert "0 done, 1 finished before, 0 failed" in found.stdout


@pytest.mark.slow
def test_a_local_run_imports_no_dask(tmp_path: Path, models: Path) -> None:
    noise_scan(tmp_path / "in" / "a.nii.gz", 1)
    words = [str(tmp_path / "in"), str(tmp_path / "out"), "--step1", "--data-dir", str(models), "--device", "cpu"]
    program = (
        f"import sys; sys.path.insert(0, {str(APP)!r})\n"
        "from totalspineseg_server.cli import main\n"
        f"assert main({words!r}) == 0\n"
        "heavy = {'monailabel', 'dask', 'distributed', 'dask_jobqueue'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_nothing_half_written_after_kill_9(tmp_path: Path, models: Path) -> None:
    """A killed run left half a file under its final name, and the next run counted the scan as finished."""
    for k in range(6):
        noise_scan(tmp_path / "in" / f"s{k}.nii.gz", 1)
    out = tmp_path / "out"
    words = [str(tmp_path / "in"), str(out), "--data-dir", str(models), "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    limit = time.monotonic() + 200
    while process.poll() is None and not list(out.glob("reports/s*.json")) and time.monotonic() < limit:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path.stem for path in out.glob("reports/s*.json")}
    assert 0 < len(finished) < 6, "killed on the way"
    for path in [*out.glob("*/s*.nii.gz")]:
        read_image_or_labels(path)
    for path in out.glob("reports/s*.json"):
        assert all((out / file).is_file() for file in json.loads(path.read_text(encoding="utf-8"))["files"])
    assert main([*words, "--quiet"]) == 0
    document = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert set(document["finished_before"]) == finished
    assert len(document["done"]) == 6 - len(finished)


def read_image_or_labels(path: Path) -> None:
    volume = read_labels(path) if "output" in path.parent.name or "raw" in path.parent.name else None
    if volume is None and path.parent.name == "input":
        volume = read_image(path)
    assert path.stat().st_size > 0
    assert volume is None or labels_to_iso(volume).data.size


def test_weights_are_listed_installed_and_chosen(
    tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    archives = []
    for folder in sorted(models.glob("Dataset*")):
        archives.append(shutil.make_archive(str(tmp_path / folder.name), "zip", models, folder.name))
    data_dir = ["--data-dir", str(tmp_path / "installed")]
    assert main(["weights", "list", *data_dir]) == 0
    assert "totalspineseg weights install" in capsys.readouterr().out
    assert main(["weights", "install", *data_dir, "--zip", *archives, "--sha256", "00", "00"]) == 2
    assert "instead of 00" in capsys.readouterr().err
    assert main(["weights", "install", *data_dir, "--zip", *archives]) == 0
    name = capsys.readouterr().out.partition("installed ")[2].partition(";")[0]
    assert main(["weights", "list", *data_dir]) == 0
    assert f"* {name}  in use for step 1 and 2" in capsys.readouterr().out
    noise_scan(tmp_path / "a.nii.gz", 0)
    words = [str(tmp_path / "a.nii.gz"), str(tmp_path / "out"), "--step1", "--quiet", "--device", "cpu", *data_dir]
    assert main([*words, "--keep-only", "step1_output"]) == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["models"]["step1"].startswith(name)


@pytest.mark.parametrize(
    ("text", "share"),
    [("0", 0), ("0.35", 0.35), ("1", 1), ("1.1", None), ("-0.1", None), ("nan", None), ("half", None)],
)
def test_a_share_is_a_number_from_0_to_1(text: str, share: float | None) -> None:
    """``prepare --disturbed-share 35`` disturbed the discs of every case."""
    if share is None:
        with pytest.raises(argparse.ArgumentTypeError, match="0 to 1"):
            prepare._share(text)
    else:
        assert prepare._share(text) == share

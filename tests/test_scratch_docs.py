"""Tests of the pages about training from scratch: offline commands are run, the others are parsed."""

import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from tiny_models import write_model_folder
from totalspineseg_server.anatomy import CANAL, CODE_OF, LUMBAR, UNREVIEWED
from totalspineseg_server.cli import COMMANDS, _parser, main
from totalspineseg_server.io.volumes import read_labels, write_volume
from totalspineseg_server.nnunet.raw_dataset import FOUND_BY
from totalspineseg_server.nnunet.raw_folder import NnunetFolders, read_cases
from totalspineseg_server.nnunet.targets import IGNORE_CLASS
from totalspineseg_server.registry.model_store import ModelStore, dataset_name
from totalspineseg_server.training import scratch
from training_site import SPACING_MM, tiny_scan

ROOT = Path(__file__).parents[1]
PAGE = "".join((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("from-scratch", "prepare"))
SETS = (ROOT / "docs" / "training-sets.md").read_text(encoding="utf-8")
# Fences alternate; a block that names a language ("sh") needs the network.
BLOCKS = [block.removeprefix("\n") for block in PAGE.split("```")[1::2] if block.startswith("\n")]
LINES = [line for block in BLOCKS for line in block.splitlines() if line]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the scans and trained models that the page's commands use."""
    image, codes = tiny_scan(1)
    for subject in range(5):
        name = f"sub-{subject}_T2w"
        for part, ending, volume in (("", "", image), ("derivatives/labels", "_label-spine_dseg", codes)):
            folder = tmp_path / "bids" / part / f"sub-{subject}" / "anat"
            folder.mkdir(parents=True)
            write_volume(folder / f"{name}{ending}.nii.gz", volume.data, volume.grid)
    monkeypatch.chdir(tmp_path)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def test_the_page_has_commands_and_names_every_option() -> None:
    assert len(LINES) >= 8
    for command in ("train", "prepare"):
        text = _parser(command, import_module(f"totalspineseg_server.cli.{command}")).format_help()
        options = set(re.findall(r"--[a-z0-9-]+", text)) - {"--help", "--version"}
        assert {option for option in options if option not in PAGE} == set()


@pytest.mark.slow
def test_the_commands_of_the_page_run_in_their_order(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another test runs nnU-Net's own programs; here only their arguments are checked."""
    asked: list[list[str]] = []
    store = ModelStore(lab / "model")
    monkeypatch.setattr(scratch._Scratch, "_run", lambda run, module, words, variables: asked.append(list(words)))
    monkeypatch.setattr(scratch.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(scratch.torch.cuda, "device_count", lambda: 2)
    for line in LINES:
        words = shlex.split(line)
        if words[0] != "totalspineseg":
            continue
        if words[1] == "models":
            words += ["--data-dir", str(store.model_dir)]
        if "nnUNet/results" in words:
            # Step 1 is there when step 2 is prepared, step 2 when both are imported.
            write_model_folder(NnunetFolders.at().results, 2 if words[2:3] == ["import"] else 1, spacing=SPACING_MM)
        if "--discs-by" in words:
            words += ["--device", "cpu"]
        assert words[1] in COMMANDS
        assert main(words[1:]) == 0, (line, capsys.readouterr().err)
        if words[1] == "prepare" and words[3:] != ["--step", "1"]:
            copies = lab.glob(f"nnUNet/raw/{dataset_name(2)}/labelsTr/sub-4_T2w_o2e.nii.gz")
            assert len(list(copies)) == ("--no-o2e" not in words)
        if "nnUNet/results" in words and words[1] == "prepare":
            cases = read_cases(NnunetFolders.at().raw / dataset_name(2)).values()
            assert any(case["discs"].startswith(f"{FOUND_BY}results-") for case in cases)
    assert store.active() == {1: "ours", 2: "ours"}
    trained = [words for words in asked if "-tr" in words]
    assert [words[:3] for words in trained[:2]] == [["101", "3d_fullres", "0"], ["102", "3d_fullres", "0"]]
    assert any("nnUNetResEncUNetMPlans" in words and "all" in words for words in trained)
    assert any("-num_gpus" in words for words in trained)


# --- SPIDER


def spider_mask() -> Any:
    """A column with SPIDER's values along z, in LPS+ as in its files: vertebrae 1..4, discs 201.., canal."""
    mask = np.zeros((40, 12, 8), np.uint8)  # z, y, x as SimpleITK takes it
    for level in range(4):
        mask[4 + 8 * level : 7 + 8 * level, 2:6] = 201 + level
        mask[7 + 8 * level : 12 + 8 * level, 2:6] = (1 if level < 3 else 101) + level
    mask[:, 8:10, 3:5] = 100
    return mask


def write_mha(path: Path, array: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((4.0, 1.0, 1.5))
    sitk.WriteImage(image, str(path))


@pytest.mark.slow
def test_spider_becomes_labels_that_say_what_nobody_looked_at(tmp_path: Path) -> None:
    """Masks without sacrum and cord would teach that these do not exist."""
    mask = spider_mask()
    write_mha(tmp_path / "images" / "7_t2_SPACE.mha", (mask * 3).astype(np.int16))
    write_mha(tmp_path / "masks" / "7_t2_SPACE.mha", mask)
    write_mha(tmp_path / "images" / "overview.mha", mask)
    (line,) = [line for line in SETS.splitlines() if "spider_to_bids" in line]
    words = shlex.split(line)
    words[:2] = [sys.executable, str(ROOT / words[1])]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)
    assert result.returncode == 1
    assert "overview.mha" in result.stderr
    labels = tmp_path / "bids/derivatives/labels/sub-007/anat/sub-007_acq-SPACE_T2w_label-spine_dseg.nii.gz"
    codes = read_labels(labels).data
    column = [int(codes[2, -4, z]) for z in range(40)]
    assert [column[z] for z in (5, 13, 21, 29)] == [CODE_OF[n] for n in ("L5-S", "L4-L5", "L3-L4", "L2-L3")]
    assert [column[z] for z in (9, 17, 25, 33)] == [LUMBAR[4], LUMBAR[3], LUMBAR[2], LUMBAR[1]]
    assert column[0] == UNREVIEWED
    assert column[38] == 0
    canal = codes[4, 12 - 1 - 8, :]
    assert (canal[7:31] == CANAL).all()
    assert (canal[31:] == UNREVIEWED).all()
    assert main(["prepare", str(tmp_path / "bids"), str(tmp_path / "raw"), "--step", "1"]) == 0
    target = read_labels(tmp_path / "raw" / dataset_name(1) / "labelsTr" / "sub-007_acq-SPACE_T2w.nii.gz").data
    assert (target == IGNORE_CLASS[1]).any()

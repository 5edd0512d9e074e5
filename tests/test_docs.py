"""Tests of the documentation: the commands of each page run, in order, in a folder with the files they name.

In a page, a block of ``sh`` is run. The lines of ``sh finds`` may end with exit code 1, too. Those of ``sh no-run``
need a network, a GPU, a cluster or a client: of them the project's own commands are parsed, and targets of make looked
up. A block of ``yaml NAME`` is written to the file NAME. Scans are phantoms that the networks read by brightness.
"""

import re
import shlex
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import tiny_models
from dicom_series import itk_slices
from phantom import CodeReader, image_of, lumbar_codes
from totalspineseg_server.cli import COMMANDS, _parser, common, main
from totalspineseg_server.cohort import worker
from totalspineseg_server.cohort.cluster_profile import read_profile
from totalspineseg_server.geometry import Grid
from totalspineseg_server.io.volumes import write_volume

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = (
    *("first-scan", "cohort", "localizer", "server", "ohif", "training", "versions", "cluster", "offline-install"),
    *("speed", "calibration", "install"),
)
RUN_ELSEWHERE = (
    *(
        "cli",
        "exchange",
        "from-scratch",
        "prepare",
        "training-sets",
        "measurements",
        "measured",
        "design",
        "model-card",
        "python",
    ),
)
"""Pages whose commands other tests run, or that have none."""
BLOCK = re.compile(r"^```([a-z]+)?[ ]?([^\n]*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
OUTSIDE = ("export", "dask", "apt-get", "curl", "pip", "uv", "docker", "python")
"""Programs of others."""
EXITS = {"": (0,), "finds": (0, 1)}


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Return the kind, the rest of the opening line and the text of each block of a page."""
    return [(kind, rest, text) for kind, rest, text in BLOCK.findall((DOCS / f"{page}.md").read_text(encoding="utf-8"))]


def words_of(line: str) -> list[str]:
    """Return a command without its comment, and without settings of variables before it."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    return words


def parsed(words: list[str]) -> None:
    """Check a command of the project without running it."""
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for target in targets:
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"make has no target {target}"
        for name in (word.split("=")[0] for word in words[1:] if "=" in word):
            assert re.search(rf"^{name} \?=", makefile, flags=re.MULTILINE), f"make knows no {name}"
    elif words[0].endswith(("totalspineseg", "totalspineseg-server")):
        rest = words[1:]
        command = rest.pop(0) if rest[0] in COMMANDS else "run"
        _parser(command, import_module(f"totalspineseg_server.cli.{command.replace('-', '_')}")).parse_args(rest)
    else:
        assert words[0] in OUTSIDE, f"a command that nothing checks: {words}"
        named = [word for word in words if word.startswith(("containers/", "requirements"))]
        assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write_models(tmp_path_factory.mktemp("models"))


def phantom_image() -> np.ndarray:
    """A lumbar column (X, Y, Z) RAS whose brightness is its code."""
    return image_of(lumbar_codes()[:, :, :125]).astype(np.int16)


def scan(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = phantom_image()
    x, y, z = data.shape
    write_volume(path, data, Grid((x, y, z), np.eye(4)))


def series(folder: Path) -> None:
    """Write the same column as a DICOM series."""
    folder.mkdir(parents=True)
    image = sitk.GetImageFromArray(np.ascontiguousarray(phantom_image()[::-1, ::-1].transpose(2, 1, 0)))
    with itk_slices() as write:
        for k in range(image.GetDepth()):
            place = "\\".join(map(str, image.TransformIndexToPhysicalPoint((0, 0, k))))
            tags = {"0020|000d": "1.2.3", "0020|000e": "1.2.4", "0008|0018": f"1.2.5.{k}", "0020|0032": place}
            more = {"0020|0037": "1\\0\\0\\0\\1\\0", "0020|0013": str(k), "0008|0060": "MR"}
            write(folder / f"{k:03d}.dcm", image[:, :, k], tags | more)


class Readers:
    """Networks that read the codes from the brightness."""

    def get(self, step: int) -> CodeReader:
        return CodeReader(step)


@pytest.fixture
def folder(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with the files that the pages name, and with its own model folder."""
    place = tmp_path / "work"
    scan(place / "scan.nii.gz")
    scan(place / "scan.v2.nrrd")
    for subject in ("01", "02"):
        for contrast in ("T1w", "T2w"):
            scan(place / "bids" / f"sub-{subject}" / "anat" / f"sub-{subject}_{contrast}.nii.gz")
    series(place / "dicom" / "patient 1" / "T2 sag")
    labels = ROOT / "tests" / "golden" / "lower_lumbar_clean" / "step2_output.nii.gz"
    (place / "localizers").mkdir()
    shutil.copy(labels, place / "localizer.nii.gz")
    for subject in ("01", "02"):
        shutil.copy(labels, place / "localizers" / f"sub-{subject}_T1w.nii.gz")
    shutil.copytree(models, tmp_path / "model" / "starter")
    monkeypatch.setattr(common, "MODEL_DIR", tmp_path / "model")
    for module in ("weights", "models"):
        monkeypatch.setattr(
            import_module(f"totalspineseg_server.cli.{module}"), "MODEL_DIR", tmp_path / "model", raising=False
        )
    monkeypatch.setattr(worker, "warm_networks", lambda *_, runtime, **__: Readers())
    monkeypatch.chdir(place)
    yield place


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("page", "workers"),
    [*((page, False) for page in PAGES), pytest.param("cluster", True, marks=pytest.mark.release)],
)
def test_the_commands_of_a_page(page: str, workers: bool, folder: Path, models: Path) -> None:
    """A run over worker processes is only parsed, unless ``workers`` is set: it takes half a minute to start."""
    if page == "offline-install":
        zips(folder, models)
    for kind, rest, text in blocks(page):
        if kind == "yaml":
            (folder / rest).write_text(text, encoding="utf-8")
            read_profile(folder / rest)
            continue
        assert kind == "sh", f"a block of {kind or 'nothing'} in {page}"
        for line in text.splitlines():
            words = words_of(line)
            if rest == "no-run" or ("--executor" in words and not workers):
                in_place(folder, words)
                parsed(words)
            else:
                assert words[0] == "totalspineseg"
                # The worker processes have the tiny networks, which find a spine or none.
                assert main(words[1:]) in EXITS["finds" if "--executor" in words else rest], line


def in_place(folder: Path, words: list[str]) -> None:
    """Make what a command that is not run needs in order to be parsed, such as STUDIES and RAW.nii.gz."""
    for word in words[1:]:
        if re.fullmatch(r"[A-Z]+(\.[a-z.]+)?", word):
            (folder / word).touch()


def zips(folder: Path, models: Path) -> None:
    """Make the zips that the page about installing names."""
    for step in (1, 2):
        name = tiny_models.DATASETS[step]
        made = shutil.make_archive(str(folder / "made"), "zip", models, name)
        Path(made).rename(folder / f"{name}_r20260730.zip")
    assert main(["models", "export", "starter", "trained.zip"]) == 0


EVERYWHERE = {"--help", "--version"}
"""Options of every command, which docs/cli.md has."""


@pytest.mark.parametrize(("command", "page"), [("serve", "server"), ("retrain", "training")])
def test_a_page_names_every_option_of_its_command(command: str, page: str) -> None:
    text = _parser(command, import_module(f"totalspineseg_server.cli.{command}")).format_help()
    named = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    assert {option for option in re.findall(r"--[a-z0-9-]+", text) if f"`{option}" not in named} <= EVERYWHERE


def test_every_page_is_checked_and_linked() -> None:
    """A page that nobody checks keeps commands that have long changed."""
    pages = {path.stem for path in DOCS.glob("*.md")}
    links = (DOCS / "README.md").read_text(encoding="utf-8")
    assert {page for page in pages - {"README"} if f"]({page}.md)" not in links} == set()
    assert "(docs/README.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    unchecked = {
        page
        for page in pages - {*PAGES, *RUN_ELSEWHERE}
        if "```sh" in (DOCS / f"{page}.md").read_text(encoding="utf-8")
    }
    assert unchecked == set()


def test_the_tests_that_a_page_names_exist() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
    tests = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", pages))
    assert named and named <= set(re.findall(r"^def (test_\w+)", tests, re.MULTILINE))


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda path: path.stem)
def test_a_page_fits_two_screens(page: Path) -> None:
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) <= 100


@pytest.mark.parametrize(
    "line",
    re.findall(
        r"^(?:\.venv/bin/totalspineseg|totalspineseg-server) .*$",
        (ROOT / "README.md").read_text(encoding="utf-8"),
        re.M,
    ),
)
def test_commands_of_the_readme(line: str, folder: Path) -> None:
    words = words_of(line)
    in_place(folder, words)
    parsed(words)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *DOCS.rglob("*.md")], ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    """A page was renamed or divided, and links to it or to its headings led nowhere."""
    lost = []
    for target in re.findall(r"\]\(([^):]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        other = page.parent / name if name else page
        if not other.exists() or (anchor and anchor not in anchors(other)):
            lost.append(target)
    assert lost == []


def test_the_index_lists_each_decision() -> None:
    index = (DOCS / "decisions" / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\((\d{4}-[^)]+)\)", index) == sorted(path.name for path in DOCS.glob("decisions/0*.md"))

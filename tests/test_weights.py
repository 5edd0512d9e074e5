"""Tests of installing weights: unreliable connections, hostile zips, other files with a known name."""

import io
import json
import shutil
import stat
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import totalspineseg_server.io.zips as zips_module
import totalspineseg_server.nnunet.model_zips as zips_of_models
from tiny_models import write_model_folder
from totalspineseg_server.cli import main
from totalspineseg_server.cli import weights as weights_command
from totalspineseg_server.errors import StorageError, WeightsError
from totalspineseg_server.files import sha256_of
from totalspineseg_server.nnunet import installation as weights_module
from totalspineseg_server.nnunet.download import download
from totalspineseg_server.nnunet.installation import assets, install
from totalspineseg_server.nnunet.model_zips import unpack_model
from totalspineseg_server.nnunet.networks import Networks
from totalspineseg_server.registry.model_store import ModelStore
from totalspineseg_server.registry.releases import NEWEST, RELEASES


def zip_folder(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return target


@pytest.fixture(scope="module")
def zips(tmp_path_factory) -> list[Path]:
    """Zips with the official names and layout, and random weights."""
    root = tmp_path_factory.mktemp("zips")
    made = []
    for step, asset in enumerate(assets(NEWEST), start=1):
        folder = root / f"step{step}"
        path = write_model_folder(folder, step, seed=7)
        (path / "fold_0" / "progress.png").write_bytes(b"plot")
        made.append(zip_folder(folder, root / asset))
    return made


class Release(BaseHTTPRequestHandler):
    """Serves files with ranges; drops the connection after ``drop`` bytes, ``drops`` times."""

    files: dict[str, bytes]
    etags: dict[str, str]
    drop: int
    drops: int
    ranges: bool
    seen: list[str]

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.seen.append(self.headers.get("Range", ""))
        if name not in self.files:
            self.send_error(404)
            return
        content, start, etag = self.files[name], 0, self.etags.get(name, '"1"')
        asked = self.headers.get("Range")
        if asked and self.ranges and self.headers.get("If-Range", etag) == etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if type(self).drops > 0:
            type(self).drops -= 1
            body = body[: self.drop]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def release(zips) -> Iterator[tuple[str, type[Release]]]:
    handler = type(
        "Handler",
        (Release,),
        {
            "files": {path.name: path.read_bytes() for path in zips},
            "etags": {},
            "drop": 0,
            "drops": 0,
            "ranges": True,
            "seen": [],
        },
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_install_from_zips(tmp_path, zips):
    name = install(tmp_path, zips=zips)
    assert name == "official-r20260730"
    networks = Networks(ModelStore(tmp_path), device="cpu")
    assert [networks.get(step).folder.step for step in (1, 2)] == [1, 2]
    assert networks.get(1).version.startswith("official-r20260730-")
    record = json.loads((tmp_path / "versions" / name / "weights.json").read_text(encoding="utf-8"))
    assert record["zips"] == {path.name: sha256_of(path) for path in zips}
    assert record["models"]["1"] == networks.get(1).version
    assert not list(tmp_path.rglob("progress.png")), "only what a model needs is taken"


def test_install_from_the_web(tmp_path, release, zips):
    url, handler = release
    reports: list[tuple[int, int]] = []
    assert (
        install(tmp_path, url=url, progress=lambda done, total: reports.append((done, total))) == "official-r20260730"
    )
    sizes = [path.stat().st_size for path in zips]
    assert [report for report in reports if report[0] == report[1]] == [(size, size) for size in sizes]
    assert not list((tmp_path / "downloads").glob("*.zip*"))
    assert len(handler.seen) == 2


def test_broken_line_is_continued(tmp_path, release, zips):
    """A download that broke off at 90 % started from zero."""
    url, handler = release
    content = zips[0].read_bytes()
    handler.drop, handler.drops = len(content) // 3, 2
    target = tmp_path / "a.zip"
    download(f"{url}/{zips[0].name}", target, pause_s=0)
    assert target.read_bytes() == content
    third = len(content) // 3
    assert handler.seen == ["", f"bytes={third}-", f"bytes={2 * third}-"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_later_call_continues_an_earlier_one(tmp_path, release, zips):
    url, handler = release
    content = zips[0].read_bytes()
    handler.drop, handler.drops = 1000, 1
    with pytest.raises(WeightsError, match=r"127\.0\.0\.1"):
        _interrupted(f"{url}/{zips[0].name}", tmp_path / "a.zip", handler)
    assert (tmp_path / "a.zip.part").stat().st_size == 1000
    download(f"{url}/{zips[0].name}", tmp_path / "a.zip", pause_s=0)
    assert (tmp_path / "a.zip").read_bytes() == content
    assert handler.seen[-1] == "bytes=1000-"


def _interrupted(url: str, target: Path, handler: type[Release]) -> None:
    """Return a response from which 1000 bytes arrive, and then nothing."""
    handler.drops = 1
    original = handler.drop

    def progress(done: int, total: int) -> None:
        handler.drop, handler.drops = 0, 1000

    try:
        download(url, target, progress=progress, attempts=2, pause_s=0)
    finally:
        handler.drop, handler.drops = original, 0


def test_changed_file_is_not_glued_to_the_old_half(tmp_path, release, zips):
    """A release that was replaced between two attempts gave a zip of two halves."""
    url, handler = release
    name = zips[0].name
    with pytest.raises(WeightsError):
        handler.drop = 1000
        _interrupted(f"{url}/{name}", tmp_path / "a.zip", handler)
    handler.files = handler.files | {name: b"another file" * 500}
    handler.etags = {name: '"2"'}
    download(f"{url}/{name}", tmp_path / "a.zip", pause_s=0)
    assert (tmp_path / "a.zip").read_bytes() == b"another file" * 500


def test_server_without_ranges_starts_over(tmp_path, release, zips):
    url, handler = release
    handler.ranges, handler.drop, handler.drops = False, 1000, 1
    download(f"{url}/{zips[0].name}", tmp_path / "a.zip", pause_s=0)
    assert (tmp_path / "a.zip").read_bytes() == zips[0].read_bytes()


def test_killed_before_the_last_rename(tmp_path, release, zips):
    url, _ = release
    (tmp_path / "a.zip.part").write_bytes(zips[0].read_bytes())
    download(f"{url}/{zips[0].name}", tmp_path / "a.zip", pause_s=0)
    assert (tmp_path / "a.zip").read_bytes() == zips[0].read_bytes()


def test_too_long_leftover_is_dropped(tmp_path, release, zips):
    url, _ = release
    (tmp_path / "a.zip.part").write_bytes(zips[0].read_bytes() + b"more")
    download(f"{url}/{zips[0].name}", tmp_path / "a.zip", pause_s=0)
    assert (tmp_path / "a.zip").read_bytes() == zips[0].read_bytes()


def test_a_missing_file_is_reported_at_once(tmp_path, release):
    url, handler = release
    with pytest.raises(WeightsError, match="HTTP 404"):
        download(f"{url}/none.zip", tmp_path / "a.zip", pause_s=0)
    assert len(handler.seen) == 1


def test_dead_server_is_given_up(tmp_path):
    with pytest.raises(WeightsError, match="pass them with --zip"):
        download("http://127.0.0.1:9/a.zip", tmp_path / "a.zip", attempts=2, pause_s=0)


@pytest.mark.parametrize("url", ["http://example.org/a.zip", "file:///etc/passwd", "ftp://127.0.0.1/a"])
def test_only_https(tmp_path, url):
    with pytest.raises(WeightsError, match="https address"):
        download(url, tmp_path / "a.zip")


def test_installing_twice_is_quick_and_the_same(tmp_path, zips):
    install(tmp_path, zips=zips)
    folder = tmp_path / "versions" / "official-r20260730"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    ModelStore(tmp_path).versions()
    (tmp_path / "active.json").unlink()
    assert install(tmp_path, zips=zips) == "official-r20260730"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert ModelStore(tmp_path).active() == {1: "official-r20260730", 2: "official-r20260730"}


def test_another_file_under_a_known_name_is_refused(tmp_path, zips):
    """A release that was replaced on the server after the first installation was installed unnoticed."""
    install(tmp_path, zips=zips)
    other = tmp_path / "other" / zips[0].name
    other.parent.mkdir()
    other.write_bytes(zips[0].read_bytes() + b"\0")
    with pytest.raises(WeightsError, match=f"{sha256_of(other)}.*{sha256_of(zips[0])}"):
        install(tmp_path, zips=[other, zips[1]])
    with pytest.raises(WeightsError, match="SHA-256"):
        install(tmp_path, zips=[other, zips[1]], sha256=[sha256_of(other), sha256_of(zips[1])])


def test_expected_hash_is_compared(tmp_path, zips):
    right = [sha256_of(path).upper() for path in zips]
    with pytest.raises(WeightsError, match=r"SHA-256.* 0000"):
        install(tmp_path, zips=zips, sha256=["0000", right[1]])
    with pytest.raises(WeightsError, match=r"SHA-256.*1 for 2"):
        install(tmp_path, zips=zips, sha256=right[:1])
    assert not (tmp_path / "versions").exists()
    assert install(tmp_path, zips=zips, sha256=right) == "official-r20260730"


def test_a_refused_download_is_deleted(tmp_path, release):
    """A damaged download counted as complete and failed again at every later attempt."""
    url, handler = release
    good = handler.files
    handler.files = dict.fromkeys(good, b"<html>login</html>")
    with pytest.raises(WeightsError, match=r"not a readable \.zip"):
        install(tmp_path, url=url)
    handler.files = good
    assert install(tmp_path, url=url) == "official-r20260730"


def test_other_zips_get_a_name_of_their_own(tmp_path, zips):
    mine = []
    for index, path in enumerate(zips):
        mine.append(tmp_path / f"mine{index}.zip")
        mine[-1].write_bytes(path.read_bytes())
    name = install(tmp_path / "model", zips=mine)
    assert name.startswith("zip-")
    assert ModelStore(tmp_path / "model").resolve(2).name == name


def test_flat_zips_may_use_the_same_names(tmp_path):
    made = []
    for step in (1, 2):
        write_model_folder(tmp_path / f"flat{step}", step, nested=False)
        made.append(zip_folder(tmp_path / f"flat{step}", tmp_path / f"step{step}.zip"))
    install(tmp_path / "model", zips=made)
    networks = Networks(ModelStore(tmp_path / "model"), device="cpu")
    assert [networks.get(step).folder.step for step in (1, 2)] == [1, 2]


def test_half_an_installation_changes_nothing(tmp_path, zips):
    install(tmp_path / "model", zips=zips)
    one = tmp_path / "one.zip"
    one.write_bytes(zips[0].read_bytes())
    with pytest.raises(WeightsError, match=r"step 2 .*r20260730"):
        install(tmp_path / "model", zips=[one])
    store = ModelStore(tmp_path / "model")
    assert store.versions() == ("official-r20260730",)
    assert store.resolve(1).name == "official-r20260730"
    assert [p.name for p in store.versions_dir.iterdir()] == ["official-r20260730"]


def test_a_missing_zip_is_reported(tmp_path):
    with pytest.raises(WeightsError, match=r"none\.zip'"):
        install(tmp_path, zips=[tmp_path / "none.zip"])


def entry(name: str, *, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.filename = name
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(
    ("info", "match"),
    [
        pytest.param(entry("../plans.json"), "leaves its folder", id="parent"),
        pytest.param(entry("a/../../plans.json"), "leaves its folder", id="parent-inside"),
        pytest.param(entry("/tmp/plans.json"), "leaves its folder", id="absolute"),
        pytest.param(entry("C:/plans.json"), "leaves its folder", id="drive"),
        pytest.param(entry("..\\plans.json"), "leaves its folder", id="backslash"),
        pytest.param(entry("fold_0", mode=stat.S_IFLNK | 0o777), "a link", id="symlink"),
        pytest.param(entry("pipe", mode=stat.S_IFIFO | 0o777), "a link or device", id="pipe"),
        pytest.param(entry("dataset.json"), "twice", id="twice"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_zip_is_refused_whole(tmp_path, info, match):
    """A zip with paths outside its folder wrote files there."""
    archive = tmp_path / "bad.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("dataset.json", "{}")
        content.writestr(info, "/etc/passwd")
    target = tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    with pytest.raises(WeightsError, match=match):
        unpack_model(archive, target)
    assert list(target.iterdir()) == []
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["bad.zip", "deep", "target"]


def bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as content:
        content.writestr("plans.json", b" " * (4 << 20))
    return buffer.getvalue()


def lying_bomb() -> bytes:
    """A zip that claims to unpack to ten bytes."""
    content = bytearray(bomb())
    real = (4 << 20).to_bytes(4, "little")
    assert content.count(real) == 2
    return bytes(content.replace(real, (10).to_bytes(4, "little")))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        pytest.param(bomb(), "unpacks to far more", id="bomb"),
        pytest.param(lying_bomb(), "not a readable .zip", id="lying-bomb"),
        pytest.param(b"", "not a readable .zip", id="empty"),
        pytest.param(b"<html>", "not a readable .zip", id="web-page"),
        pytest.param(bomb()[:-40], "not a readable .zip", id="cut"),
    ],
)
def test_bombs_and_damaged_zips_are_refused(tmp_path, content, match):
    (tmp_path / "a.zip").write_bytes(content)
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(WeightsError, match=match):
        unpack_model(tmp_path / "a.zip", target)
    assert sum(path.stat().st_size for path in target.rglob("*")) <= 1 << 20


@pytest.mark.parametrize(
    ("module", "name", "value", "match"),
    [
        (zips_module, "MAX_ENTRIES", 1, "more than 1 entries"),
        (zips_of_models, "MAX_TOTAL_BYTES", 10, "unpacks to more"),
    ],
)
def test_limits_of_a_zip(tmp_path, zips, monkeypatch, module, name, value, match):
    monkeypatch.setattr(module, name, value)
    with pytest.raises(WeightsError, match=match):
        unpack_model(zips[0], tmp_path)


def test_zip_without_a_model(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as content:
        content.writestr("readme.txt", "hello")
    with pytest.raises(WeightsError, match="no files that are needed"):
        unpack_model(tmp_path / "a.zip", tmp_path)


def test_a_full_disk_is_reported_before_unpacking(tmp_path, zips, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(zips_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match="too little disk space"):
        unpack_model(zips[0], tmp_path)


@pytest.mark.parametrize("name", RELEASES)
def test_the_release_is_a_choice(tmp_path, release, zips, name):
    url, handler = release
    content = [path.read_bytes() for path in zips]
    handler.files = dict(zip(assets(name), content, strict=True))
    assert install(tmp_path, release=name, url=url) == f"official-{name}"
    record = json.loads((tmp_path / "versions" / f"official-{name}" / "weights.json").read_text(encoding="utf-8"))
    assert record["release"] == name


def renamed(zips: list[Path], folder: Path, *names: str) -> list[Path]:
    folder.mkdir()
    return [Path(shutil.copy(path, folder / name)) for path, name in zip(zips, names, strict=True)]


@pytest.mark.parametrize(
    ("releases", "match"),
    [
        pytest.param(("r20251124", "r20260730"), "step1_r20251124.*from r20251124 and step 2.*r20260730", id="mixed"),
        pytest.param(("r20241005", "r20241005"), "r20241005 is too old.*r20260730", id="too-old"),
        pytest.param(("r20241005", "r20260730"), "r20241005 is too old", id="old-and-mixed"),
    ],
)
def test_pairs_of_no_release_are_refused_by_name(tmp_path, zips, releases, match):
    """Step 1 of one release was put into use with step 2 of another, as a version "zip-..."."""
    names = [assets(release)[index] for index, release in enumerate(releases)]
    with pytest.raises(WeightsError, match=match):
        install(tmp_path / "model", zips=renamed(zips, tmp_path / "zips", *names))
    assert ModelStore(tmp_path / "model").versions() == ()


def test_a_zip_of_unknown_origin_is_not_paired_with_an_official_one(tmp_path, zips):
    with pytest.raises(WeightsError, match=r"r20260730.*'mine\.zip'"):
        install(tmp_path / "model", zips=renamed(zips, tmp_path / "zips", zips[0].name, "mine.zip"))


def test_a_second_download_is_known_by_its_name(tmp_path, zips):
    """After a browser had added " (1)" to a name, the official weights had no name."""
    names = [f"{path.stem} (1).zip" for path in zips]
    assert install(tmp_path / "model", zips=renamed(zips, tmp_path / "zips", *names)) == "official-r20260730"


def test_renamed_zips_are_known_by_their_content(tmp_path, zips):
    """A file that was installed once is known by its content, under any name, even that of another release."""
    install(tmp_path / "model", zips=zips)
    plain = renamed(zips, tmp_path / "plain", "a.zip", "b.zip")
    assert install(tmp_path / "model", zips=plain) == "official-r20260730"
    wrong = renamed(zips, tmp_path / "wrong", *assets("r20251124"))
    assert install(tmp_path / "model", zips=wrong) == "official-r20260730"
    known = json.loads((tmp_path / "model" / "known-zips.json").read_text(encoding="utf-8"))
    assert sorted(known) == sorted(assets("r20260730"))


def test_a_name_that_the_content_denies_is_refused(tmp_path):
    """A tile of 256 x 256 x 48 voxels belongs to r20251124, whatever the name of the file is."""
    made = {}
    for step in (1, 2):
        write_model_folder(tmp_path / f"step{step}", step, patch=(256, 256, 48))
        made[step] = zip_folder(tmp_path / f"step{step}", tmp_path / f"{step}.zip")
    newest, right = (renamed(list(made.values()), tmp_path / name, *assets(name)) for name in RELEASES[::-1])
    with pytest.raises(WeightsError, match=r"r20260730.*256 x 256 x 48.*r20251124"):
        install(tmp_path / "model", zips=newest)
    assert install(tmp_path / "model", zips=right) == "official-r20251124"


def test_extras_beside_the_checkpoint_do_not_matter(tmp_path, zips):
    """A validation summary that compresses well was mistaken for a zip bomb."""
    made = []
    for path in zips:
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / path.name, "w", zipfile.ZIP_DEFLATED) as sink:
            for known in source.infolist():
                sink.writestr(known, source.read(known))
            fold = next(name for name in source.namelist() if name.endswith(".pth")).rpartition("/")[0]
            for extra in ("test/summary.json", "debug.json", "progress.png.txt"):
                sink.writestr(f"{fold}/{extra}", b" " * (4 << 20))
        made.append(tmp_path / path.name)
    name = install(tmp_path / "model", zips=made)
    found = {path.name for path in (tmp_path / "model" / "versions" / name).rglob("*") if path.is_file()}
    assert found == {"plans.json", "dataset.json", "checkpoint_final.pth", "weights.json"}


def test_room_is_checked_before_the_download(tmp_path, release, monkeypatch):
    url, handler = release
    monkeypatch.setattr(zips_module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 4 * 10**9}))
    with pytest.raises(StorageError, match=r"4100 MiB .*3814 MiB"):
        install(tmp_path, url=url)
    assert handler.seen == []


def test_size_and_license_come_before_the_download(tmp_path, monkeypatch, capsys):
    before = []

    def fail(*_: object, release: str, **__: object) -> str:
        before.append(capsys.readouterr().out)
        raise WeightsError(f"no network for {release}")

    monkeypatch.setattr(weights_module, "install", fail)
    words = ["weights", "install", "--data-dir", str(tmp_path)]
    assert [main(words), main([*words, "--release", "r20251124"])] == [2, 2]
    for text, name in zip(before, ("r20260730", "r20251124"), strict=True):
        assert "license" in text
        assert name in text
        assert "1 GiB" in text
        assert "4.3 GB" in text
    with pytest.raises(SystemExit):
        main([*words, "--release", "r20241005"])
    assert "r20251124" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("terminal", "total", "written"),
    [
        (False, 10, ["0 of 10 MiB (0 %)", "5 of 10 MiB (50 %)", "10 of 10 MiB (100 %)", ""]),
        (True, 10, ["\r\x1b[2K0 of 10 MiB (0 %)\r\x1b[2K5 of 10 MiB (50 %)\r\x1b[2K10 of 10 MiB (100 %)", ""]),
        (True, 0, ["\r\x1b[2K0 MiB", "\r\x1b[2K5 MiB\r\x1b[2K5 MiB\r\x1b[2K10 MiB"]),
    ],
)
def test_a_download_shows_how_far_it_is(
    terminal: bool, total: int, written: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    bar = weights_command._Bar()
    for done in (0, 5, 5, 10):
        bar(done * weights_command.MIB, total * weights_command.MIB)
    assert capsys.readouterr().err.split("\n") == written

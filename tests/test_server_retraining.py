"""Tests of trainings on a running server that is killed or asked twice at once, with the client module of 3D Slicer."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest
import requests
from local_server import own_app
from monailabel.client.client import MONAILabelClient, MONAILabelClientException

from pacs_serving import wait_for
from phantom import RAS, image_of, lumbar_codes
from serving import MAX_UPLOAD_MB, Server, phantom_server, running_server
from tiny_models import write_models
from totalspineseg_server.anatomy import WIRE_LABELS
from totalspineseg_server.corrections.correction_store import CorrectionStore
from totalspineseg_server.geometry import Volume
from totalspineseg_server.io.volumes import write_volume
from totalspineseg_server.nnunet.networks import Networks
from totalspineseg_server.registry.model_store import STARTER
from totalspineseg_server.segments import to_wire
from totalspineseg_server.training.runs import is_running, newest_run, only_one, state_of
from training_site import SPACING_MM, tiny_scan

IMAGE = "sub-1"
PHANTOM = Volume(lumbar_codes(), RAS.affine)
ENDLESS = {"iterations": "100000", "batch_size": "1", "replay_cases": "0", "device": "cpu"}
# The client leaves its sockets to the garbage collector.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


def able_to_train(folder: Path) -> Path:
    """Fill a folder with what a server needs to train: an image to correct, and tiny networks."""
    (folder / "studies").mkdir()
    write_volume(folder / "studies" / f"{IMAGE}.nii.gz", image_of(lumbar_codes()), RAS)
    write_models(folder / "app" / "model" / "starter", spacing=SPACING_MM)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return able_to_train(tmp_path)


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that has not trained; the first test refuses all trainings, and only the second one begins some."""
    with running_server(able_to_train(tmp_path_factory.mktemp("idle"))) as running:
        yield running


def client_of(server: Server) -> MONAILabelClient:
    return MONAILabelClient(server.url, tmpdir=str(server.studies.parent), client_id="trainer")


def correct(server: Server, codes: Volume = PHANTOM) -> None:
    label = server.studies.parent / "label.nii.gz"
    write_volume(label, to_wire(codes.data), codes.grid)
    names = [{"name": name, "idx": value} for name, value in WIRE_LABELS.items()]
    client_of(server).save_label(IMAGE, str(label), params={"label_info": names})


def training_dir(server: Server) -> Path:
    return server.studies / ".totalspineseg" / "training"


def text_of_log(server: Server, step: int) -> str:
    run = newest_run(training_dir(server))
    file = run / f"step{step}" / "log.txt" if run else Path("none")
    return file.read_text(encoding="utf-8") if file.exists() else ""


def test_the_successor_of_a_killed_server_goes_on_with_its_training(folder: Path) -> None:
    """After kill -9 of the server, its training held the lock until somebody found the process by hand."""
    with running_server(folder) as server:
        correct(server)
        client_of(server).train_start("totalspineseg", ENDLESS)
        wait_for(
            lambda: "epoch" in text_of_log(server, 1) or [*training_dir(server).glob("*/step1/checkpoint_latest.pth")]
        )
        assert is_running(training_dir(server))
        server.process.kill()
        wait_for(lambda: not is_running(training_dir(server)))
        state = state_of(training_dir(server))
        assert state is not None
        assert (state.status, state.message[:20]) == ("stopped", "stopped at iteration")
        run = newest_run(training_dir(server))
    with running_server(folder) as server:
        client_of(server).train_start("totalspineseg", ENDLESS)
        wait_for(lambda: "resumed at iteration" in text_of_log(server, 1))
        assert newest_run(training_dir(server)) == run
        client_of(server).train_stop()
    assert CorrectionStore(folder / "studies" / ".totalspineseg").latest_accepted(IMAGE) is not None


def test_a_training_that_cannot_begin_is_refused_with_the_reason(idle: Server) -> None:
    """The training was accepted, ended within a second, and clients still showed how the previous one had ended."""
    facts = {"correction": {}, "replay_share": {"replay_share": "1"}, "cuda:77": {"device": "cuda:77"}}
    for fact, settings in facts.items():
        with pytest.raises(MONAILabelClientException, match="422") as refused:
            client_of(idle).train_start("totalspineseg_step1", settings)
        assert fact in refused.value.msg
    assert requests.get(f"{idle.url}/train/", timeout=60).status_code == 404, "no task was begun"


def test_the_second_of_two_trainings_at_once_is_refused_and_frees_nothing(idle: Server) -> None:
    """Two trainings that were requested at once both started, and a refused one had released the networks."""
    correct(idle)

    def post(model: str) -> requests.Response:
        return requests.post(f"{idle.url}/train/{model}", json=ENDLESS, timeout=60)

    def times_freed() -> int:
        freed = idle.signals / "freed"
        return len(freed.read_text(encoding="utf-8").splitlines()) if freed.exists() else 0

    # Another program trains on the same studies.
    with only_one(training_dir(idle)):
        refused = post("totalspineseg")
    assert (refused.status_code, times_freed()) == (429, 0)
    assert "already running" in refused.json()["detail"]
    (idle.signals / "slow-free").write_text("1", encoding="utf-8")
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(post, ("totalspineseg", "totalspineseg_step1")))
    assert sorted(answer.status_code for answer in answers) == [200, 429]
    assert post("totalspineseg_step2").status_code == 429
    assert times_freed() == 1
    every = requests.get(f"{idle.url}/train/?all=true", timeout=60).json()
    started = next(answer.json() for answer in answers if answer.status_code == 200)
    assert [(task["id"], task["status"]) for task in every] == [(started["id"], "RUNNING")]
    client_of(idle).train_stop()
    assert post("totalspineseg").status_code == 200, "after a stop the next one starts"
    client_of(idle).train_stop()


def test_a_client_starts_watches_and_stops_a_training(folder: Path) -> None:
    """Stopping kills the process; what was submitted stays, and the run can be continued."""
    with running_server(folder) as server:
        client = client_of(server)
        assert {"totalspineseg", "totalspineseg_step1", "totalspineseg_step2"} == set(client.info()["trainers"])
        correct(server)
        assert not (server.signals / "freed").exists()
        client.train_start("totalspineseg", {"iterations": "100000", "replay_cases": "0", "device": "cpu"})
        # Else the server's networks keep the GPU memory that the training needs.
        assert (server.signals / "freed").exists()
        wait_for(lambda: list(training_dir(server).glob("*/step1/checkpoint_latest.pth")))
        wait_for(lambda: client.info()["train_stats"]["totalspineseg_step2"]["epoch"] >= 1)
        assert {entry["status"] for entry in client.info()["train_stats"].values()} == {"running"}
        assert client.train_status(check_if_running=True) is True
        # Others are served meanwhile.
        _, reply = client.infer("totalspineseg", IMAGE, {"result_extension": ".nrrd"})
        assert set(reply["models"]) == {"step1", "step2"}
        client.train_stop()
        wait_for(lambda: client.info()["train_stats"]["totalspineseg"]["status"] == "interrupted")
    assert CorrectionStore(folder / "studies" / ".totalspineseg").latest_accepted(IMAGE) is not None


MOMENT = {"iterations": "1", "batch_size": "1", "replay_cases": "0", "device": "cpu"}


def test_a_server_killed_while_its_training_publishes_leaves_whole_versions(tmp_path: Path) -> None:
    """There is neither half a version nor a mix of two, whether the training ends with its server or outlives it."""
    (tmp_path / "studies").mkdir()
    store = own_app(tmp_path / "app", STARTER)
    (tmp_path / "app" / "main.py").unlink()
    image, codes = tiny_scan(0)
    write_volume(tmp_path / "studies" / f"{IMAGE}.nii.gz", image.data, image.grid)

    def start() -> AbstractContextManager[Server]:
        return phantom_server(tmp_path, tmp_path / "studies", MAX_UPLOAD_MB, main="publishing_app")

    def served() -> dict[str, str]:
        return {f"step{step}": Networks(store).version(step) for step in (1, 2)}

    def train_until(server: Server, moment: str) -> list[psutil.Process]:
        """Return the processes of a training that waits at a moment of its publication."""
        (server.signals / "hold").write_text(moment, encoding="utf-8")
        client_of(server).train_start("totalspineseg", MOMENT)
        wait_for((server.signals / f"held {moment}").exists)
        return psutil.Process(server.process.pid).children(recursive=True)

    before = served()
    with start() as server:
        correct(server, codes)
        for process in (*train_until(server, "copying"), server.process):
            process.kill()
    assert (store.versions(), served()) == ((), before)
    with start() as server:
        train_until(server, "activating")
        (version,) = store.versions()
        _, reply = client_of(server).infer("totalspineseg", IMAGE, {"result_extension": ".nrrd"})
        assert reply["models"] == served() == before
        server.process.kill()
        wait_for(lambda: not is_running(training_dir(server)))
    assert (store.versions(), store.active()) == ((version,), {1: version, 2: version})
    assert all(name.startswith(version) for name in served().values())
    assert len(list(CorrectionStore(server.studies / ".totalspineseg").all())) == 1

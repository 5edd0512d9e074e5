"""Tests of the next image that is offered: not one that another reader has, and not always the same."""

import time
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from totalspineseg_server.activelearning import strategies
from totalspineseg_server.activelearning.strategies import First, Last, Offers, Random
from totalspineseg_server.corrections.image_records import last_noted, noted
from totalspineseg_server.front import samples


class Studies:
    """Three unfinished images."""

    def __init__(self, **infos: Any) -> None:
        self.infos = infos

    def get_unlabeled_images(self) -> list[str]:
        return ["b", "c", "a"]

    def get_image_info(self, image: str) -> dict[str, Any]:
        return self.infos.get(image, {})


def asked(strategy: Any, studies: Studies, *clients: str) -> str:
    return "".join(strategy({"client_id": client}, studies)["id"] for client in clients)


@pytest.mark.parametrize(("strategy", "order"), [(First, "abcabc"), (Last, "cbacba")], ids=["first", "last"])
def test_an_image_nobody_finishes_does_not_block_the_others(strategy: Any, order: str) -> None:
    """A scan that was useless or parked was offered forever, and nobody could get past it."""
    assert asked(strategy(Offers()), Studies(), *["user-xyz"] * 6) == order


@pytest.mark.parametrize("strategy", [First, Last, Random])
@pytest.mark.parametrize("clients", ["ab", ["user-xyz", "user-xyz"]], ids=["two names", "one name"])
def test_two_readers_get_different_images(strategy: Any, clients: list[str]) -> None:
    """Everybody got the same scan, and the second submission replaced the first reader's label."""
    for _ in range(20):
        assert len(set(asked(strategy(Offers()), Studies(), *clients))) == 2


def test_strategies_know_of_each_other_and_of_what_was_offered_before_a_restart() -> None:
    shared, studies = Offers(), Studies(a={"strategy": {"random": {"ts": time.time() - 60, "client_id": "ada"}}})
    assert asked(First(shared), studies, "bob") == "b"
    assert asked(Last(shared), studies, "cyd", "bob") == "cb"
    assert asked(First(shared), studies, "ada") == "a"


@pytest.mark.parametrize("strategy", [First, Last])
def test_two_readers_who_ask_at_once_get_different_images(strategy: Any) -> None:
    """The information about an image was read before, and written after, another reader got the image."""

    class AskedMeanwhile(Studies):
        arguments = ""

        def get_image_info(self, image: str) -> dict[str, Any]:
            if not self.arguments and image == {First: "a", Last: "c"}[strategy]:
                self.arguments = asked(order, Studies(), "bob")
            return {}

    order, studies = strategy(Offers()), AskedMeanwhile()
    assert (asked(order, studies, "ada"), studies.arguments) == {First: ("b", "a"), Last: ("b", "c")}[strategy]


def test_an_image_is_another_reader_s_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    first, studies, now = First(Offers()), Studies(), time.time()
    assert asked(first, studies, "ada", "ada", "ada") == "abc"
    assert asked(first, studies, "bob") == "a", "none is left, so the one offered longest ago"
    monkeypatch.setattr(strategies.time, "time", lambda: now + strategies.RESERVED_SECONDS + 60)
    assert asked(first, studies, "cyd") == "b", "nobody's any more"


@pytest.mark.parametrize(
    "strategy", [1, None, [], {"first": 3}, {"first": {"ts": "late"}}, {"first": {}}], ids=lambda value: repr(value)
)
def test_odd_notes_stop_nobody(strategy: Any) -> None:
    """One image with an odd value, which any client could write, and nobody got a next sample."""
    for kind in (First, Last, Random):
        assert asked(kind(Offers()), Studies(b={"strategy": strategy}), "ada") in "abc"
    assert last_noted({"strategy": strategy}) == strategies.Offer()
    assert noted({"strategy": strategy}).keys() <= {"first"}


def test_what_is_known_about_an_image_makes_no_other_image_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client wrote ``{"id": "b"}`` into the information about an image, and the label drawn on it was filed under
    another patient."""

    class App(Studies):
        def datastore(self) -> "App":
            return self

        def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
            return {"id": "a", "path": "/studies/a.nii.gz"}

        def update_image_info(self, image: str, info: dict[str, Any]) -> None:
            self.infos[image] |= info

    app, studies = FastAPI(), App(a={"id": "b", "path": "/studies/b.nii.gz", "ward": "3b"})
    monkeypatch.setattr(samples, "app_instance", lambda: studies)
    app.include_router(samples.router())
    sample = TestClient(app).post("/activelearning/first", json={}).json()
    assert (sample["id"], sample["path"], sample["ward"]) == ("a", "/studies/a.nii.gz", "3b")

"""Replace a PACS in tests with a class that answers like a DICOMweb client until it is told to fail."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from monailabel.config import settings
from monailabel.utils.others import class_utils
from pydicom import Dataset, dcmread

from pacs_serving import write_study
from phantom import lumbar_codes
from totalspineseg_server.pacs import configured_store as store
from totalspineseg_server.pacs.pacs_datastore import PacsDatastore

CODES = np.ascontiguousarray(lumbar_codes().transpose(1, 2, 0)[::-1, ::-1])
"""The truth in the order of the series of ``pacs_serving.write_study``."""
FIRST, SECOND = "2.25.70001.1", "2.25.70002.1"
"""The series of ``two_studies``."""
APP_DIR = Path(__file__).parents[1] / "apps" / "totalspineseg"


class Pacs:
    """Answers like a DICOMweb server."""

    base_url = "http://pacs"

    def __init__(self, files: Path | None = None) -> None:
        self.series: dict[str, list[Dataset]] = {}
        self.searches = 0
        self.fetched: list[str] = []
        self.described: list[str] = []
        self.damaged: set[str] = set()
        self.pages = True
        self.down = False
        for file in sorted(files.rglob("*.dcm")) if files else ():
            self.add(dcmread(file))

    def add(self, instance: Dataset) -> None:
        self.series.setdefault(str(instance.SeriesInstanceUID), []).append(instance)

    def answer(self) -> None:
        """Return nothing, or fail."""
        if self.down:
            raise requests.ConnectionError("no answer")

    def store_instances(self, datasets: list[Dataset]) -> None:
        self.answer()
        for dataset in datasets:
            self.add(dataset)

    def search_for_series(
        self, *, search_filters: Mapping[str, Any], limit: int, offset: int, **_: Any
    ) -> list[dict[str, Any]]:
        self.searches += 1
        self.answer()
        found = [s[0] for s in self.series.values() if all(s[0].get(k) == v for k, v in search_filters.items())]
        entries = []
        for header in found[offset : offset + limit] if self.pages else found[:limit]:
            entry = Dataset()
            for name in ("SeriesInstanceUID", "StudyInstanceUID", "Modality", "SeriesDescription", "PatientID"):
                setattr(entry, name, header.get(name))
            entry.NumberOfSeriesRelatedInstances = len(self.series[str(header.SeriesInstanceUID)])
            entries.append(entry.to_json_dict())
        return entries

    def retrieve_series(self, study: str, series: str) -> list[Dataset]:
        self.answer()
        self.fetched.append(series)
        return self.series[series]

    def retrieve_instance(self, study: str, series: str, instance: str) -> Dataset:
        self.answer()
        return next(one for one in self.series[series] if one.SOPInstanceUID == instance)

    def retrieve_series_metadata(self, study: str, series: str) -> list[dict[str, Any]]:
        self.answer()
        self.described.append(series)
        if series in self.damaged:
            raise requests.HTTPError("500")
        headers = []
        for instance in self.series[series]:
            header = Dataset()
            header.update({e.tag: e for e in instance if e.keyword != "PixelData"})
            headers.append(header.to_json_dict())
        return headers


def named(uid: str, modality: str = "MR", description: str = "T2 sag", count: int = 5) -> list[Dataset]:
    header = Dataset()
    header.SeriesInstanceUID, header.StudyInstanceUID = uid, f"{uid}.9"
    header.Modality, header.SeriesDescription, header.PatientID = modality, description, "P"
    return [header] * count


def two_studies(folder: Path) -> Path:
    """Write DICOM files of FIRST and SECOND, and of their localizers."""
    for number, name in enumerate(("Alpha", "Beta"), start=1):
        write_study(folder, number, name)
    return folder


def datastore(pacs: Pacs, folder: Path, published: list[str] | None = None) -> PacsDatastore:
    """Return a datastore with the stand-in; finished labels count as published while the PACS answers."""

    def publisher(series: str, file: Path, info: Mapping[str, Any]) -> None:
        pacs.answer()
        (published if published is not None else []).append(series)

    return PacsDatastore(pacs, folder, {"Modality": "MR"}, publisher=publisher)


def pacs_app(pacs: Pacs, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the app with the stand-in, without weights; its history is in ``folder / "work"``."""
    monkeypatch.setattr(store, "configured_client", lambda: pacs)
    monkeypatch.setattr(store, "configured_filter", lambda: {"Modality": "MR"})
    monkeypatch.setattr(settings, "MONAI_LABEL_SESSION_PATH", str(folder / "sessions"))
    monkeypatch.setenv("MONAI_LABEL_RELOAD_APP_LIB", "false")
    found = class_utils.get_class_of_subclass_from_file("main", str(APP_DIR / "main.py"), "MONAILabelApp")
    conf = {"weights": "none", "work": str(folder / "work")}
    return found(app_dir=str(APP_DIR), studies=pacs.base_url, conf=conf)

"""Write a small studies folder as the software of this checkout does, to be opened by later ones.

    .venv/bin/python tests/older/make_studies.py studies.tar.xz

The folder has three phantoms: ``finished`` has a prediction, a saved result and a finished label; ``parked`` has a
prediction and a label whose names nobody knows; ``waiting`` has nothing. ``studies-2026-11-29.tar.xz`` was written by
commit cb1164743629.
"""

import sys
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / part) for part in ("apps/totalspineseg", "tests", "tools")]

import numpy as np  # noqa: E402
from monailabel.client.client import MONAILabelClient, MONAILabelClientException  # noqa: E402

from phantom import RAS, image_of, lumbar_codes  # noqa: E402
from serving import running_server  # noqa: E402
from totalspineseg_server.anatomy import WIRE_LABELS  # noqa: E402
from totalspineseg_server.io.volumes import write_volume  # noqa: E402
from totalspineseg_server.segments import to_wire  # noqa: E402


def main() -> None:
    """Write the archive that the first argument names."""
    codes = lumbar_codes()
    with tempfile.TemporaryDirectory() as name:
        folder, label = Path(name), Path(name) / "label.nii.gz"
        (folder / "studies").mkdir()
        for number, image in enumerate(("finished", "parked", "waiting")):
            write_volume(folder / "studies" / f"{image}.nii.gz", (image_of(codes) + number).astype(np.int16), RAS)
        write_volume(label, to_wire(codes), RAS)
        names = [{"name": name, "idx": value} for name, value in WIRE_LABELS.items()]
        unknown = [{"name": "no such bone", "idx": value} for value in WIRE_LABELS.values()]
        with running_server(folder) as server:
            client = MONAILabelClient(server.url, tmpdir=name, client_id="reader")
            for image in ("finished", "parked"):
                client.infer("totalspineseg", image, {"save_label": True, "result_extension": ".nii.gz"})
            client.save_label("finished", str(label), params={"label_info": names})
            with suppress(MONAILabelClientException):
                client.save_label("parked", str(label), params={"label_info": unknown})
        with tarfile.open(sys.argv[1], "w:xz") as archive:
            archive.add(folder / "studies", "studies")


if __name__ == "__main__":
    main()

"""Average two starter folders, one trained from the other, to keep what was learned and forget less.

    python tools/mix_starter.py BEFORE TRAINED OUT --share 0.5 --fine-share 0.9

OUT is a starter folder with ``share`` of TRAINED and the rest of BEFORE in every weight; with ``--fine-share``, another
share at the two finest resolutions, so that outlines may change more than what tells levels apart. Its
``training.json`` is that of TRAINED and names both. A step whose weights are the same in both folders is copied.

Source: Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022.
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "apps" / "totalspineseg"))

from totalspineseg_server.files import read_json, sha256_of, write_json  # noqa: E402
from totalspineseg_server.nnunet.model_folder import mixed_weights, models_in  # noqa: E402
from totalspineseg_server.nnunet.starter_model import draws_outlines, export_model  # noqa: E402
from totalspineseg_server.nnunet.starter_plans import FEATURES, STARTER_FOLDERS  # noqa: E402


def mix(before: Path, trained: Path, out: Path, share: float, fine_share: float | None = None) -> None:
    """Write a starter folder with ``share`` of the trained weights, and ``fine_share`` in the outlines' layers."""
    fine_share = share if fine_share is None else fine_share
    for step in (1, 2):
        old, new = (models_in(folder)[step] for folder in (before, trained))
        folder = out / STARTER_FOLDERS[step]
        if sha256_of(old.checkpoint) == sha256_of(new.checkpoint):
            shutil.copytree(old.path, folder, dirs_exist_ok=True)
            continue
        weights: dict[str, torch.Tensor] = mixed_weights(old, new, share)
        fine = mixed_weights(old, new, fine_share)
        weights |= {name: value for name, value in fine.items() if draws_outlines(name)}
        export_model(folder, step, weights, FEATURES)
        record = read_json(new.path / "training.json")
        record["mean"] = {
            "share": share,
            "fine_share": fine_share,
            "trained_sha256": sha256_of(new.checkpoint),
            "before_sha256": sha256_of(old.checkpoint),
        }
        write_json(folder / "training.json", record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, metavar="BEFORE", help="starter folder from which the training began")
    parser.add_argument("trained", type=Path, metavar="TRAINED", help="starter folder that the training wrote")
    parser.add_argument("out", type=Path, metavar="OUT", help="starter folder to write")
    parser.add_argument("--share", type=float, default=0.5, metavar="0..1", help="share of TRAINED (default: 0.5)")
    parser.add_argument("--fine-share", type=float, metavar="0..1", help="share at the two finest resolutions")
    arguments = parser.parse_args()
    mix(arguments.before, arguments.trained, arguments.out, arguments.share, arguments.fine_share)


if __name__ == "__main__":
    main()

"""Change OHIF's bundle while serving it; the installed package is never edited.

Each change names the text it expects. If that text is not found exactly once in the whole bundle, it is another
version: then nothing is changed, and both the log and the page say so.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """One change of the bundle.

    Attributes:
        purpose: What the viewer cannot do without this change.
        old: Text that is found exactly once in the bundle's scripts.
        new: Text that is served in its place.
    """

    purpose: str
    old: str
    new: str


CHANGES: Final = (
    Change(
        "submit a segmentation",
        '      await dataSource.store.dicom(naturalizedReport);\n\n      // The "Mode" route',
        "      dataSource = dataSource || extensionManager.getActiveDataSource()[0];\n"
        "      await dataSource.store.dicom(naturalizedReport);\n"
        '      await window.totalspineseg.stored(naturalizedReport);\n\n      // The "Mode" route',
    ),
    Change(
        "show the segmentation panel beside MONAI Label's",
        "rightPanels: [monailabel.monaiLabel],",
        "rightPanels: [monailabel.monaiLabel, cornerstone.panelTool],",
    ),
    Change(
        "offer brushes",
        "      // toolbarService.addButtons(segmentationButtons);\n",
        "      toolbarService.addButtons(window.totalspineseg.tools);\n",
    ),
    Change(
        "find this server on another port than 8000",
        "CookieUtils.getCookieString('MONAILABEL_SERVER_URL', "
        "'http://' + window.location.host.split(':')[0] + ':8000/')",
        "window.location.origin + '/'",
    ),
    Change(
        "connect by itself",
        "    // await this.onInfo();",
        "    await window.totalspineseg.ready(this);\n    await this.onInfo(window.location.origin + '/');",
    ),
    Change(
        "give neighboring structures different colors",
        "function getLabelColor(label, rgb = true, random = true) {\n",
        "function getLabelColor(label, rgb = true, random = true) {\n"
        "  const own = rgb && window.totalspineseg.color(label);\n"
        "  if (own) {\n    return own;\n  }\n",
    ),
    Change(
        # OHIF answers a request for the first frame with the frame read last, which lies behind all others.
        "place the first frame of a multi-frame image",
        "return frameNumber && utils_combineFrameInstance(frameNumber, instance) || instance;",
        "return utils_combineFrameInstance(frameNumber, instance) || instance;",
    ),
    Change(
        # A model's result replaces the segmentation on the screen, unsaved corrections included.
        "leave out the review, which would replace the segmentation on the screen",
        "      const all_models = response.data.models;\n",
        "      const all_models = window.totalspineseg.offered(response.data);\n",
    ),
    Change(
        "say that the weights are not for patients, and what is doubtful in a result",
        "}, this.state.info.data.name), ",
        "}, this.state.info.data.name), window.totalspineseg.aside(react.createElement, this.state.info.data), ",
    ),
    Change(
        "list the segments from top to bottom",
        "      const labelsOrdered = [...new Set(all_labels)].sort();\n",
        "      const labelsOrdered = window.totalspineseg.ordered(all_labels);\n",
    ),
    Change(
        "show how far a model has come",
        "        params['label_prompt'] = filteredLabelClasses;\n      }\n"
        "      const response = await this.props.client().infer(model, displaySet.SeriesInstanceUID, params);\n",
        "        params['label_prompt'] = filteredLabelClasses;\n      }\n"
        "      const response = await window.totalspineseg.run(\n"
        "        () => this.props.client().infer(model, displaySet.SeriesInstanceUID, params),\n"
        "        model,\n        displaySet.SeriesInstanceUID\n      );\n",
    ),
    Change(
        "mark doubtful names",
        "      this.props.updateView(response, model, label_names);\n    };\n    this.modelSelector",
        "      await this.props.updateView(response, model, label_names);\n"
        "      await window.totalspineseg.overlaid(response, displaySet.SeriesInstanceUID);\n"
        "    };\n    this.modelSelector",
    ),
    Change(
        "say why a model failed",
        "          message: 'Failed to Run Segmentation',\n",
        "          message: window.totalspineseg.reason(response) || 'Failed to Run Segmentation',\n",
    ),
)


@dataclass(frozen=True)
class Bundle:
    """OHIF's bundle, read once.

    Attributes:
        folder: Folder where it is installed.
        changed: New content of the changed scripts, by file name.
        missing: What the viewer cannot do because the bundle is another version; empty if all is well.
    """

    folder: Path
    changed: Mapping[str, bytes]
    missing: tuple[str, ...]


def read_bundle(folder: Path) -> Bundle:
    """Apply the changes to an installed bundle.

    Args:
        folder: The bundle.

    Returns:
        The bundle. If any text is not found exactly once, ``missing`` names it and nothing is changed.
    """
    scripts = {path.name: path.read_bytes() for path in sorted(folder.glob("*.js"))}
    changed: dict[str, bytes] = {}
    missing = []
    for change in CHANGES:
        old = change.old.encode()
        counts = {name: count for name, content in scripts.items() if (count := content.count(old))}
        if sum(counts.values()) != 1:
            logger.error(
                "OHIF cannot %s: its bundle in %s is not the version that this server knows (text found %d "
                "times, expected once)",
                change.purpose,
                folder,
                sum(counts.values()),
            )
            missing.append(change.purpose)
            continue
        (name,) = counts
        changed[name] = changed.get(name, scripts[name]).replace(old, change.new.encode())
    return Bundle(folder, MappingProxyType({} if missing else changed), tuple(missing))

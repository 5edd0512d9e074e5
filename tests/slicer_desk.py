"""Do a reader's work in 3D Slicer without its windows, with Slicer's own volumes, segments, import and export.

Run by the Python that has ``slicer-core``; ``test_slicer`` starts it. The server is called in the order in which
the plugin calls it. What the reader saw and drew is recorded, to be compared with what the server stored.

    python slicer_desk.py WORK.json REPORT.json SCENE.npz
"""

import importlib.util
import json
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

SLICER_FIELDS = {"result_extension": ".nrrd", "result_dtype": "uint8"}
"""Entries that the plugin adds to the settings of every request."""
COLORS = 256
"""Entries of the table from which 3D Slicer takes the colors of new segments, in order."""

PRESSES = 100
"""An image that was copied into the folder is offered within a few seconds."""


class Desk:
    """One scene of 3D Slicer, connected to a server.

    Args:
        work: ``url``, ``client`` (path of the client module that the plugin ships), ``user``, ``folder``.
    """

    def __init__(self, work: dict[str, Any]) -> None:
        spec = importlib.util.spec_from_file_location("client", work["client"])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.url, self.folder = work["url"], Path(work["folder"])
        self.client = module.MONAILabelClient(self.url, str(self.folder), work["user"])
        self.scene = slicer.vtkMRMLScene()
        self.logic = slicer.vtkSlicerSegmentationsModuleLogic()
        self.logic.SetMRMLScene(self.scene)
        self._add_colors()
        self.info = self.client.info()
        self.segmentation_node: Any = None
        self.volume: Any = None

    def _add_colors(self) -> None:
        """Return the table of colors, which is a file of the application: here the k-th color is k."""
        table = slicer.vtkMRMLColorTableNode()
        table.SetTypeToUser()
        table.SetNumberOfColors(COLORS)
        for k in range(COLORS):
            table.SetColor(k, str(k), k / 255, 0.5, 0.5)
        table.SetSingletonTag("FileGenericAnatomyColors.txt")
        self.scene.AddNode(table)

    @property
    def segments(self) -> Any:
        return self.segmentation_node.GetSegmentation()

    def ids(self) -> list[str]:
        return [self.segments.GetNthSegmentID(k) for k in range(self.segments.GetNumberOfSegments())]

    def id_of(self, name: str) -> str:
        found = self.segments.GetSegmentIdBySegmentName(name)
        if not found:
            raise ValueError(f"no segment {name!r}")
        return str(found)

    def load(self, files: list[str], name: str) -> None:
        """Load a volume and show the segments that the server publishes."""
        self.volume = self.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
        storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
        storage.SetFileName(files[0])
        for file in files[1:]:
            storage.AddFileName(file)
        storage.SetSingleFile(len(files) == 1)
        if not storage.ReadData(self.volume):
            raise OSError(files[0])
        self.volume.SetName(name)
        self.segmentation_node = self.scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        self.segmentation_node.CreateDefaultDisplayNodes()
        self.segmentation_node.SetReferenceImageGeometryParameterFromVolumeNode(self.volume)
        for label in self.info["labels"]:
            if not self.segments.GetSegmentIdBySegmentName(label):
                self.segments.AddEmptySegment(label, label)

    def next_sample(self, wanted: str) -> str:
        """Press *Next Sample* until there is an image, which the plugin loads from disk or fetches."""
        for _ in range(PRESSES):
            sample = self.client.next_sample("first", {})
            if sample.get("id") == wanted:
                break
            time.sleep(0.1)
        else:
            raise ValueError(f"no sample {wanted!r}")
        path = Path(sample["path"])
        if not path.exists():
            path = self.folder / sample["name"]
            query = urllib.parse.quote_plus(sample["id"])
            urllib.request.urlretrieve(f"{self.url}/datastore/image?image={query}", path)
        labels = self.client.datastore()["objects"][sample["id"]]["labels"]
        self.load([str(path)], sample["name"])
        if saved := labels.get("original"):
            names = list(saved["info"]["params"]["label_names"])
            self._import(self.client.download_label(sample["id"], "original"), names)
        return str(sample["id"])

    def save_volume(self, ending: str) -> str:
        file = str(self.folder / f"volume{ending}")
        storage = slicer.vtkMRMLNRRDStorageNode() if ending.endswith(".nrrd") else self._archetype()
        storage.SetFileName(file)
        if not storage.WriteData(self.volume):
            raise OSError(file)
        return file

    def _archetype(self) -> Any:
        return slicer.vtkMRMLVolumeArchetypeStorageNode()

    def run(self, image: str, model: str, chosen: dict[str, Any], session: str | None) -> dict[str, Any]:
        """Press *Run* with some settings changed, and import the label map of the reply."""
        config = self.info["models"][model]["config"]
        settings = {name: value[0] if isinstance(value, list) else value for name, value in config.items()}
        file, reply = self.client.infer(model, image, settings | chosen | SLICER_FIELDS, session_id=session)
        labels = reply["label_names"]
        names = [name for name, _ in sorted(labels.items(), key=lambda item: item[1]) if name != "background"]
        self._import(file, names)
        return dict(reply)

    def _import(self, file: str, names: list[str]) -> None:
        """Import a label map into the scene: voxel value k becomes the k-th name."""
        ids = vtk.vtkStringArray()
        for name in names:
            ids.InsertNextValue(name)
        label_map = self._pushed(file)
        if not self.logic.ImportLabelmapToSegmentationNode(label_map, self.segmentation_node, ids):
            raise ValueError("the label map was not imported")
        self.scene.RemoveNode(label_map)

    def _pushed(self, file: str) -> Any:
        """Return a label map as the plugin loads it: read by SimpleITK, in the index order of the file."""
        image = sitk.ReadImage(file)
        node = self.scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
        data = vtk.vtkImageData()
        data.SetDimensions(image.GetSize())
        data.GetPointData().SetScalars(numpy_to_vtk(sitk.GetArrayFromImage(image).ravel(), deep=True))
        node.SetAndObserveImageData(data)
        lps = np.eye(4)
        lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        lps[:3, 3] = image.GetOrigin()
        matrix = vtk.vtkMatrix4x4()
        matrix.DeepCopy((np.diag([-1, -1, 1, 1]) @ lps).ravel())
        node.SetIJKToRASMatrix(matrix)
        return node

    def array(self, segment: str) -> np.ndarray:
        """Return the voxels of a segment in the index order of the volume in 3D Slicer."""
        image = slicer.vtkOrientedImageData()
        self.segmentation_node.GetBinaryLabelmapRepresentation(segment, image)
        whole = np.zeros(self.volume.GetImageData().GetDimensions(), dtype=bool)
        scalars = image.GetPointData().GetScalars()
        if not scalars:
            return whole
        x0, x1, y0, y1, z0, z1 = image.GetExtent()
        part = vtk_to_numpy(scalars).reshape(z1 - z0 + 1, y1 - y0 + 1, x1 - x0 + 1).transpose() > 0
        # A segment keeps the index order of its source; the volume's may be another one.
        index = np.argwhere(part) + np.array([x0, y0, z0])
        to_world, from_world = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(to_world)
        self.volume.GetRASToIJKMatrix(from_world)
        moved = _numpy(from_world) @ _numpy(to_world) @ np.column_stack([index, np.ones(len(index))]).T
        whole[tuple(np.rint(moved[:3]).astype(int))] = True
        return whole

    def paint(self, name: str, index: list[list[int]]) -> None:
        """Add a box of voxels (first and last index along the volume's axes) to a segment, as *Paint* does."""
        self._modify(self.id_of(name), index, value=1)

    def erase(self, name: str, index: list[list[int]]) -> None:
        """Remove a box of voxels from a segment."""
        self._modify(self.id_of(name), index, value=0)

    def _modify(self, segment: str, box: list[list[int]], value: int) -> None:
        data = self.array(segment)
        data[tuple(slice(first, last + 1) for first, last in zip(*box, strict=True))] = value
        image = slicer.vtkOrientedImageData()
        image.SetDimensions(data.shape)
        image.GetPointData().SetScalars(numpy_to_vtk(data.ravel(order="F").astype(np.uint8), deep=True))
        matrix = vtk.vtkMatrix4x4()
        self.volume.GetIJKToRASMatrix(matrix)
        image.SetImageToWorldMatrix(matrix)
        replace = slicer.vtkSlicerSegmentationsModuleLogic.MODE_REPLACE
        if not self.logic.SetBinaryLabelmapToSegment(image, self.segmentation_node, segment, replace):
            raise ValueError("the segment was not changed")

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the segments' table, as the reader sees them."""
        display = self.segmentation_node.GetDisplayNode()
        return [
            {
                "id": segment,
                "name": self.segments.GetSegment(segment).GetName(),
                "color": round(display.GetSegmentColor(segment)[0] * 255),
                "voxels": int(self.array(segment).sum()),
            }
            for segment in self.ids()
        ]

    def submit(self, image: str, ending: str) -> dict[str, Any]:
        """Press *Submit Label*."""
        label_info, ids = [], vtk.vtkStringArray()
        for number, segment in enumerate(self.ids(), start=1):
            ids.InsertNextValue(segment)
            label_info.append({"name": self.segments.GetSegment(segment).GetName(), "idx": number})
        label_map = self.scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
        self.logic.ExportSegmentsToLabelmapNode(self.segmentation_node, ids, label_map, self.volume)
        file = str(self.folder / f"label{ending}")
        # Overlapping segments are sent in the file of the segmentation, others in the exported label map.
        overlapping = ending == ".seg.nrrd"
        storage = slicer.vtkMRMLSegmentationStorageNode() if overlapping else self._archetype()
        storage.SetFileName(file)
        if not storage.WriteData(self.segmentation_node if overlapping else label_map):
            raise OSError(file)
        return dict(self.client.save_label(image, file, params={"label_info": label_info}))

    def scene_arrays(self) -> dict[str, np.ndarray]:
        """Return what the reader has drawn: the affine of the volume and the voxels of each segment by its name."""
        matrix = vtk.vtkMatrix4x4()
        self.volume.GetIJKToRASMatrix(matrix)
        voxels = {}
        for segment in self.ids():
            data = self.array(segment)
            # A segment is empty if another one was given its name.
            if data.any():
                voxels[f"segment {self.segments.GetSegment(segment).GetName()}"] = data
        return {"affine": _numpy(matrix), **voxels}


def _numpy(matrix: Any) -> np.ndarray:
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def main() -> None:
    """Do the work that a JSON file describes."""
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    desk, report, ending = Desk(work), {}, work.get("ending", ".nii.gz")
    session = None
    if work.get("files"):
        image = work["name"]
        desk.load(work["files"], image)
        volume = desk.save_volume(ending)
        if work.get("session"):
            session = desk.client.create_session(volume)["session_id"]
        else:
            desk.client.upload_image(volume, image)
    else:
        image = desk.next_sample(work["wanted"])
    report["image"], report["at_first"] = image, desk.rows()
    for model, chosen in work.get("runs", [["totalspineseg", {}]]):
        desk.run(image, model, chosen, session)
    report["predicted"] = desk.rows()
    for name, box in work.get("paint", {}).items():
        desk.paint(name, box)
    for name, box in work.get("erase", {}).items():
        desk.erase(name, box)
    for name in work.get("remove", []):
        desk.segments.RemoveSegment(desk.id_of(name))
    for old, new in work.get("rename", {}).items():
        desk.segments.GetSegment(desk.id_of(old)).SetName(new)
    report["rows"] = desk.rows()
    np.savez_compressed(sys.argv[3], **desk.scene_arrays())
    try:
        if session:
            desk.client.upload_image(desk.save_volume(ending), image)
        report["answer"] = desk.submit(image, ending)
    except Exception as error:
        report["refused"] = str(getattr(error, "msg", error))
    Path(sys.argv[2]).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Run a network that stays loaded: it turns image channels into classes and requested probabilities.

Nothing is written or printed and no process is started: arrays stay in memory.
"""

import logging
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import RLock
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from totalspineseg_server.errors import MemoryShortageError, WeightsError
from totalspineseg_server.nnunet import nnunet_messages
from totalspineseg_server.nnunet.discovery import STEP_CHANNELS
from totalspineseg_server.nnunet.fast_ways import HALF, INT8
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.nnunet.preprocessing import (
    Box,
    FloatArray,
    Shape,
    common_box,
    nonzero_box,
    normalize,
    resample,
    resample_above,
    resampled_shape,
    scaled,
)
from totalspineseg_server.nnunet.runtimes import Runtime, resolve_device, with_runtime
from totalspineseg_server.nnunet.tiles import Rows, TileSums, chosen_rows, sliding_logits, whole_row
from totalspineseg_server.prediction import Prediction
from totalspineseg_server.trust import Trust

logger = logging.getLogger(__name__)

IMAGE_MM: Final = (1.0, 1.0, 1.0)
"""Spacing of the pipeline's images, mm."""
TILE_STEP: Final = 0.5
"""Distance between neighboring tiles, as a share of a tile: half of each tile overlaps the next one."""
CPU: Final = torch.device("cpu")
FILL_VOXELS: Final = 2**23
"""Number of voxels that a GPU computes at once in half precision: single tiles of small networks would not fill it.
Chosen, not measured."""
LEFT_RIGHT: Final = 1
"""Axis of (C, X, Y, Z) that mirroring reverses."""
MEAN_EPSILON: Final = 1e-4
"""Distance from 0 and 1 that keeps the logit of a mean finite."""
CORD_REGION: Final = "cord"
SOFT_FLOOR: Final = -7.0
"""Logit below which a probability (under a thousandth) may be 0 instead, which leaves out most of the volume."""


@dataclass
class EarlierTiles:
    """The tiles of earlier looks at an image, see ``WarmPredictor.predict``.

    Attributes:
        image: Those of the image.
        mirrored: Those of its left-right mirror image.
    """

    image: TileSums = field(default_factory=TileSums)
    mirrored: TileSums = field(default_factory=TileSums)


class WarmPredictor:
    """One step's network, loaded once and used for many images, one at a time.

    Args:
        folder: The model to load.
        device: "auto" (a GPU if there is one), "cuda", "cuda:1", "cpu".
        tile_step: Distance between neighboring tiles, as a share of a tile, above 0 and at most 1; smaller is slower
            and smoother.
        runtime: The runtime: PyTorch in single precision, half precision for a GPU, OpenVINO for the CPU.
        trust: Trust in the network; None for the trust in the folder.
        network: Network that computes instead of the folder's; None to load that.

    Raises:
        ValueError: The device does not exist or does not fit the runtime, or the tile step is out of range.
        WeightsError: The weights cannot be loaded, or the runtime is not installed.
    """

    def __init__(
        self,
        folder: ModelFolder,
        *,
        device: str = "auto",
        tile_step: float = TILE_STEP,
        runtime: Runtime = "torch",
        trust: Trust | None = None,
        network: torch.nn.Module | None = None,
    ) -> None:
        if not 0 < tile_step <= 1:
            raise ValueError(f"expected tile_step above 0 and at most 1, got {tile_step!r}")
        self.folder = folder
        self.tile_step = tile_step
        self.device = resolve_device(device, runtime)
        if self.device.type == "cuda":
            # Otherwise a GPU rounds what single precision computes to ten bits, like half precision.
            torch.backends.cudnn.allow_tf32 = False
        self.version = with_runtime(folder.version, runtime)
        self.trust = folder.trust if trust is None else trust
        self._network = _load(folder, runtime) if network is None else network
        self._is_half = runtime == HALF
        self._at_once = max(1, FILL_VOXELS // math.prod(folder.patch)) if self._is_half else 1
        self._lock = RLock()
        self._is_retired = False

    def predict(
        self,
        channels: FloatArray,
        *,
        soft: Collection[str] = (),
        within: Box | None = None,
        wanted: Box | None = None,
        skip_air: bool = False,
        earlier: EarlierTiles | None = None,
    ) -> Prediction:
        """Segment one image.

        Args:
            channels: (C, X, Y, Z) float32, 1 mm isotropic, RAS: the image, and in step 2 the odd discs. Not modified.
            soft: Region names whose probabilities are returned.
            within: Part of the image, voxels, that holds more than air; None for all of it. The image is normalized
                and resampled as a whole.
            wanted: Part of ``within`` whose voxels count; None for all of it. Only the tiles that decide about them
                are computed, see ``chosen_rows``.
            skip_air: Whether tiles that hold only air are left out, see ``sliding_logits``.
            earlier: Tiles of earlier looks at the image, which are not computed again; those of this look are added.

        Returns:
            Labels (X, Y, Z) and a probability map per name in ``soft``; all 0 where every channel is 0, and outside
            of what the network saw.

        Raises:
            ValueError: The number of channels or axes is wrong, the array is empty or not finite, or a region is
                unknown.
            WeightsError: The network's output is not finite.
            MemoryShortageError: The image does not fit into memory, not even that of the CPU.
        """
        self._check(channels, soft)
        shape = channels.shape[1:]
        labels = np.zeros(shape, dtype=np.uint8)
        maps = {name: np.zeros(shape, dtype=np.float32) for name in soft}
        box, difference = nonzero_box(channels), None
        seen = None
        covered = box if box is None or within is None else common_box(box, within)
        needed = covered if covered is None or wanted is None else common_box(covered, wanted)
        if box is not None and covered is not None and needed is not None:
            parts = {n: m[box] for n, m in maps.items()}
            inner = _moved(covered, box), _moved(needed, box)
            with self._lock, _memory_errors(shape):
                try:
                    difference, seen = self._predict_box(
                        channels[(slice(None), *box)], inner, labels[box], parts, skip_air, earlier
                    )
                finally:
                    if self._is_retired:
                        self.free()
            seen = _moved(seen, box, back=True)
        return Prediction(labels=labels, soft=maps, trust=self.trust, mirror_difference=difference, seen=seen)

    def warm_up(self) -> None:
        """Run once if the first run is slower: a GPU's libraries load at first use.

        Raises:
            WeightsError: The network's output is not finite.
        """
        if self.device.type == "cuda":
            with self._lock:
                a, b, c = (whole_row(tile, tile, self.tile_step) for tile in self.folder.patch)
                self._logits(torch.zeros(STEP_CHANNELS[self.folder.step], *self.folder.patch), (a, b, c))

    def free(self) -> None:
        """Release GPU memory; the next image moves the network there again."""
        with self._lock:
            self._network.to(CPU)
            _empty_cache()

    def retire(self) -> None:
        """Release GPU memory for good: a request that still uses the predictor holds it for one image only."""
        self._is_retired = True
        self.free()

    def _check(self, channels: FloatArray, soft: Collection[str]) -> None:
        expected = STEP_CHANNELS[self.folder.step]
        if channels.ndim != 4 or channels.shape[0] != expected or 0 in channels.shape:
            raise ValueError(
                f"expected ({expected}, X, Y, Z) channels for step {self.folder.step}, got shape {channels.shape!r}"
            )
        if unknown := sorted(set(soft) - set(self.folder.regions)):
            raise ValueError(f"expected names of regions ({self.folder.regions!r}) in soft, got {unknown!r}")
        # The normalization would spread one NaN over every voxel.
        if not np.isfinite(channels).all():
            raise ValueError("expected finite channels, got NaN or infinity")

    def _predict_box(
        self,
        channels: FloatArray,
        parts: tuple[Box, Box],
        labels: npt.NDArray[np.uint8],
        maps: dict[str, FloatArray],
        skip_air: bool,
        earlier: EarlierTiles | None,
    ) -> tuple[float | None, Box]:
        """Fill ``labels`` and ``maps`` (views of the result) where the network sees one nonzero box, (X, Y, Z).

        Args:
            channels: The box.
            parts: ``within`` and ``wanted`` in the box, see ``predict``.
            labels: Labels of the box.
            maps: Name -> probabilities of the box.
            skip_air: See ``predict``.
            earlier: See ``predict``.

        Returns:
            ``Prediction.mirror_difference``, and the part of the box that the network saw.
        """
        full: Shape = labels.shape  # type: ignore[assignment]
        # (X, Y, Z) -> (Z, Y, X), as nnU-Net's readers order axes, then the plans' order. Only the smaller array on the
        # plans' grid is transposed, because the order in memory determines the speed for the larger one.
        axes = [2 - axis for axis in self.folder.transpose]
        back = [axes.index(axis) for axis in range(3)]
        grid = resampled_shape(full, IMAGE_MM, [self.folder.spacing_mm[axis] for axis in back])
        working = self._on_grid(channels, grid)
        patch = self.folder.patch
        rows = self._rows(parts, full, grid, (patch[back[0]], patch[back[1]], patch[back[2]]))
        logits = self._turned_logits(working, rows, axes, skip_air, None if earlier is None else earlier.image)
        difference = None
        if self.trust.mirror:
            mirrored_rows = (rows[0].mirrored(), *rows[1:])
            mirrored = self._turned_logits(
                working.flip(LEFT_RIGHT), mirrored_rows, axes, skip_air, None if earlier is None else earlier.mirrored
            )
            mirrored = mirrored.flip(LEFT_RIGHT)
            difference = _difference(logits, mirrored)
            logits = _mean_of(logits, mirrored)
        part = (rows[0].part, rows[1].part, rows[2].part)
        x, y, z = (scaled(axis, before, after) for axis, before, after in zip(part, grid, full, strict=True))
        try:
            self._decide(logits, (part, grid), labels, maps)
        except RuntimeError as error:
            if self.device.type != "cuda" or not is_out_of_memory(error):
                raise
            logger.warning(
                "There is too little GPU memory for the labels of step %d, so the CPU computes them", self.folder.step
            )
        else:
            return difference, (x, y, z)
        logits = logits.to(CPU)
        self.free()
        self._decide(logits, (part, grid), labels, maps)
        return difference, (x, y, z)

    def _on_grid(self, channels: FloatArray, grid: Shape) -> torch.Tensor:
        """Return channels (C, X, Y, Z) normalized and on the plans' grid, on the network's device if they fit there."""
        configuration = self.folder.configuration
        inside_only = configuration.get("use_mask_for_norm") or [False] * len(channels)
        image = torch.from_numpy(np.ascontiguousarray(channels))
        try:
            return resample(normalize(image.to(self.device), configuration["normalization_schemes"], inside_only), grid)
        except RuntimeError as error:
            if self.device.type != "cuda" or not is_out_of_memory(error):
                raise
            logger.warning("There is too little GPU memory for the image, so the CPU normalizes it")
        self.free()
        return resample(normalize(image, configuration["normalization_schemes"], inside_only), grid)

    def _rows(self, parts: tuple[Box, Box], full: Shape, grid: Shape, patch: Shape) -> Rows:
        """Return the tiles on the plans' grid, axes (X, Y, Z), for ``within`` and ``wanted``, see ``predict``."""
        within, wanted = (
            [_around(axis, before, after) for axis, before, after in zip(part, full, grid, strict=True)]
            for part in parts
        )
        return chosen_rows(within, wanted, grid, patch, self.tile_step)

    def _turned_logits(
        self, image: torch.Tensor, rows: Rows, axes: Sequence[int], skip_air: bool, earlier: TileSums | None
    ) -> torch.Tensor:
        """Return the logits (R, X, Y, Z) of the tiles of an image (C, X, Y, Z) on the plans' grid.

        Args:
            image: The image.
            rows: Its tiles, axes (X, Y, Z).
            axes: The axes of the image in the plans' order.
            skip_air: See ``predict``.
            earlier: See ``sliding_logits``.
        """
        turned = image.permute(0, *(axis + 1 for axis in axes))
        a, b, c = (rows[axis] for axis in axes)
        logits = self._logits(turned, (a, b, c), skip_air, earlier)
        return logits.permute(0, *(axes.index(axis) + 1 for axis in range(3)))

    def _decide(
        self,
        logits: torch.Tensor,
        within: tuple[Box, Shape],
        labels: npt.NDArray[np.uint8],
        maps: dict[str, FloatArray],
    ) -> None:
        """Fill ``labels`` and ``maps`` from logits (R, X, Y, Z) of a part of the plans' grid, on their device."""
        full: Shape = labels.shape  # type: ignore[assignment]
        found = torch.zeros(full, dtype=torch.uint8, device=logits.device)
        # One region at a time, to avoid a full-size copy of all channels.
        for region, name, value in zip(logits, self.folder.regions, self.folder.region_classes, strict=True):
            if name in maps and (part := resample_above(region, full, SOFT_FLOOR, within=within)) is not None:
                inside, box = part
                maps[name][box] = torch.sigmoid(inside).cpu().numpy()
            floor = -self.trust.cord_logit if name == CORD_REGION else 0.0
            if (part := resample_above(region, full, floor, within=within)) is not None:
                inside, box = part
                mask = (inside > floor).view(torch.uint8)
                # This way is four times faster than masked_fill_.
                found[box].mul_(1 - mask).add_(mask, alpha=value)
        labels[...] = found.cpu().numpy()

    def _logits(
        self, image: torch.Tensor, rows: Rows, skip_air: bool = False, earlier: TileSums | None = None
    ) -> torch.Tensor:
        """Return the logits of the tiles of an image; continue on the CPU if there is too little GPU memory."""
        attempts = [(CPU, CPU, 1)]
        if self.device.type == "cuda":
            single = [(self.device, self.device, 1), (self.device, CPU, 1), (CPU, CPU, 1)]
            attempts = [(self.device, self.device, self._at_once), *single] if self._at_once > 1 else single
        for compute, sums, at_once in attempts:
            try:
                return self._finite_logits(image, rows, compute, sums, at_once, skip_air, earlier)
            except RuntimeError as error:
                if compute is CPU or not is_out_of_memory(error):
                    raise
                logger.warning(
                    "There is too little GPU memory for step %d; trying a way that needs less", self.folder.step
                )
            # This is done outside the handler, because the exception's traceback would keep the tensors alive.
            if earlier is not None:
                earlier.clear()
            self.free()
        raise AssertionError("unreachable")

    def _finite_logits(
        self,
        image: torch.Tensor,
        rows: Rows,
        compute: torch.device,
        sums: torch.device,
        at_once: int,
        skip_air: bool,
        earlier: TileSums | None,
    ) -> torch.Tensor:
        """Return logits, in float32 if half precision overflows."""
        network = self._network.to(compute)
        for autocast in (True, False) if self._is_half and compute.type == "cuda" else (False,):
            logits = sliding_logits(
                network,
                image,
                rows,
                len(self.folder.regions),
                compute=compute,
                sums=sums,
                autocast=autocast,
                skip_air=skip_air,
                at_once=at_once,
                earlier=earlier,
            )
            # NaN and infinity both show in the sum, which takes a fraction of the time of checking every voxel.
            if bool(torch.isfinite(logits.sum())):
                return logits
            if earlier is not None:
                earlier.clear()
        raise WeightsError(nnunet_messages.OUTPUT_NOT_FINITE.format(name=self.version))


def _moved(box: Box, frame: Box, *, back: bool = False) -> Box:
    """Return a box in the voxels of another one that contains it, or back from there."""
    sign = 1 if back else -1
    x, y, z = (slice(a.start + sign * b.start, a.stop + sign * b.start) for a, b in zip(box, frame, strict=True))
    return x, y, z


def _around(part: slice, before: int, after: int) -> slice:
    """Return the voxels of an axis of ``after`` voxels that lie in a part of one of ``before`` voxels, even partly."""
    return slice(part.start * after // before, -(-part.stop * after // before))


def _difference(logits: torch.Tensor, mirrored: torch.Tensor) -> float:
    """Return 1 - Dice of all regions of two outputs together; 0 if both are empty."""
    both = total = 0
    for region, other in zip(logits, mirrored, strict=True):
        one, two = region > 0, other.to(region.device) > 0
        both += int(torch.count_nonzero(one & two))
        total += int(torch.count_nonzero(one)) + int(torch.count_nonzero(two))
    return 1 - 2 * both / total if total else 0.0


def _mean_of(logits: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
    """Return the logits of the mean of two probabilities, computed region by region to save memory."""
    for region, other in zip(logits, mirrored, strict=True):
        mean = torch.sigmoid(region).add_(torch.sigmoid(other.to(region.device))).div_(2)
        region.copy_(torch.logit(mean, eps=MEAN_EPSILON))
    return logits


def _load(folder: ModelFolder, runtime: Runtime) -> torch.nn.Module:
    if runtime in ("torch", HALF):
        return folder.load_network()
    # Import here, because the package is optional and slow to import.
    from totalspineseg_server.nnunet.openvino_network import load_openvino

    return load_openvino(folder, int8=runtime == INT8)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error means too little memory, which cuDNN, cuBLAS and the CPU report in different words."""
    words = ("out of memory", "ALLOC_FAILED", "unable to find an engine", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


@contextmanager
def _memory_errors(shape: tuple[int, ...]) -> Iterator[None]:
    """Raise one understandable error for an image that is too large for the memory.

    Raises:
        MemoryShortageError: Instead of the libraries' errors.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        raise MemoryShortageError(nnunet_messages.NO_MEMORY.format(size=" x ".join(map(str, shape)))) from error


def _empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

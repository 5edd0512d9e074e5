"""Run a network with OpenVINO, which is up to twice as fast as PyTorch on the CPU, also in float32.

The conversion calls OpenVINO's PyTorch front end directly, because the package's ``convert_model`` reports its use over
the internet by default.
"""

import importlib
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import torch

from totalspineseg_server.errors import WeightsError
from totalspineseg_server.nnunet import nnunet_messages
from totalspineseg_server.nnunet import openvino_cache as cache
from totalspineseg_server.nnunet.discovery import STEP_CHANNELS
from totalspineseg_server.nnunet.model_folder import ModelFolder
from totalspineseg_server.places import COMMAND, NAME

logger = logging.getLogger(__name__)

SIGN_TOLERANCE: Final = 1e-3
"""Share of a test tile's logits that may differ in sign from PyTorch's: in float32 2e-5 do, in bfloat16 3e-3."""
SEED: Final = 0
NO_REPORTS: Final = "NNCF_CI"
"""Variable that keeps NNCF from reporting its use over the internet."""
SETTINGS: Final = {
    # Half precision, which some processors prefer, would change the sign of a hundred times as many logits.
    "INFERENCE_PRECISION_HINT": "f32",
    # Compute one tile at a time; the system places the threads, because other work shares the machine.
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,
}


class OpenVinoNetwork(torch.nn.Module):  # type: ignore[misc]
    """Takes the place of a PyTorch network, on the CPU.

    Args:
        compiled: OpenVINO's compiled model of one input and one output.
    """

    def __init__(self, compiled: Any) -> None:
        super().__init__()
        self._request = compiled.create_infer_request()

    def forward(self, tile: torch.Tensor) -> torch.Tensor:
        """Return the logits of one tile (1, C, *patch); valid until the next call."""
        result = self._request.infer([tile.numpy()], share_inputs=True, share_outputs=True)
        return torch.from_numpy(result[0])


def require_openvino() -> Any:
    """Return the OpenVINO package.

    Raises:
        WeightsError: It is not installed or does not load.
    """
    return _optional("openvino", needed_by="Runtime 'openvino'", else_do=nnunet_messages.OR_TORCH)


def _optional(package: str, *, needed_by: str, else_do: str = "") -> Any:
    """Return a package of the extra "openvino".

    Raises:
        WeightsError: It is not installed or does not load.
    """
    try:
        return importlib.import_module(package)
    except (ImportError, OSError) as error:
        raise WeightsError(
            nnunet_messages.NO_PACKAGE.format(
                needed_by=needed_by, package=package, reason=str(error).splitlines()[0], app=NAME, else_do=else_do
            )
        ) from error


def load_openvino(folder: ModelFolder, *, int8: bool = False) -> OpenVinoNetwork:
    """Return the network of a model folder in OpenVINO, converted at first use and kept.

    Args:
        folder: The model.
        int8: Whether to return the network that ``keep_int8`` has stored.

    Raises:
        WeightsError: OpenVINO is missing or cannot compute this network, the weights cannot be loaded, or there is no
            stored network in whole numbers.
    """
    openvino = require_openvino()
    key = _key(openvino, folder, int8=int8)
    core = openvino.Core()
    file = cache.cached(folder.path, key)
    if file is not None:
        try:
            return _compile(core, core.read_model(str(file)))
        except RuntimeError as error:
            logger.warning(
                "The converted network %s cannot be loaded and will be made again: %s", file.parent, _short(error)
            )
            cache.discard(file.parent)
    if int8:
        raise WeightsError(nnunet_messages.NO_INT8.format(folder=folder.name, command=COMMAND))
    model, network = _convert(folder)
    compiled = _compile(core, model)
    _check(folder, network, compiled)
    cache.keep(folder.path, key, lambda path: _save(openvino, model, path))
    return compiled


def keep_int8(folder: ModelFolder, tiles: Sequence[torch.Tensor]) -> OpenVinoNetwork:
    """Convert a network to whole numbers of eight bits, store it beside its weights, and return it.

    Args:
        folder: The model.
        tiles: Input of the network for some scans (1, C, *patch): their range decides which value a whole number stands
            for.

    Raises:
        WeightsError: OpenVINO or NNCF is missing, or cannot compute this network.
    """
    openvino, nncf = require_openvino(), _require_nncf()
    model, _ = _convert(folder)
    try:
        dataset = nncf.Dataset([tile.numpy() for tile in tiles])
        small = _in_own_thread(lambda: nncf.quantize(model, dataset, subset_size=len(tiles)))
    except RuntimeError as error:
        raise _unusable(folder, _short(error)) from error
    cache.keep(folder.path, _key(openvino, folder, int8=True), lambda path: _save(openvino, small, path))
    return _compile(openvino.Core(), small)


def _require_nncf() -> Any:
    """Return the NNCF package, which reports nothing over the internet.

    Raises:
        WeightsError: It is not installed or does not load.
    """
    # Without this, importing it would prepare to report its use to its makers.
    os.environ[NO_REPORTS] = "1"
    # It imports PyTorch's compiler of extensions, which complains where there is no GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    return _optional("nncf", needed_by="INT8")


def _key(openvino: Any, folder: ModelFolder, *, int8: bool) -> str:
    return cache.entry_key(folder.digest, str(openvino.__version__).partition("-")[0], int8=int8)


def _convert(folder: ModelFolder) -> tuple[Any, torch.nn.Module]:
    """Return OpenVINO's model, and the PyTorch network that it was made from."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    network = folder.load_network()
    if ModelFolder.open(folder.path, step=folder.step).digest != folder.digest:
        raise WeightsError(nnunet_messages.WEIGHTS_CHANGED.format(folder=folder.name))
    logger.info("Converting step %d network %s for OpenVINO", folder.step, folder.version)
    tile = _test_tile(folder)
    try:
        # Tracing turns the network's checks of shapes into constants, which is correct: every tile has the same shape.
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            traced = torch.jit.trace(network, tile, check_trace=False)
        front_end = FrontEndManager().load_by_framework("pytorch")
        # Keep the decoder in a variable, because the front end does not keep it alive.
        decoder = TorchScriptPythonDecoder(traced)
        model = front_end.convert(front_end.load(decoder))
        model.reshape(list(tile.shape))
    except RuntimeError as error:
        raise _unusable(folder, _short(error)) from error
    return model, network


def _compile(core: Any, model: Any) -> OpenVinoNetwork:
    settings = {**SETTINGS, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    return OpenVinoNetwork(_in_own_thread(lambda: core.compile_model(model, "CPU", settings)))


def _in_own_thread(call: Callable[[], Any]) -> Any:
    """Return the result of a call that compiles a network, made in a thread of its own.

    OpenVINO gives the thread that compiles another stack for signals, and frees that stack with the network. If another
    thread releases the network, the first one still points to the freed stack, and its next signal ends the process.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


def _check(folder: ModelFolder, network: torch.nn.Module, converted: OpenVinoNetwork) -> None:
    tile = _test_tile(folder)
    with torch.inference_mode():
        different = float(((network(tile) > 0) != (converted(tile) > 0)).float().mean())
    if not different <= SIGN_TOLERANCE:
        raise _unusable(folder, f"{different:.2%} of the output differs from PyTorch's")


def _test_tile(folder: ModelFolder) -> torch.Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(1, STEP_CHANNELS[folder.step], *folder.patch, generator=generator)


def _save(openvino: Any, model: Any, path: Path) -> None:
    try:
        openvino.save_model(model, str(path), compress_to_fp16=False)
    except RuntimeError as error:
        raise OSError(None, _short(error)) from error


def _unusable(folder: ModelFolder, reason: str) -> WeightsError:
    return WeightsError(nnunet_messages.OPENVINO_FAILED.format(folder=folder.name, reason=reason))


def _short(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else type(error).__name__

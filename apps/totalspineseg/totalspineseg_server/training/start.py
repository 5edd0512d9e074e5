"""Collect the weights, corrections and steps of a training before it begins, or raise the reason why it cannot."""

from dataclasses import dataclass

from totalspineseg_server.errors import TrainingError
from totalspineseg_server.nnunet.runtimes import resolve_device
from totalspineseg_server.registry.model_store import Choice
from totalspineseg_server.registry.records import trained_on
from totalspineseg_server.training.material import Material, line_of, site_material
from totalspineseg_server.training.retrain_settings import RetrainSettings
from totalspineseg_server.training.site import Site


@dataclass(frozen=True)
class Start:
    """The weights, material and steps of a training.

    Attributes:
        choices: Step -> the weights in use.
        material: The site's corrections.
        steps: The requested steps for which there are corrections.
    """

    choices: dict[int, Choice]
    material: Material
    steps: tuple[int, ...]


def start_of(site: Site, settings: RetrainSettings) -> Start:
    """Return the weights, corrections and steps of a training, after checking the device.

    Args:
        site: Studies, corrections and models.
        settings: Settings of the training.

    Raises:
        TrainingError: There is no correction to train on, or no such device.
        WeightsError: There are no weights to begin with.
        StorageError: The hold-out list is damaged or cannot be written.
    """
    try:
        resolve_device(settings.finetune.device)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    choices = {step: site.models.resolve(step) for step in (1, 2)}
    known = {step: trained_on(site.models, choices[step].name, step) for step in settings.steps}
    line = line_of(site.models, {choice.name for choice in choices.values()})
    material = site_material(site, known, line=line)
    steps = tuple(step for step in settings.steps if material.lessons(step))
    if not steps:
        raise TrainingError(
            "There is no accepted correction to train these steps on, apart from subjects that are held out "
            f"({len(material.training)} corrections are for other steps). Please submit a corrected label first."
        )
    return Start(choices, material, steps)

"""What a training begins with, and why it cannot: asked before one starts, and by it."""

from dataclasses import dataclass

from lib.errors import TrainingError
from lib.nnunet.runtimes import resolve_device
from lib.registry.records import trained_on
from lib.registry.store import Choice
from lib.trainers.line import line_of
from lib.trainers.material import Material, site_material
from lib.trainers.settings import RetrainSettings
from lib.trainers.site import Site


@dataclass(frozen=True)
class Start:
    """What a training begins with.

    Attributes:
        choices: Step -> the weights in use.
        material: The site's corrections.
        taught: The steps that some label teaches, of those asked for.
    """

    choices: dict[int, Choice]
    material: Material
    taught: tuple[int, ...]


def start_of(site: Site, settings: RetrainSettings) -> Start:
    """Look what there is to learn from, and on what.

    Args:
        site: Studies, corrections and models.
        settings: What to do.

    Raises:
        TrainingError: There is no correction to learn from, or no such device.
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
    taught = tuple(step for step in settings.steps if material.taught(step))
    if not taught:
        raise TrainingError(
            "at least one accepted correction of a subject that is not held out is required, got "
            f"{len(material.training)} for these steps; submit a corrected label first"
        )
    return Start(choices, material, taught)

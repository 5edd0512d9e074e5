"""Draw synthetic spines: label maps, images of random contrast, demo studies."""

from totalspineseg_server.synthesis.classes import disc_order, mark_discs, step1_classes, step2_classes
from totalspineseg_server.synthesis.demo import demo_studies
from totalspineseg_server.synthesis.options import Field, SpineOptions
from totalspineseg_server.synthesis.render import RenderOptions, render, thick_slices
from totalspineseg_server.synthesis.synthetic_spine import SyntheticSpine, random_spine

__all__ = [
    "Field",
    "RenderOptions",
    "SpineOptions",
    "SyntheticSpine",
    "demo_studies",
    "disc_order",
    "mark_discs",
    "random_spine",
    "render",
    "step1_classes",
    "step2_classes",
    "thick_slices",
]

"""Synthetic spines: label maps, images of random contrast, demo studies."""

from lib.synthesis.classes import disc_order, mark_discs, step1_classes, step2_classes
from lib.synthesis.demo import demo_studies
from lib.synthesis.options import Field, SpineOptions
from lib.synthesis.render import RenderOptions, render, thick_slices
from lib.synthesis.synthetic_spine import SyntheticSpine, random_spine

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

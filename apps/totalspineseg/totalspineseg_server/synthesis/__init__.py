"""Draw synthetic spines: label maps, images of random contrast, demo studies."""

from totalspineseg_server.synthesis.demo import demo_studies
from totalspineseg_server.synthesis.render import RenderOptions, render, thick_slices
from totalspineseg_server.synthesis.synthetic_spine import (
    Field,
    SpineOptions,
    SyntheticSpine,
    random_spine,
    step1_classes,
    step2_classes,
)

__all__ = [
    "Field",
    "RenderOptions",
    "SpineOptions",
    "SyntheticSpine",
    "demo_studies",
    "random_spine",
    "render",
    "step1_classes",
    "step2_classes",
    "thick_slices",
]

"""The kinds of problems: one file each, all behind the face of `base.Family`."""

from prefinetune.families.base import Encoded, Example, Examples, Family, Field, Segment
from prefinetune.families.choice import Choice
from prefinetune.families.classification import Classification
from prefinetune.families.denoising import Denoising
from prefinetune.families.generation import Generation
from prefinetune.families.multi_label import MultiLabel
from prefinetune.families.regression import Regression
from prefinetune.families.span import Span
from prefinetune.families.tagging import Tagging

FAMILIES: dict[str, type[Family]] = {
    family.kind: family for family in (Classification, MultiLabel, Regression, Choice, Span, Tagging, Generation, Denoising)
}

__all__ = [
    "FAMILIES",
    "Choice",
    "Classification",
    "Denoising",
    "Encoded",
    "Example",
    "Examples",
    "Family",
    "Field",
    "Generation",
    "MultiLabel",
    "Regression",
    "Segment",
    "Span",
    "Tagging",
]

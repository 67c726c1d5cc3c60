"""Import stand-in; InterpolationMode is real, because its members are read at import."""

import enum
import sys

from _absent import resolve_names_in


class InterpolationMode(enum.Enum):
    """torchvision's names and values (its documentation of torchvision.transforms.InterpolationMode)."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


resolve_names_in(sys.modules[__name__])

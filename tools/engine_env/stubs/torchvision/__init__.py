"""Import stand-in: PyPI's torchvision is a CUDA build, and text models import it without a call."""

from _absent import stand_in

__version__ = "0.0.0+standin"
stand_in(__name__)

"""Import stand-in: sgl_kernel's CPU operators need AMX; without them SGLang falls back to torch."""

from _absent import stand_in

__version__ = "0.0.0+standin"
stand_in(__name__)

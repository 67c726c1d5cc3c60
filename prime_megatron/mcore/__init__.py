"""The Megatron place: the only package that imports megatron.core, of a release that was tested with it."""

from prime_megatron.mcore.versions import require_tested

# Here, so that no import of another release's internals comes first and fails with a traceback.
require_tested()

"""Which versions of megatron-core a fix applies to."""

from packaging.version import Version

from prime_megatron.mcore.fixes import FIXES, Fix


def test_gate() -> None:
    fix = Fix("x", "0.16", "0.20", lambda: None)
    assert [fix.needed(Version(v)) for v in ("0.15.3", "0.16.0", "0.16.1", "0.19.2", "0.20.0")] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert Fix("x", "0.16", None, lambda: None).needed(Version("1.0"))


def test_every_fix_has_a_regression_test() -> None:
    assert len({fix.name for fix in FIXES}) == len(FIXES) == 5

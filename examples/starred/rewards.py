"""The reward of the starred quiz: all or nothing, by the starred lines alone."""

STAR = "* "


def starred_lines(response: str, ground_truth: str) -> bool:
    """Whether the response repeats the quiz line by line, each with a digit, and the starred digits are right.

    Args:
        response: the quiz as it was filled in.
        ground_truth: the quiz filled in rightly.
    """
    given, wanted = response.split("\n"), ground_truth.split("\n")
    if len(given) != len(wanted):
        return False
    for line, right in zip(given, wanted, strict=True):
        if line[:-1] != right[:-1] or line[-1:] not in "0123456789":
            return False
        if right.startswith(STAR) and line != right:
            return False
    return True

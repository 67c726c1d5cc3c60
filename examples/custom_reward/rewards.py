"""A reward of one's own: how much of a response is made of the characters that its row asks for."""


def wanted_characters(response: str, ground_truth: str, extra_info: dict) -> float:
    """The share of the response's characters that are in the ground truth; 0 for a response that is too short."""
    if len(response) < extra_info["least"]:
        return 0.0
    return sum(character in ground_truth for character in response) / len(response)

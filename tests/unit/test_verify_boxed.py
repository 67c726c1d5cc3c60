import pytest
from hypothesis import given
from hypothesis import strategies as st

from prime_megatron.verify.boxed import last_answer, last_answer_tag, last_boxed


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (r"\boxed{42}", "42"),
        (r"so \boxed{1} and then \boxed{ 2 }.", "2"),
        (r"\boxed {7}", "7"),
        (r"$\boxed{\frac{1}{\sqrt{2}}}$", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\{1,2}", r"\{1,2"),  # an escaped brace balances nothing
        (r"\boxed{a \\}", r"a \\"),  # the brace after a double backslash is a real one
        (r"\boxed{41 \boxed{42}}", "42"),
        (r"\boxed{5}, which I put in a \boxed as asked", "5"),
        ("\\boxed{4\n2}", "4\n2"),
        ("\\boxed{\u4e09}", "\u4e09"),
    ],
)
def test_last_box(response: str, text: str) -> None:
    assert last_boxed(response).text == text


@pytest.mark.parametrize(
    ("response", "problem"),
    [
        ("", "no \\boxed{}"),
        ("The answer is 42.", "no \\boxed{}"),
        (r"\boxed 42", "no \\boxed{}"),
        (r"\boxed{42", "the last \\boxed{ is not closed"),
        (r"\boxed{41} and \boxed{\frac{1}{2}", "the last \\boxed{ is not closed"),
        (r"\boxed{42\}", "the last \\boxed{ is not closed"),
        (r"\boxed{41} \boxed{ }", "the last \\boxed{} is empty"),
    ],
)
def test_no_answer_in_the_last_box(response: str, problem: str) -> None:
    found = last_boxed(response)
    assert found.text is None
    assert found.problem == problem


_BALANCED = st.recursive(
    st.text(st.characters(exclude_characters="{}\\"), max_size=8),
    lambda inner: st.lists(inner, max_size=3).map(lambda parts: "{" + "".join(parts) + "}"),
    max_leaves=10,
)


@given(st.text(max_size=30), _BALANCED, st.text(st.characters(exclude_characters="\\"), max_size=30))
def test_any_balanced_content_comes_back_whole(before: str, content: str, after: str) -> None:
    found = last_boxed(f"{before}\\boxed{{{content}}}{after}")
    assert (found.text or "") == content.strip()


@given(st.text("\\boxed{}<answer>/ 1", max_size=60))
def test_no_text_makes_it_fail(text: str) -> None:
    found = last_answer(text)
    assert (found.text is None) == (found.problem != "")


def test_answer_tags_and_boxes() -> None:
    assert last_answer_tag("<answer>1</answer><answer> 2 </answer>").text == "2"
    assert last_answer_tag("<answer>1</answer><answer>2").text is None
    assert last_answer("<answer>1</answer> \\boxed{2}").text == "2"
    assert last_answer("\\boxed{1} <answer>2</answer>").text == "2"
    assert last_answer("<answer>\\boxed{3}</answer>").text == "3"
    assert last_answer("\\boxed{1} <answer>2").text is None
    assert last_answer("nothing").problem == "neither <answer> nor \\boxed{}"


def test_a_huge_response_is_read_once() -> None:
    deep = "\\boxed{" * 200_000 + "1" + "}" * 200_000
    assert last_boxed(deep).text == "1"
    assert last_boxed("\\boxed " * 300_000).text is None
    assert last_boxed("\\boxed{" + "{" * 1_000_000).text is None

"""The prompt stream: shuffled, the same everywhere, resumable to the row."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.data.encode import Skip
from prime_megatron.data.hold_out import hold_out
from prime_megatron.data.rows import Message, PromptRow, SftRow
from prime_megatron.data.stream import PromptStream, SftStream, eval_prompts
from prime_megatron.errors import InputError

MATH = Path(__file__).resolve().parents[3] / "shared" / "data" / "math"


class Letters:
    """A tokenizer of one token a character, where the stream needs no more."""

    def encode_chat(self, messages, tools=()):
        if messages[-1].content == "!":
            raise InputError("the chat template refuses a chat")
        text = messages[-1].content
        return text, [ord(letter) for letter in text]

    def encode_answer(self, messages, tools=()):
        return self.encode_chat(messages[:-1])[1], [ord(letter) for letter in messages[-1].content] + [0]


def make_rows(*texts: str) -> list[PromptRow]:
    return [
        PromptRow((Message("user", text),), "math", f"truth of {text}", "test", f"f.jsonl, row {i + 1}")
        for i, text in enumerate(texts)
    ]


def make_stream(rows, *, limit=8, seed=0, shuffle=True) -> PromptStream:
    return PromptStream(rows, Letters(), max_prompt_tokens=limit, seed=seed, shuffle=shuffle)


ALPHABET = [letter * (1 + index % 3) for index, letter in enumerate("abcdefghij")]


def test_a_prompt_carries_its_row():
    (prompt,) = make_stream(make_rows("ab")).take(1)
    assert (prompt.uid, prompt.draw, prompt.token_ids) == ("0-0", 0, (97, 98))
    assert (prompt.ability, prompt.ground_truth, prompt.data_source, prompt.text) == (
        "math",
        "truth of ab",
        "test",
        "ab",
    )


def test_every_epoch_has_every_row_once_in_another_order():
    stream = make_stream(make_rows(*ALPHABET))
    prompts = stream.take(30)
    epochs = [[prompt.text for prompt in prompts[start : start + 10]] for start in (0, 10, 20)]
    assert all(sorted(epoch) == sorted(ALPHABET) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != ALPHABET
    assert [prompt.draw for prompt in prompts] == list(range(30))
    assert all(prompt.uid == f"{i // 10}-{ALPHABET.index(prompt.text)}" for i, prompt in enumerate(prompts))
    assert len({prompt.uid for prompt in prompts}) == 30


def test_order_is_the_seeds_alone():
    rows = make_rows(*ALPHABET)
    assert make_stream(rows, seed=5).take(25) == make_stream(rows, seed=5).take(25)
    assert make_stream(rows, seed=5).take(25) != make_stream(rows, seed=6).take(25)
    # Pinned: a new Python or a refactoring must not change the data order of a resumed run.
    assert "".join(p.text[0] for p in make_stream(rows, seed=5).take(10)) == "jgiafcbedh"


def test_file_order_without_shuffle():
    texts = [prompt.text for prompt in make_stream(make_rows(*ALPHABET), shuffle=False).take(15)]
    assert texts == ALPHABET + ALPHABET[:5]


def test_one_take_or_many_give_the_same():
    one, many = make_stream(make_rows(*ALPHABET)), make_stream(make_rows(*ALPHABET))
    assert one.take(23) == [prompt for count in (1, 0, 7, 15) for prompt in many.take(count)]
    assert one.state() == many.state()


def test_long_prompts_are_skipped():
    stream = make_stream(make_rows(*ALPHABET), limit=2)
    prompts = stream.take(14)
    short = [text for text in ALPHABET if len(text) <= 2]
    assert len(short) == 7
    assert Counter(prompt.text for prompt in prompts) == Counter(short * 2)
    assert [stream.skip_of(index) for index, text in enumerate(ALPHABET) if len(text) > 2] == [Skip.too_long] * 3
    assert prompts[-1].draw + 1 >= 14 + 3
    assert sorted(prompt.draw for prompt in prompts) == [prompt.draw for prompt in prompts]
    full = make_stream(make_rows(*ALPHABET)).take(prompts[-1].draw + 1)
    assert [full[prompt.draw].text for prompt in prompts] == [prompt.text for prompt in prompts], (
        "draw: stream position"
    )


def test_the_limit_is_inclusive():
    assert [prompt.text for prompt in make_stream(make_rows("aa", "bbb"), limit=2).take(2)] == ["aa", "aa"]


def test_nothing_short_enough_is_an_error_not_a_hang():
    with pytest.raises(InputError) as error:
        make_stream(make_rows("aaa", "bbb"), limit=2).take(1)
    assert str(error.value) == ("every one of the 2 rows is skipped: 2 over data.max_prompt_tokens 2 (raise it)")


def test_a_row_the_template_refuses_is_named():
    with pytest.raises(InputError, match=r"^f\.jsonl, row 1: the chat template refuses"):
        make_stream(make_rows("!")).take(1)


@settings(deadline=None)
@given(
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=6),
    st.integers(0, 3),
    st.booleans(),
    st.lists(st.integers(0, 9), max_size=4),
    st.integers(0, 9),
)
def test_resumed_is_uninterrupted(texts, seed, shuffle, before, after):
    rows = make_rows("a", *texts)
    stream = make_stream(rows, limit=3, seed=seed, shuffle=shuffle)
    for count in before:
        stream.take(count)
    state = json.loads(json.dumps(stream.state()))
    resumed = make_stream(rows, limit=3, seed=seed, shuffle=shuffle)
    resumed.restore(state)
    assert resumed.state() == stream.state()
    assert resumed.take(after) == stream.take(after)
    assert resumed.state() == stream.state()
    assert resumed.epoch == stream.epoch


@pytest.mark.parametrize(
    ("rows", "options", "key"),
    [
        (make_rows(*ALPHABET[:-1]), {}, "num_rows"),
        (make_rows(*ALPHABET[:-1], "x"), {}, "data_sha256"),
        (make_rows(*ALPHABET), {"seed": 1}, "seed"),
        (make_rows(*ALPHABET), {"shuffle": False}, "shuffle"),
        (
            [dataclasses.replace(make_rows("a")[0], ground_truth="other"), *make_rows(*ALPHABET)[1:]],
            {},
            "data_sha256",
        ),
    ],
)
def test_resuming_on_other_data_is_refused(rows, options, key):
    state = make_stream(make_rows(*ALPHABET)).state()
    stream = make_stream(rows, **options)
    with pytest.raises(InputError, match=f"cannot resume the data stream: {key} is"):
        stream.restore(state)
    assert stream.take(1)[0].draw == 0, "nothing was taken over"


def test_held_out_prompts():
    prompts, skipped = eval_prompts(make_rows("a", "bbb", "cc", "d"), Letters(), max_prompt_tokens=2, max_prompts=2)
    assert [prompt.uid for prompt in prompts] == ["eval-0", "eval-2"]
    assert [prompt.draw for prompt in prompts] == [0, 2]
    assert skipped == 1
    assert len(eval_prompts(make_rows("a", "b"), Letters(), max_prompt_tokens=2, max_prompts=None)[0]) == 2
    with pytest.raises(InputError, match=r"data\.eval: every one of the 2 rows is skipped"):
        eval_prompts(make_rows("aaa", "bbb"), Letters(), max_prompt_tokens=2, max_prompts=None)


@given(
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=8),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(0, 4),
)
def test_epochs_learn_every_row_so_often_and_then_the_stream_ends(texts, epochs, batch, stops_after):
    rows = [
        SftRow((Message("user", text), Message("assistant", "z")), f"f, row {i}")
        for i, text in enumerate(["a", *texts])
    ]
    usable = [i for i, text in enumerate(["a", *texts]) if len(text) <= 3]

    def stream():
        return SftStream(rows, Letters(), max_tokens=5, seed=3, epochs=epochs)

    straight, resumed, taken = stream(), stream(), []
    for step in range(-(-epochs * len(usable) // batch)):
        if step == stops_after:
            state = json.loads(json.dumps(resumed.state()))
            resumed = stream()
            resumed.restore(state)
        groups = straight.take(batch)
        assert groups and groups == resumed.take(batch)
        taken += groups
    assert straight.take(batch) == []
    assert Counter(group.prompt.uid for group in taken) == {
        f"{epoch}-{row}": 1 for epoch in range(epochs) for row in usable
    }


@given(st.lists(st.integers(1, 3), min_size=2, max_size=30), st.floats(0.01, 0.99), st.integers(0, 3))
def test_a_share_of_the_rows_is_held_out_whole(answers, share, seed):
    """answers: examples of each row of the file."""
    rows = [
        SftRow((Message("user", f"{row}-{example}"),), f"f, row {row}")
        for row, count in enumerate(answers)
        for example in range(count)
    ]
    expected = max(1, round(share * len(answers)))
    if expected == len(answers):
        with pytest.raises(InputError, match=r"data\.held_out_share: .* leaves none to learn"):
            hold_out(rows, share, seed)
        return
    learned, held = hold_out(rows, share, seed)
    assert (learned, held) == hold_out(list(rows), share, seed)
    assert sorted(learned + held, key=rows.index) == rows and learned == sorted(learned, key=rows.index)
    assert len({row.origin for row in held}) == expected
    assert not {row.origin for row in held} & {row.origin for row in learned}


def test_supervised_rows_are_groups_of_one():
    rows = [
        SftRow((Message("user", "ab"), Message("assistant", "c")), "f, row 1"),
        SftRow((Message("user", "abcd"), Message("assistant", "c")), "f, row 2"),
    ]
    stream = SftStream(rows, Letters(), max_tokens=5, seed=0)
    group, again = stream.take(2)
    assert group.prompt.token_ids == (97, 98)
    (sample,) = group.samples
    assert sample.token_ids == (99, 0)
    assert len(sample.logprobs) == 2
    assert (sample.finish, sample.text) == ("stop", "c")
    assert again.samples == group.samples, "the long row is skipped"
    assert stream.skip_of(1) is Skip.too_long
    with pytest.raises(InputError, match=r"2 over data\.max_tokens 2 \(raise it\)"):
        SftStream(rows, Letters(), max_tokens=2, seed=0).take(1)


@pytest.mark.skipif(not MATH.is_dir(), reason=f"REAL TEXT NOT TESTED: {MATH} is not on this machine")
def test_real_problems(tmp_path):
    from prime_megatron.data.rows import read_prompt_rows

    problems = json.loads((MATH / "math500.json").read_text())
    path = tmp_path / "math500.jsonl"
    with path.open("w") as file:
        for key, problem in problems["problem"].items():
            row = {
                "data_source": "math500",
                "prompt": [{"role": "user", "content": problem}],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": str(problems["expected_answer"][key])},
            }
            file.write(json.dumps(row) + "\n")
    rows = read_prompt_rows([str(path)])
    assert len(rows) == 500
    stream = make_stream(rows, limit=300)
    prompts = stream.take(700)
    assert all(0 < len(prompt.token_ids) <= 300 for prompt in prompts)
    short = sum(len(row.messages[0].content) <= 300 for row in rows)
    assert len({prompt.text for prompt in prompts if prompt.uid.startswith("0-")}) == short
    state = stream.state()
    rest = stream.take(100)
    resumed = make_stream(rows, limit=300)
    resumed.restore(state)
    assert resumed.take(100) == rest

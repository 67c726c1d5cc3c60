"""The tokenizer of a model folder: loading, checks, chat templates, ends of steps."""

import json
from pathlib import Path

import pytest
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from prime_megatron.data.rows import Message
from prime_megatron.data.tokenizer import load_tokenizer, model_vocab_size
from prime_megatron.errors import InputError

WORDS = ["<pad>", "<eos>", "<user>", "<bot>", "<system>", "\n", "\n\n", " ", *"0123456789+=?abc.", ".\n\n"]
TEMPLATE = (
    "{% for m in messages %}{{ {'user': '<user>', 'assistant': '<bot>', 'system': '<system>'}[m.role] + m.content }}"
    "{% if m.role == 'assistant' %}<eos>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)
USER = Message("user", "1+2=?")


@pytest.fixture
def make_folder(tmp_path):
    """An HF folder of model_type qwen2 with a character-level tokenizer.json of its own."""

    def make(template: str | None = TEMPLATE, eos: str | None = "<eos>", vocab_size: int = 32, **generation) -> str:
        backend = Backend(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="?"))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\.\n\n|\n\n|[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            pad_token="<pad>",
            eos_token=eos,
            additional_special_tokens=["<user>", "<bot>", "<system>"],
        )
        tokenizer.chat_template = template
        (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
        tokenizer.save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "vocab_size": vocab_size}))
        if generation:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        return str(tmp_path)

    return make


def ids(*words: str) -> list[int]:
    return [WORDS.index(word) for word in words]


def test_encodes_by_the_folders_own_tokenizer_json(make_folder):
    tokenizer = load_tokenizer(make_folder())
    # transformers 5 would map model_type qwen2 to a class that cannot read a word-level tokenizer.json.
    assert tokenizer.encode("1+2=?\n\n") == ids(*"1+2=?", "\n\n")
    assert tokenizer.decode(ids("<user>", *"1+2", "<eos>")) == "1+2"
    assert tokenizer.decode(ids("<user>", *"1+2", "<eos>"), skip_special_tokens=False) == "<user>1+2<eos>"
    assert tokenizer.decode(ids("1", " ", ".", " ", "?")) == "1 . ?", "spaces stay as they are"
    assert (tokenizer.pad_token_id, tokenizer.eos_token_ids) == (0, (1,))


def test_vocabulary_must_hold_every_id(make_folder):
    last = len(WORDS) - 1
    assert load_tokenizer(make_folder(vocab_size=last + 1)).encode(".\n\n") == [last]
    with pytest.raises(InputError) as error:
        load_tokenizer(make_folder(vocab_size=last))
    assert f"token id {last}" in str(error.value)
    assert f"vocab_size {last}" in str(error.value)
    with pytest.raises(InputError, match="does not match the model"):
        load_tokenizer(make_folder(), 10)
    load_tokenizer(make_folder(vocab_size=3), 64)


def test_added_tokens_count(make_folder):
    folder = make_folder(vocab_size=len(WORDS))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=f"token id {len(WORDS)}"):
        load_tokenizer(folder)


def test_missing_and_damaged_folders(make_folder, tmp_path):
    with pytest.raises(InputError, match="no such model folder"):
        load_tokenizer(str(tmp_path / "absent"))
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        load_tokenizer(str(tmp_path / "bare"))
    (tmp_path / "bare" / "config.json").write_text('{"vocab_size": 9, "model_type": "qwen2"}')
    with pytest.raises(InputError, match="no tokenizer files"):
        load_tokenizer(str(tmp_path / "bare"))
    (tmp_path / "bare" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="no vocab_size"):
        model_vocab_size(str(tmp_path / "bare"))
    folder = make_folder()
    Path(folder, "tokenizer.json").write_text("{broken")
    with pytest.raises(InputError, match="cannot load a tokenizer") as error:
        load_tokenizer(folder)
    assert "\n" not in str(error.value)


def test_end_of_sequence(make_folder):
    with pytest.raises(InputError, match="no end-of-sequence token"):
        load_tokenizer(make_folder(eos=None))
    assert load_tokenizer(make_folder(eos=None, eos_token_id=[3, 1])).eos_token_ids == (3, 1)
    assert load_tokenizer(make_folder(eos_token_id=[3, 1])).eos_token_ids == (1, 3)
    with pytest.raises(InputError, match=r"generation_config.json: eos_token_id = '3' is not a token id"):
        load_tokenizer(make_folder(eos_token_id="3"))


def test_ends_named_in_config_json_are_stops_where_generation_config_names_none(make_folder):
    """As in transformers' generate, for which config.json is the last place."""
    folder = make_folder(eos="<eos>")
    path = Path(folder) / "config.json"
    path.write_text(json.dumps({"model_type": "qwen2", "vocab_size": 32, "eos_token_id": [1, 4]}))
    assert load_tokenizer(folder).eos_token_ids == (1, 4)
    (Path(folder) / "generation_config.json").write_text(json.dumps({"max_length": 5}))
    assert load_tokenizer(folder).eos_token_ids == (1, 4)
    (Path(folder) / "generation_config.json").write_text(json.dumps({"eos_token_id": 3}))
    assert load_tokenizer(folder).eos_token_ids == (1, 3)
    path.write_text(json.dumps({"model_type": "qwen2", "vocab_size": 32, "eos_token_id": [True]}))
    (Path(folder) / "generation_config.json").unlink()
    with pytest.raises(InputError, match=r"config.json: eos_token_id = \[True\] is not a token id"):
        load_tokenizer(folder)
    assert load_tokenizer(make_folder(eos_token_id=2)).eos_token_ids == (1, 2)


def test_chat_template(make_folder):
    tokenizer = load_tokenizer(make_folder())
    text, token_ids = tokenizer.encode_chat([Message("system", "a"), USER])
    assert text == "<system>a<user>1+2=?<bot>"
    assert token_ids == ids("<system>", "a", "<user>", *"1+2=?", "<bot>")


def test_without_a_template_one_user_message_stands_as_it_is(make_folder):
    tokenizer = load_tokenizer(make_folder(template=None))
    assert tokenizer.encode_chat([USER]) == ("1+2=?", ids(*"1+2=?"))
    with pytest.raises(InputError) as error:
        tokenizer.encode_chat([Message("system", "a"), USER])
    assert "no chat template" in str(error.value)
    assert "(system, user)" in str(error.value)


def test_a_template_that_refuses(make_folder):
    tokenizer = load_tokenizer(make_folder(template="{{ raise_exception('only even turns') }}"))
    with pytest.raises(InputError, match="refuses a chat: only even turns"):
        tokenizer.encode_chat([USER])


def test_supervised_answers(make_folder):
    chat = [USER, Message("assistant", "3.")]
    prompt, response = load_tokenizer(make_folder()).encode_answer(chat)
    assert prompt == ids("<user>", *"1+2=?", "<bot>")
    assert response == ids("3", ".", "<eos>"), "the template's newline after the end is no part of the answer"
    plain = load_tokenizer(make_folder(template=None))
    assert plain.encode_answer(chat) == (ids(*"1+2=?"), ids("3", ".", "<eos>"))


def test_a_template_that_rewrites_the_answered_prompt(make_folder):
    rewriting = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<bot>abc{% endif %}"
    tokenizer = load_tokenizer(make_folder(template=rewriting))
    prompt, response = tokenizer.encode_answer([USER, Message("assistant", "3")])
    assert prompt == ids(*"1+2=?", "<bot>", *"abc")
    assert response == ids("3", "<eos>")


def test_several_turns_learn_the_last(make_folder):
    chat = [USER, Message("assistant", "3"), Message("user", "a?"), Message("assistant", "b")]
    prompt, response = load_tokenizer(make_folder()).encode_answer(chat)
    assert prompt == ids("<user>", *"1+2=?", "<bot>", "3", "<eos>", "\n", "<user>", *"a?", "<bot>")
    assert response == ids("b", "<eos>")


def test_step_ends(make_folder):
    tokenizer = load_tokenizer(make_folder())
    table_V = tokenizer.step_end_table("\n\n", 32)
    assert table_V.shape == (32,)
    assert table_V.nonzero().flatten().tolist() == ids("\n\n", ".\n\n")
    assert tokenizer.step_end_table("<eos>", 32).nonzero().flatten().tolist() == [1]
    with pytest.raises(InputError, match="no token"):
        tokenizer.step_end_table("Next action", 32)

"""Tokenizers: one trained here gives every text back, and what every one must have."""

import random

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from rlframe.data.tokenizer import check_special_tokens, train_tokenizer
from rlframe.errors import RecipeError

CORPUS = ["the battery is fine", "The screen is fine too", "grün is a colour"] * 5
SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(CORPUS, vocab_size=280, lowercase=False)


def some_texts():
    """Texts from everywhere in Unicode: letters, signs, emoji, combining marks, controls, spaces."""
    rng = random.Random(0)
    blocks = [(0x20, 0x7E), (0x00, 0x1F), (0xA0, 0x24F), (0x300, 0x36F), (0x400, 0x4FF)]
    blocks += [(0x4E00, 0x9FFF), (0x1F300, 0x1F6FF), (0x2000, 0x206F), (0xE000, 0xE0FF)]
    for _ in range(200):
        chosen = [rng.choice(blocks) for _ in range(rng.randrange(30))]
        yield "".join(chr(rng.randint(*block)) for block in chosen)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "the battery",
        "  two  spaces  ",
        "a , b . c !",
        "don 't",
        "grün ☃ 👩‍🚀",
        "a\r\nb\tc\x00",
    ],
)
def test_decoding_gives_back_the_text(trained, text):
    assert trained.decode(trained.encode(text), skip_special_tokens=True) == text


def test_decoding_gives_back_every_text_of_unicode(trained):
    for text in some_texts():
        assert trained.decode(trained.encode(text), skip_special_tokens=True) == text


def test_bos_stands_before_a_text_and_nothing_behind_it(trained):
    ids = trained.encode("the battery")
    assert ids[0] == trained.bos_token_id
    assert trained.bos_token_id not in ids[1:]
    assert trained.eos_token_id not in ids
    assert trained.encode("the battery", add_special_tokens=False) == ids[1:]


def test_the_three_special_tokens_differ_and_come_first(trained):
    assert trained.convert_tokens_to_ids(["<pad>", "<bos>", "<eos>"]) == [0, 1, 2]
    assert (trained.pad_token_id, trained.bos_token_id, trained.eos_token_id) == (0, 1, 2)


def test_a_vocabulary_is_as_large_as_asked_for_if_the_text_has_so_much_in_it(trained):
    assert len(trained) == 280
    assert 259 < len(train_tokenizer(CORPUS, vocab_size=9000, lowercase=False)) < 400


def test_the_smallest_vocabulary_is_the_special_tokens_and_the_bytes():
    smallest = train_tokenizer(CORPUS, vocab_size=259, lowercase=False)
    assert len(smallest) == 259
    assert len(smallest.encode("grün", add_special_tokens=False)) == len("grün".encode())


def test_a_larger_vocabulary_needs_fewer_tokens(trained):
    larger = train_tokenizer(CORPUS, vocab_size=290, lowercase=False)
    assert len(larger.encode(CORPUS[0])) < len(trained.encode(CORPUS[0]))


def test_lowercase_writes_everything_in_lower_case():
    lower = train_tokenizer(CORPUS, vocab_size=300, lowercase=True)
    assert lower.encode("THE Battery") == lower.encode("the battery")
    assert lower.decode(lower.encode("GRÜN is"), skip_special_tokens=True) == "grün is"


def test_without_lowercase_case_counts(trained):
    assert trained.encode("THE Battery") != trained.encode("the battery")


def test_a_tokenizer_is_the_same_after_it_was_saved(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again.get_vocab() == trained.get_vocab()
    for text in some_texts():
        assert again.encode(text) == trained.encode(text)
    assert (again.pad_token_id, again.eos_token_id) == (0, 2)


def test_training_twice_gives_the_same_tokenizer(trained):
    again = train_tokenizer(iter(CORPUS), vocab_size=280, lowercase=False)
    assert again.get_vocab() == trained.get_vocab()


# What every tokenizer must have


@pytest.fixture
def made():
    """A tokenizer of four tokens with some of the special ones."""

    def make(**special):
        words = {"<eos>": 0, "<bos>": 1, "<pad>": 2, "word": 3}
        raw = Tokenizer(models.WordLevel(words, unk_token="word"))
        return PreTrainedTokenizerFast(tokenizer_object=raw, **special)

    return make


def check(tokenizer, pad_token=None):
    return check_special_tokens(tokenizer, name="some/model", pad_token=pad_token)


def test_a_tokenizer_with_an_eos_and_another_pad_is_left_as_it_is(made):
    tokenizer = made(**SPECIAL)
    check(tokenizer)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer)) == (2, 0, 4)


@pytest.mark.parametrize("pad", [{}, {"pad_token": "<eos>"}])
def test_a_padding_token_is_not_needed_and_may_be_eos(made, pad):
    tokenizer = made(eos_token="<eos>", **pad)
    assert check(tokenizer) == frozenset()
    assert (tokenizer.pad_token, len(tokenizer)) == (pad.get("pad_token"), 4)


def test_a_tokenizer_without_eos_is_refused(made):
    with pytest.raises(RecipeError, match=r"model\.policy: .*'some/model' has no EOS token"):
        check(made(pad_token="<pad>"))


@pytest.mark.parametrize(
    "special", [{"eos_token": "<eos>"}, {"eos_token": "<eos>", "pad_token": "<eos>"}]
)
def test_the_option_takes_a_token_of_the_vocabulary_for_padding(made, special):
    tokenizer = made(**special)
    assert check(tokenizer, pad_token="<pad>") == frozenset()
    assert (tokenizer.pad_token_id, len(tokenizer)) == (2, 4)


def test_the_option_adds_a_token_that_is_not_in_the_vocabulary(made):
    tokenizer = made(eos_token="<eos>")
    assert check(tokenizer, pad_token="<blank>") == {"<blank>"}
    assert (tokenizer.pad_token_id, len(tokenizer)) == (4, 5)

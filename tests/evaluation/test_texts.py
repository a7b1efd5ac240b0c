"""How a text becomes sequences."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from support.evaluation.evaluated import byte_tokenizer
from tokenizers.processors import TemplateProcessing

from tq3.errors import UsageError
from tq3.evaluation.texts import check_predicted, first_token, sequences

BOS_ID = 256


def config(bos: int | None) -> SimpleNamespace:
    inner = SimpleNamespace(bos_token_id=bos)
    return SimpleNamespace(get_text_config=lambda: inner)


def lists(ids: list[int], context: int, first: int | None) -> list[list[int]]:
    return [row for part in sequences(ids, context, first) for row in part.tolist()]


def test_sequences_hold_the_context_and_the_rest_comes_last():
    assert lists([1, 2, 3, 4, 5, 6, 7, 8], 3, None) == [[1, 2, 3], [4, 5, 6], [7, 8]]


def test_each_sequence_begins_with_the_first_token():
    assert lists([1, 2, 3, 4, 5], 3, 0) == [[0, 1, 2], [0, 3, 4], [0, 5]]


@pytest.mark.parametrize(("ids", "kept"), [([1, 2, 3, 4], [[1, 2, 3]]), ([1, 2], [[1, 2]])])
def test_a_rest_that_predicts_nothing_is_left_out(ids, kept):
    assert lists(ids, 3, None) == kept


def test_a_single_predicted_token_is_refused():
    check_predicted(sequences([1, 2, 3, 4], 2, None))
    with pytest.raises(UsageError, match="too few tokens are predicted.*found 1"):
        check_predicted(sequences([1, 2, 3], 2, None))


def test_a_tokenizer_that_adds_bos_decides_by_itself():
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS_ID)]
    )
    assert first_token(tokenizer, config(None)) == BOS_ID


def test_bos_is_added_where_config_and_tokenizer_agree_on_it():
    tokenizer = byte_tokenizer()
    assert first_token(tokenizer, config(BOS_ID)) == BOS_ID
    assert first_token(tokenizer, config(3)) is None
    assert first_token(tokenizer, config(None)) is None
    tokenizer.bos_token = None
    assert first_token(tokenizer, config(BOS_ID)) is None

"""What an answer of REDCap is: one ordered table decides."""

from __future__ import annotations

import pytest

from shared.errors import RedcapRejected, RedcapUnavailable
from worker.redcap.responses import KINDS, Answer, ExportTooLarge, RowsRejected, classify, raise_for_response

PAGE = "<html>Please log in</html>"
REJECTION = '{"error": "The data is not allowed"}'

ANSWERS = [
    ("redcap_redirects", RedcapUnavailable, Answer(302, REJECTION)),
    ("redcap_out_of_memory", ExportTooLarge, Answer(500, "Allowed memory size of 128 MB exhausted")),
    ("redcap_out_of_memory", ExportTooLarge, Answer(400, '{"error": "request a smaller data set"}')),
    ("redcap_tabs_page", RedcapUnavailable, Answer(200, "<p>multiple browser tabs</p>")),
    ("redcap_server_error", RedcapUnavailable, Answer(429, REJECTION)),
    ("redcap_server_error", RedcapUnavailable, Answer(503, PAGE)),
    ("redcap_forbidden", RedcapRejected, Answer(403, REJECTION)),
    ("redcap_no_such_field", RedcapRejected, Answer(400, '{"error": "These fields are not valid: a"}')),
    ("redcap_rejected", RedcapRejected, Answer(400, REJECTION)),
    ("redcap_rejected", RedcapRejected, Answer(200, f"ERROR: {REJECTION}")),
    ("redcap_strange_answer", RedcapUnavailable, Answer(200, "{", defect="not JSON")),
    ("redcap_banned", RedcapUnavailable, Answer(403, PAGE)),
    ("redcap_banned", RedcapUnavailable, Answer(200, "<p>Your address is BANNED</p>")),
    ("redcap_page", RedcapUnavailable, Answer(200, PAGE)),
    ("redcap_page", RedcapUnavailable, Answer(404, "")),
]


@pytest.mark.parametrize(("code", "kind", "answer"), ANSWERS)
def test_each_answer_is_classified_by_the_first_row_that_matches(
    code: str, kind: type[Exception], answer: Answer
) -> None:
    error = classify(answer)
    assert (error.code, type(error)) == (code, kind)


def test_every_row_of_the_table_has_an_answer_that_reaches_it() -> None:
    assert {kind.name for kind in KINDS} == {code for code, _, _ in ANSWERS}


@pytest.mark.parametrize(
    "text", ["[]", '{"project_id": 1}', '[{"notes": "too much data, banned"}]', "14.5.10"]
)
def test_data_is_a_success_whatever_words_it_contains(text: str) -> None:
    raise_for_response(Answer(200, text))


def test_rejected_rows_come_before_the_words_in_their_reasons() -> None:
    answer = Answer(400, r'{"error": "\"7\",\"field\",\"x\",\"too much data\""}', frozenset({"7"}))
    error = classify(answer)
    assert isinstance(error, RowsRejected)
    assert error.reasons == {"7": "field: too much data"}

import pytest

from fgis import files
from fgis.errors import UserError
from fgis.experiment.head_use import HEADS, check_engine, why_not
from tests.report.reports import GAIN, LOSS, NULL, evaluation, report


@pytest.mark.parametrize(("difference", "used"), [(GAIN, True), (NULL, False), (LOSS, False)])
def test_the_head_is_used_where_the_report_shows_that_it_helps(difference, used, tmp_path):
    assert why_not(tmp_path, None, "auto") == ""  # no report speaks against it
    files.write_json(tmp_path / "report.json", report(new_photos=evaluation(difference)))
    found = why_not(tmp_path, None, "auto")
    assert found == (
        "" if used else f"the report of {tmp_path} does not show that its head helps; --use_head=always uses it"
    )
    assert why_not(tmp_path, None, "always") == why_not(tmp_path, 40, "auto") == ""  # a step that was asked for
    assert why_not(tmp_path, None, "never") == "--use_head=never"


def test_another_word_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^--use_head=allways: no such choice; did you mean .always."):
        why_not(tmp_path, None, "allways")


def test_an_engine_elsewhere_is_searched_with_the_head_that_its_embeddings_have():
    assert check_engine("auto", "milvus:a.db") == "always"
    assert [check_engine(word, "") for word in HEADS] == list(HEADS)
    with pytest.raises(UserError, match=r"^--use_head=never: does not go with --engine"):
        check_engine("never", "milvus:a.db")

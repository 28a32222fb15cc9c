import pytest

from fgis.report import summary
from tests.report import reports
from tests.report.reports import GAIN, LOSS, NULL, UNDEFINED, evaluation, report

SIGNED = {
    "gain": "raises it by 0.2500 (95 % interval +0.1250 to +0.5000), which is distinguishable from 0",
    "loss": "lowers it by 0.2500 (95 % interval -0.5000 to -0.1250), which is distinguishable from 0",
    "null": "changes it by +0.2500 (95 % interval -0.1250 to +0.5000), which cannot be distinguished from 0",
}


@pytest.mark.parametrize(
    ("difference", "training", "effect", "of_training"),
    [(GAIN, NULL, "gain", "null"), (LOSS, GAIN, "loss", "gain"), (NULL, LOSS, "null", "loss")],
)
def test_the_paragraph_says_what_the_head_adds_and_how_much_of_it_training_does(
    difference, training, effect, of_training
):
    words = summary.paragraph(report(unseen_gallery=evaluation(difference, training)))
    assert words == (
        "On unseen objects (neither the queries' objects nor those of the gallery were trained on), the mean ns_score "
        f"is 3.7500 with the trained head and 3.5000 with the frozen features: the head {SIGNED[effect]}. "
        f"Against the head before training (3.2500), training itself {SIGNED[of_training]}."
    )


def test_the_gallery_of_unseen_objects_comes_first_and_that_of_all_images_is_named_as_such():
    words = summary.paragraph(
        report(closed_set=evaluation(LOSS), unseen_objects=evaluation(GAIN), unseen_gallery=evaluation(NULL))
    )
    first, second = words.split(". In the gallery")
    assert first.endswith(SIGNED["null"])
    assert second == (f" of all 9 images, which includes the objects that were trained on, the head {SIGNED['gain']}.")


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("unseen_objects", "On unseen objects (the queries' objects were not trained on; the gallery is all images), "),
        ("closed_set", "On the objects that the heads were trained on (closed set; there are no figures on unseen"),
        ("transfer", "On the images of another feature file than the one that the heads were trained on (transfer), "),
    ],
)
def test_other_evaluations_are_named_as_what_they_are(name, start):
    words = summary.paragraph(report(**{name: evaluation(GAIN)}))
    assert words.startswith(start)
    assert words.endswith(f"the head {SIGNED['gain']}.")  # nothing is said of training without its figure
    assert "before training" not in words


def test_the_first_metric_is_the_one_that_is_described():
    one = evaluation(GAIN, metric="recall@1")
    for row in ("frozen", "untrained", "trained", "difference"):
        one[row]["map@r"] = LOSS
    assert "the mean recall@1 is 3.7500" in summary.paragraph(report(unseen_objects=one))


def test_without_figures_nothing_is_compared():
    words = summary.paragraph(report(closed_set=evaluation(UNDEFINED)))
    assert words.endswith("no query has a value of ns_score, so the trained head cannot be compared.")
    words = summary.paragraph(report(triplets=evaluation(GAIN)))
    assert words == "This report has no ranking by the trained head to compare with one by the frozen features."
    words = summary.paragraph(report(closed_set=evaluation(reports.figure(0.25, None, None))))
    assert words.endswith("the head changes it by +0.2500, without an interval.")


def test_a_terminal_gets_the_metrics_that_fit_and_the_names_of_the_others():
    one = evaluation(GAIN)
    for row in ("frozen", "untrained", "trained", "difference"):
        one[row]["map@r"] = LOSS
    found = report(closed_set=one)
    narrow = summary.report_text(found, width=60)
    lines = narrow[narrow.index("closed set:") :].splitlines()
    assert "in report.html also map@r" in lines
    assert max(map(len, lines[1:3])) <= 60
    assert "trained head" in narrow
    assert summary.report_text(found, width=200) == summary.report_text(found)
    assert "ns_score" in summary.report_text(found, width=10)  # at least one


def test_the_text_is_the_paragraph_and_the_tables():
    found = report(closed_set=evaluation(GAIN), transfer=evaluation(UNDEFINED, without_relatives=8))
    text = summary.report_text(found)
    assert text.startswith(summary.paragraph(found) + "\n")
    assert "closed set: the gallery is all images" in text
    lines = [line.split("  ") for line in text.splitlines()]
    assert ["trained head", "3.7500 [3.5000, 4.0000]"] in [[cell.strip() for cell in line if cell] for line in lines]
    assert "so there is nothing to score." in text
    assert "nan" not in text


def test_collapsed_runs_are_named_and_healthy_ones_are_not_mentioned():
    found = report(closed_set=evaluation(GAIN))
    text = summary.report_text(found | {"collapsed": [[0, -1], [3, 2]]})
    assert text.startswith("COLLAPSED: 2 runs (seed 0, seed 3 fold 2) ended")
    assert "hard_negatives" in text
    assert "COLLAPSED" not in summary.report_text(found)


def test_runs_that_learnt_nothing_are_named():
    found = report(closed_set=evaluation(GAIN)) | {"idle": [[0, -1], [0, 2, "photos"]]}
    assert summary.warning(found).startswith(
        "NOTHING LEARNT: in 2 runs (seed 0, seed 0 photo fold 2) no triplet or pair"
    )
    assert "NOTHING LEARNT" in summary.report_text(found)


@pytest.mark.parametrize(
    ("difference", "words", "helps"),
    [(GAIN, "helps with", True), (LOSS, "hurts with", False), (NULL, "shows no difference with", False)],
)
def test_one_sentence_says_whether_training_helps_and_the_next_what_searches_make_of_it(difference, words, helps):
    found = report(closed_set=evaluation(GAIN), unseen_objects=evaluation(LOSS), new_photos=evaluation(difference))
    sentence, search = summary.training_words(found).split(". Searches use ")
    assert sentence.startswith(
        f"Against the frozen features, the trained head {words} new photos of known objects (ns_s"
    )
    assert ", hurts with photos of unseen objects (ns_score -0.2500 [-0.5000, -0.1250])" in sentence
    assert search == ("it." if helps else "the features as they are; --use_head=always uses it.")
    assert summary.head_helps(found) is helps
    assert summary.training_words(found) in summary.report_text(found)


def test_unseen_objects_decide_where_there_are_no_new_photos_and_nothing_where_there_are_neither():
    assert summary.head_helps(report(closed_set=evaluation(LOSS), unseen_objects=evaluation(GAIN))) is True
    assert summary.head_helps(report(unseen_objects=evaluation(GAIN), new_photos=evaluation(UNDEFINED))) is True
    closed = report(closed_set=evaluation(LOSS), transfer=evaluation(LOSS))
    assert summary.head_helps(closed) is None
    assert summary.training_words(closed).endswith("a gallery of their own (ns_score -0.2500 [-0.5000, -0.1250]).")
    assert summary.training_words(report(closed_set=evaluation(GAIN))) == ""

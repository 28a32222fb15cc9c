import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from fgis.report import fonts


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cups/1 a.jpg", "cups/1 a.jpg"),
        ("Äpfel Ωψ Жук", "Äpfel Ωψ Жук"),
        ("e\u0301.jpg", "é.jpg"),  # as some file systems write it
        ("a\nb\x1b[0m", "a\\nb\\x1b[0m"),
        ("bad\udcff.jpg", "bad\\udcff.jpg"),  # an undecodable byte of a file name
    ],
)
def test_text_is_shown_composed_and_without_control_characters(text, shown):
    assert fonts.visible(text) == shown
    assert fonts.choose_font(text, 13)[0] == shown


def test_without_a_font_that_has_them_characters_are_escaped(monkeypatch):
    monkeypatch.setattr(fonts, "_cjk_fonts", lambda: [])
    shown, font = fonts.choose_font("写真 é.jpg", 13)
    assert shown == "\\u5199\\u771f é.jpg"
    assert font.getname()[0] == "DejaVu Sans"


def test_a_font_that_has_every_character_is_preferred(monkeypatch):
    latin = fonts._latin_font()
    serif = latin.replace("DejaVuSans.ttf", "DejaVuSerif.ttf")
    points = {latin: frozenset(map(ord, "ab.jpg")), serif: frozenset(map(ord, "ab.jpgж"))}
    monkeypatch.setattr(fonts, "_cjk_fonts", lambda: [serif])
    monkeypatch.setattr(fonts, "_code_points", points.get)
    assert [fonts.choose_font(text, 13)[1].getname()[0] for text in ("a.jpg", "ж.jpg")] == [
        "DejaVu Sans",
        "DejaVu Serif",
    ]


def test_no_character_is_drawn_as_an_empty_box():
    def draw(text, font):
        image = Image.new("L", (60, 30), 255)
        ImageDraw.Draw(image).text((2, 2), text, 0, font)
        return np.asarray(image)

    box = draw("\U0010fffd", ImageFont.truetype(fonts._latin_font(), 20))
    for character in "éΩЖ":
        shown, font = fonts.choose_font(character, 20)
        assert not np.array_equal(draw(shown, font), box)


def test_usual_characters_are_drawn_without_asking_the_font(monkeypatch):
    assert {ord(character) for character in fonts.ALWAYS} <= fonts._code_points(fonts._latin_font())
    monkeypatch.setattr(fonts, "_code_points", None)
    shown, font = fonts.choose_font("Größe 3 – Ärmel…", 12)
    assert shown == "Größe 3 – Ärmel…"
    assert font.path.endswith("DejaVuSans.ttf")

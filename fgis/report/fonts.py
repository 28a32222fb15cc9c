"""Fonts for pictures with text: no character is drawn as an empty box."""

import importlib.util
import os
import unicodedata
from functools import cache
from pathlib import Path

from PIL import ImageFont

CJK_FONTS = (  # file names of fonts with Chinese, Japanese or Korean characters, of usual systems, by preference
    "NotoSansCJK-Regular.ttc", "NotoSansCJKjp-Regular.otf", "NotoSansCJKsc-Regular.otf", "NotoSansCJKkr-Regular.otf",
    "SourceHanSans-Regular.ttc", "DroidSansFallbackFull.ttf", "DroidSansFallback.ttf", "wqy-microhei.ttc",
    "wqy-zenhei.ttc", "ipaexg.ttf", "ipag.ttf", "NanumGothic.ttf", "uming.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc", "Arial Unicode.ttf", "msyh.ttc", "YuGothM.ttc", "meiryo.ttc", "msgothic.ttc", "malgun.ttf",
    "simsun.ttc",
)  # fmt: skip

# Characters that DejaVu Sans has: ASCII, the Latin letters of Europe, and usual signs.
ALWAYS = frozenset(map(chr, (*range(0x20, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x180)))) | frozenset("–—…×·’“”€")


def visible(text: str, drawable: frozenset[int] | None = None) -> str:
    r"""``text`` in composed form, with the characters that cannot be shown as their escapes.

    Those are control characters, undecodable bytes of file names, and what is not among the code points ``drawable``.

    >>> print(visible("a\nb"), visible("é中", frozenset({233})))
    a\nb é\u4e2d
    """
    return "".join(
        character
        if character.isprintable() and (drawable is None or ord(character) in drawable)
        else character.encode("unicode_escape").decode()
        for character in unicodedata.normalize("NFC", text)
    )


def choose_font(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """``text`` as it can be drawn, and the font to draw it with.

    The font is the first of DejaVu Sans and the installed fonts of ``CJK_FONTS`` that has every character; where none
    has, it is DejaVu Sans, and the characters that it lacks are escaped.
    """
    shown, latin = visible(text), _latin_font()
    if all(character in ALWAYS for character in shown):  # nothing slow is imported to ask the font
        return shown, ImageFont.truetype(latin, size)
    wanted = frozenset(map(ord, shown))
    path = latin
    if not wanted <= _code_points(latin):
        path = next((font for font in _cjk_fonts() if wanted <= _code_points(font)), latin)
    return visible(shown, _code_points(path)), ImageFont.truetype(path, size)


def _latin_font() -> str:
    """The path of the font that matplotlib ships, which is slow to import."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec
    assert spec.origin
    return str(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf")


@cache
def _cjk_fonts() -> list[str]:
    import_matplotlib()
    from matplotlib import font_manager  # importing it lists the fonts of the system: only where one is needed

    installed = {Path(path).name: path for path in sorted(font_manager.findSystemFonts())}
    return [installed[name] for name in CJK_FONTS if name in installed]


@cache
def _code_points(path: str) -> frozenset[int]:
    import_matplotlib()
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(path).get_charmap())


def import_matplotlib() -> None:
    """Imports matplotlib whatever backend the environment names: nothing here draws on a screen.

    A notebook leaves its own backend in ``MPLBACKEND``, which matplotlib refuses to be imported with elsewhere.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib  # noqa: F401
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend

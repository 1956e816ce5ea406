"""Text in old encodings is read as what it is or refused, never taken for another language."""

from __future__ import annotations

from pathlib import Path

import pytest

from yangtuo.data.records import compose, decode, open_text
from yangtuo.errors import FileError

TEXTS = {
    "ko": "겨울이 가고 봄이 오면 산과 들에 꽃이 핀다. 아이들은 강가에서 돌을 던지며 놀고, 어른들은 밭에 씨를 뿌린다.\n",
    "ja": "春になると川の水はあたたかくなり、子どもたちは土手で遊びました。データはサーバーにあります。\n",
    "ru": "Зимой горы белы от снега, а летом поля полны жёлтых цветов. Он никогда не видел такой большой рыбы.\n",
    "uk": "Узимку гори білі від снігу, а влітку поля повні жовтих квітів. Він ніколи не бачив такої великої риби.\n",
    "el": "Το χειμώνα τα βουνά είναι άσπρα από το χιόνι και το καλοκαίρι τα χωράφια είναι γεμάτα λουλούδια. Άνοιξη.\n",
    "he": "בחורף ההרים לבנים משלג ובקיץ השדות מלאים בפרחים צהובים. הוא מעולם לא ראה דג גדול כל כך בכפר.\n",
    "ar": "في الشتاء تكون الجبال بيضاء من الثلج، وفي الصيف تمتلئ الحقول بالزهور الصفراء. لم ير سمكة كبيرة كهذه.\n",
    "th": "ในฤดูหนาวภูเขาเป็นสีขาวด้วยหิมะ และในฤดูร้อนทุ่งนาเต็มไปด้วยดอกไม้สีเหลือง เด็กๆ เล่นริมแม่น้ำ\n",
    "zh": "道可道，非常道。名可名，非常名。无名天地之始，有名万物之母。故常无欲，以观其妙。\n",
}
READ = [
    ("ko", "cp949"),
    ("ko", "euc_kr"),
    ("ja", "euc_jp"),
    ("ja", "shift_jis"),
    ("ja", "iso2022_jp"),
    ("ru", "cp1251"),
    ("ru", "koi8_r"),
    ("ru", "iso8859_5"),
    ("uk", "cp1251"),
    ("uk", "koi8_u"),
    ("el", "iso8859_7"),
    ("el", "cp1253"),
    ("he", "iso8859_8"),
    ("he", "cp1255"),
    ("ar", "cp1256"),
    ("ar", "iso8859_6"),
    ("th", "tis_620"),
    ("zh", "gb18030"),
    ("zh", "gb2312"),
]


@pytest.mark.parametrize(("language", "encoding"), READ)
@pytest.mark.parametrize("count", [1, 40])
def test_what_can_be_told_is_read(language: str, encoding: str, count: int, tmp_path: Path) -> None:
    """Korean in CP949 was read as Chinese without a word, and learned from."""
    text = TEXTS[language] * count
    assert decode(text.encode(encoding), "texts.txt")[0] == text
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    with open_text(tmp_path / "a.txt") as (stream, _):
        assert stream.read() == text


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Im Winter sind die Berge weiß, und im Sommer blühen über tausend Blumen für die Mädchen.\n", "cp1252"),
        ("L’été, les champs sont pleins de fleurs où les élèves jouent à côté de la rivière.\n", "cp1252"),
        ("Kışın dağlar karla beyazdır, yazın tarlalar sarı çiçeklerle doludur.\n", "iso8859_9"),
        ("Zimą góry są białe od śniegu, a latem pola są pełne żółtych kwiatów.\n", "iso8859_2"),
    ],
)
def test_encodings_of_latin_letters_are_not_guessed(text: str, encoding: str) -> None:
    """Each fits the bytes of the others: a guess would put other letters into every third word."""
    with pytest.raises(FileError, match=r"(?s)is not UTF-8 text.*iconv"):
        decode((text * 20).encode(encoding), "texts.txt")


def test_text_is_composed_and_half_surrogates_end_no_run() -> None:
    assert compose("\u1112\u1161\u11ab e\u0301") == "한 é"
    assert compose("a \ud83e b") == "a \ufffd b"
    assert compose("，①ﬁ") == "，①ﬁ"

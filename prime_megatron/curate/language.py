"""The language of a question, by its script and by its commonest words; formulas say nothing."""

from __future__ import annotations

import re
import unicodedata

LANGUAGE = "language"
_SCRIPTS = {
    "HIRAGANA": "ja", "KATAKANA": "ja", "CJK": "zh", "HANGUL": "ko", "CYRILLIC": "ru", "GREEK": "el", "ARABIC": "ar",
    "HEBREW": "he", "DEVANAGARI": "hi", "THAI": "th",
}  # fmt: skip
_COMMON = {
    "en": "the of and is a to in what are how find that for many if with be has on at by as from which each value an "
          "it there can have two all number after his her their when does would will than was were they he she given",
    "fr": "le la les des est un une et que dans pour qui sur par du au aux avec sont ce cette combien soit quelle quel "
          "il elle plus on ne pas tout si nombre valeur trouver",
    "es": "el la los las de que y en un una es por para con del se al son cuántos cuál cual como su si número valor "
          "más hay entre todos sea este esta cuántas",
    "de": "der die das und ist ein eine in den von zu mit dem des wie viele man für auf sich nicht sind im es wenn "
          "welche wird zwei alle zahl sei einer eines",
    "pt": "o a os as de que e em um uma é para com do da dos das se no na são quantos qual como seu por mais ao "
          "número valor não entre todos",
    "it": "il la le gli di che e in un una è per con del della dei si al sono quanti quale come se nel più su da ogni "
          "numero valore trova tra tutti",
    "nl": "de het een van en in is dat op te met voor zijn hoeveel er aan niet ook als bij uit die wordt welke getal",
    "pl": "i w na jest że z do się nie o jak ile to dla od po liczba które jeśli czy oraz przez",
}  # fmt: skip
# A letter alone is a variable as often as a word.
_WORDS = {language: frozenset(word for word in text.split() if len(word) > 1) for language, text in _COMMON.items()}
LANGUAGES = frozenset(_WORDS) | frozenset(_SCRIPTS.values())
_FORMULA = re.compile(r"\$\$.*?\$\$|\$[^$]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\\[a-zA-Z]+|```.*?```", re.DOTALL)
_SHARE = 0.3
"""Letters of a script from which the text is in it: names and units of another alphabet are fewer."""


def language_of(text: str) -> str | None:
    """The language's short name; None: the text does not tell (formulas, a few words)."""
    plain = unicodedata.normalize("NFC", _FORMULA.sub(" ", text)).lower()
    letters = [char for char in plain if char.isalpha()]
    if not letters:
        return None
    scripts: dict[str, int] = {}
    for char in letters:
        if char > "\u024f":
            script = _SCRIPTS.get(unicodedata.name(char, "").split(" ")[0], "")
            scripts[script] = scripts.get(script, 0) + 1
    if scripts.get("ja", 0) and scripts.get("ja", 0) + scripts.get("zh", 0) > _SHARE * len(letters):
        return "ja"
    for script, count in scripts.items():
        if script and count > _SHARE * len(letters):
            return script
    # A word counts once: "4 come, 2 come, 9 come" is no Italian.
    words = set(re.findall(r"[^\W\d_]+", plain))
    counts = {language: len(words & common) for language, common in _WORDS.items()}
    best = max(counts, key=lambda language: (counts[language], language == "en"))
    others = max((count for language, count in counts.items() if language != best), default=0)
    return best if counts[best] >= 2 and counts[best] > others and counts[best] > 0.1 * len(words) else None


def other_language(text: str, wanted: tuple[str, ...]) -> str | None:
    """Why a text is in none of the languages; None: it is in one, or does not tell."""
    found = language_of(text) if wanted else None
    return None if found is None or found in wanted else f"reads as {found}"

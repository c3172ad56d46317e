"""Languages: their codes and names, and detection by py3langid."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

LANGUAGES = {
    "ar": "ara arb arabic العربية",
    "bg": "bul bulgarian български",
    "ca": "cat catalan català",
    "cs": "ces cze czech čeština",
    "da": "dan danish dansk",
    "de": "deu ger german deutsch",
    "el": "ell gre greek ελληνικά",
    "en": "eng english",
    "es": "spa spanish español castellano castilian",
    "et": "est ekk estonian eesti",
    "fa": "fas per pes persian farsi فارسی",
    "fi": "fin finnish suomi",
    "fr": "fra fre french français",
    "he": "heb iw hebrew עברית",
    "hi": "hin hindi हिन्दी",
    "hr": "hrv croatian hrvatski",
    "hu": "hun hungarian magyar",
    "id": "ind in indonesian indonesia",
    "it": "ita italian italiano",
    "ja": "jpn japanese 日本語",
    "ko": "kor korean 한국어",
    "lt": "lit lithuanian lietuvių",
    "lv": "lav lvs latvian latviešu",
    "nl": "nld dut dutch nederlands",
    "no": "nor nob nno nb nn norwegian bokmål nynorsk norsk",
    "pl": "pol polish polski",
    "pt": "por portuguese português",
    "ro": "ron rum romanian română",
    "ru": "rus russian русский",
    "sk": "slk slo slovak slovenčina",
    "sl": "slv slovenian slovene slovenščina",
    "sr": "srp serbian српски srpski",
    "sv": "swe swedish svenska",
    "th": "tha thai ไทย",
    "tr": "tur turkish türkçe",
    "uk": "ukr ukrainian українська",
    "vi": "vie vietnamese việt",
    "zh": "zho chi cmn chinese mandarin 中文 汉语 漢語 普通话",
}
"""The languages that detection tells apart, with what else they are called: ISO 639-3 and 639-2
codes and names. py3langid knows 139; among all of them a short Chinese sentence is often taken for
Wu, and a short European one for Volapuk."""
CODES = {name: code for code, names in LANGUAGES.items() for name in (code, *names.split())}

CERTAIN = 0.5
"""Minimum probability of a detection that counts."""


def language_code(value: str) -> str:
    """The ISO 639-1 code of a language's code, locale or name, as "de" for "deu", "de-AT", "German"
    and "Swiss German"; any other value in lower case, without a region."""
    words = [word for word in re.split(r"[\W_]+", value.lower()) if word]
    known = [CODES[word] for word in words if word in CODES]
    return known[0] if known else words[0] if words else ""


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([*LANGUAGES])
    return identifier


@cache
def detect_language(text: str) -> str | None:
    """Return the ISO 639-1 code of a text's language; None if too little text is there to tell."""
    if sum(character.isalpha() for character in text) < 2:
        return None
    language, probability = _identifier().classify(text)
    return str(language) if probability >= CERTAIN else None

"""Detect the language of a text, by py3langid."""

from __future__ import annotations

from functools import cache
from typing import Any

# fmt: off
LANGUAGES = (
    "ar", "bg", "ca", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "he",
    "hi", "hr", "hu", "id", "it", "ja", "ko", "lt", "lv", "nl", "no", "pl", "pt", "ro",
    "ru", "sk", "sl", "sr", "sv", "th", "tr", "uk", "vi", "zh",
)
# fmt: on
"""The languages told apart. py3langid knows 139; among all of them a short Chinese sentence is
often taken for Wu, and a short European one for Volapuk."""

CERTAIN = 0.5
"""Minimum probability of a detection that counts."""


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(LANGUAGES)
    return identifier


@cache
def detect_language(text: str) -> str | None:
    """Return the ISO 639-1 code of a text's language; None if too little text is there to tell."""
    if sum(character.isalpha() for character in text) < 2:
        return None
    language, probability = _identifier().classify(text)
    return str(language) if probability >= CERTAIN else None

"""What CLDR says, in one language: numbers, units, dates, countries, currencies.

All names and number formats come from Unicode CLDR through Babel, so that no
plural form or separator is written by hand.  Text is normalised to plain spaces,
except the narrow no-break space that French puts between groups of digits.
"""

from datetime import date
from decimal import Decimal
from functools import cache

from babel import Locale
from babel.dates import format_date, format_skeleton
from babel.languages import get_official_languages
from babel.numbers import format_decimal, get_currency_name, get_territory_currencies
from babel.units import format_unit

LANGUAGES = ("en", "ja", "zh", "ko", "es", "fr", "de")

# "Today" for currencies: a fixed day, so that the data never depends on the clock.
REFERENCE_DATE = date(2025, 1, 1)

# French has "en" before feminine names and before vowels, which is the default here.
FRENCH_AU = "BR CA CL CR DK GT HN JP KE KH KW LI MA MX MZ NG NP PE PT QA VN"


@cache
def currency_code(country: str) -> str:
    """The one currency that is legal tender in a country on the reference date."""
    (code,) = get_territory_currencies(country, REFERENCE_DATE, REFERENCE_DATE)
    return str(code)


@cache
def official_language(country: str) -> str | None:
    """The official language of a country, or None unless there is exactly one."""
    languages = get_official_languages(country)
    return languages[0] if len(languages) == 1 else None


class Words:
    """Renders values as words of one language."""

    def __init__(self, language: str) -> None:
        self.language = language
        self.locale = Locale.parse(language)
        # CLDR writes "12 キロメートル"; running Japanese text has no such space.
        self.space = "" if language in ("ja", "zh") else " "

    def plain(self, text: str) -> str:
        return text.replace("\u00a0", " ").replace(" ", self.space)

    def number(self, value: Decimal | int, decimals: int | None = None) -> str:
        pattern = None if decimals is None else f"#,##0.{'0' * decimals}".rstrip(".")
        # CLDR sets minimumGroupingDigits to 2 for Spanish ("3420", "12.500"); Babel ignores it.
        grouped = self.language != "es" or value >= 10_000
        text: str = format_decimal(value, pattern, self.locale, group_separator=grouped)
        return text

    def quantity(self, value: Decimal | int, unit: str) -> str:
        """A number with its unit in the right plural form."""
        # Babel leaves a raw unit id where CLDR's long form only refers to the short one.
        text: str = format_unit(value, unit, "long", locale=self.locale)
        if unit in text:
            text = format_unit(value, unit, "short", locale=self.locale)
        pattern = text.replace(format_decimal(value, locale=self.locale), "{}")
        return self.plain(pattern).format(self.number(value))

    def long_date(self, day: date) -> str:
        return self.plain(format_date(day, "long", locale=self.locale))

    def day_and_month(self, day: date) -> str:
        return self.plain(format_skeleton("MMMMd", day, locale=self.locale))

    def month(self, day: date) -> str:
        pattern = {"ja": "M月", "zh": "M月", "ko": "M월"}.get(self.language, "MMMM")
        text: str = format_date(day, pattern, locale=self.locale)
        return text

    def weekday(self, index: int) -> str:
        """Monday is 0."""
        text: str = format_date(date(2024, 1, 1 + index % 7), "EEEE", locale=self.locale)
        return text

    def country(self, code: str) -> str:
        name: str = self.locale.territories[code]
        return name

    def place(self, code: str) -> str:
        """The country as a place, "in Japan", in the languages that need a preposition."""
        preposition = {"en": "in", "de": "in", "es": "en", "fr": "en"}.get(self.language, "")
        if self.language == "fr" and code in FRENCH_AU.split():
            preposition = "au"
        if self.language == "fr" and code == "OM":
            preposition = "à"
        return f"{preposition} {self.country(code)}".strip()

    def currency(self, code: str) -> str:
        # English names are title case by themselves, and lower case only when counted.
        count = 1 if self.language == "en" else None
        name: str = get_currency_name(code, count, self.locale)
        return name.replace(" ", "・") if self.language == "ja" else name

    def language_name(self, code: str) -> str:
        name: str = self.locale.languages[code]
        return name

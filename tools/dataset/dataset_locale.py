"""What CLDR says, in one language: units, dates, weekdays, countries, currencies.

All these names come from Unicode CLDR through Babel, so that no plural form is written by
hand.  Text is normalised to plain spaces.
"""

from datetime import date
from functools import cache

from babel import Locale
from babel.dates import format_date, format_skeleton
from babel.numbers import get_territory_currencies
from babel.units import format_unit

LANGUAGES = ("en", "ja", "zh", "ko", "es", "fr", "de")

# "Today" for currencies: a fixed day, so that the data never depends on the clock.
REFERENCE_DATE = date(2025, 1, 1)


@cache
def currency_code(country: str) -> str:
    """The one currency that is legal tender in a country on the reference date."""
    (code,) = get_territory_currencies(country, REFERENCE_DATE, REFERENCE_DATE)
    return str(code)


class Words:
    """Renders values as words of one language."""

    def __init__(self, language: str) -> None:
        self.language = language
        self.locale = Locale.parse(language)
        # CLDR writes "12 か月"; running Japanese text has no such space.
        self.space = "" if language in ("ja", "zh") else " "

    def quantity(self, value: int, unit: str) -> str:
        """A number with its unit in the right plural form."""
        # Babel leaves a raw unit id where CLDR's long form only refers to the short one.
        text: str = format_unit(value, unit, "long", locale=self.locale)
        if unit in text:
            text = format_unit(value, unit, "short", locale=self.locale)
        return text.replace("\u00a0", " ").replace(" ", self.space)

    def day_and_month(self, month: int, day: int) -> str:
        text: str = format_skeleton("MMMMd", date(2025, month, day), locale=self.locale)
        return text.replace("\u00a0", " ").replace(" ", self.space)

    def weekday(self, index: int) -> str:
        """Monday is 0."""
        text: str = format_date(date(2024, 1, 1 + index % 7), "EEEE", locale=self.locale)
        return text

    def country(self, code: str) -> str:
        name: str = self.locale.territories[code]
        return name

"""The tags without reasoning, and a system text in the language of the row."""

from collections.abc import Iterable

from fasttune import Row, Segment, Template, given, hookimpl, learn

SYSTEM = {
    "en": "You are a helpful assistant. Answer in English.",
    "ja": "あなたは親切なアシスタントです。日本語で答えてください。",
    "zh": "你是一个乐于助人的助手。请用中文回答。",
    "ko": "당신은 친절한 도우미입니다. 한국어로 답해 주세요.",
    "es": "Eres un asistente servicial. Responde en español.",
    "fr": "Tu es un assistant serviable. Réponds en français.",
    "de": "Du bist ein hilfsbereiter Assistent. Antworte auf Deutsch.",
}

# Frequent short words that the other languages with a Latin script do not have.
WORDS = {
    "es": "el los las una es de del que qué cuál cuántos cuántas cómo dónde por para con y en está",
    "fr": "le les des une est et que quel quelle combien comment où dans pour avec du la sont ce",
    "de": "der die das und ist ein eine wie was welche welcher welches viele nicht mit für auf den",
    "en": "the a an is are what which how of and many to in for with does do from this that write",
}


def detect_language(text: str) -> str:
    """The language of a short text: by script where the script tells, else by its frequent
    words."""
    if any("\u3040" <= char <= "\u30ff" for char in text):
        return "ja"
    if any("\uac00" <= char <= "\ud7a3" for char in text):
        return "ko"
    if any("\u4e00" <= char <= "\u9fff" for char in text):
        return "zh"
    words = "".join(char if char.isalpha() else " " for char in text.lower()).split()
    counts = {code: sum(word in known.split() for word in words) for code, known in WORDS.items()}
    for code, letters in (("es", "¿¡ñ"), ("de", "ßäö"), ("fr", "çêèœ")):
        counts[code] += 2 * sum(char in letters for char in text.lower())
    best = max(counts, key=lambda code: (counts[code], code == "en"))
    return best if counts[best] else "en"


def language_of(row: Row) -> str:
    """The row's own `language` ("pt-BR" counts as "pt"), or what its instruction is written in."""
    code = row.get("language", "").replace("_", "-").partition("-")[0].lower()
    return code or detect_language(row["instruction"])


class Multilingual(Template):
    name = "multilingual"
    description = "system text in the language of the row; the model learns the response"
    tags = ("<|system|>", "<|instruction|>", "<|context|>", "<|response|>")

    def segments(self, row: Row) -> Iterable[Segment]:
        system = row.get("system") or SYSTEM.get(language_of(row), SYSTEM["en"])
        yield given("system", f"<|system|>{system}\n")
        yield given("instruction", f"<|instruction|>{row['instruction']}\n")
        if len(row.get("input", "")) >= 2:
            yield given("context", f"<|context|>{row['input']}\n")
        yield given("response", "<|response|>")
        yield learn("response", row.get("output", ""))


@hookimpl
def register_templates() -> list[Template]:
    return [Multilingual()]

"""The tags without reasoning, and a system text in the language of the row."""

from fasttune import Template, choose, given, hookimpl, learn

SYSTEM = {
    "other": "You are a helpful assistant. Answer in the language of the instruction.",
    "en": "You are a helpful assistant. Answer in English.",
    "ja": "あなたは親切なアシスタントです。日本語で答えてください。",
    "zh": "你是一个乐于助人的助手。请用中文回答。",
    "ko": "당신은 친절한 도우미입니다. 한국어로 답해 주세요.",
    "es": "Eres un asistente servicial. Responde en español.",
    "fr": "Tu es un assistant serviable. Réponds en français.",
    "de": "Du bist ein hilfsbereiter Assistent. Antworte auf Deutsch.",
}

MULTILINGUAL = Template(
    name="multilingual",
    description="system text in the language of the row; the model learns the response",
    system=choose("language", SYSTEM, default="other"),
    parts=[
        given("system", "<|system|>{system}\n"),
        given("instruction", "<|instruction|>{instruction}\n"),
        given("context", "<|context|>{input}\n", when="input", min_length=2),
        given("response", "<|response|>"),
        learn("response", "{output}"),
    ],
)


@hookimpl
def register_templates() -> list[Template]:
    return [MULTILINGUAL]

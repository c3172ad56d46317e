"""The reasoning format with its system text in the language of the row, from the column `language`.

docs/experiment.md compares it with the English system text:

    fasttune compare --plugin examples/own_language.py --templates reasoning,own-language
"""

from fasttune_plugins.reasoning import REASONING

from fasttune import Template, choose, hookimpl

SYSTEM = {
    "de": "Du bist ein Assistent, der viele Sprachen gut kann. Antworte auf Deutsch.",
    "en": "You are an assistant who is good at many languages. Answer in English.",
    "es": "Eres un asistente que domina muchos idiomas. Responde en español.",
    "fr": "Tu es un assistant qui maîtrise de nombreuses langues. Réponds en français.",
    "ja": "あなたは多くの言語が得意なアシスタントです。日本語で答えてください。",
    "ko": "당신은 여러 언어에 능숙한 도우미입니다. 한국어로 대답하세요.",
    "zh": "你是一位精通多种语言的助手。请用中文回答。",
}


@hookimpl
def register_templates() -> list[Template]:
    return [
        Template(
            name="own-language",
            description="the reasoning format, asked for in the row's own language",
            system=choose("language", {**SYSTEM, "": str(REASONING.system)}, default=""),
            parts=REASONING.parts,
        )
    ]

import fasttune_vicuna

from fasttune import Row, check_template

(template,) = fasttune_vicuna.register_templates()
ROW = {"instruction": "Add the numbers.", "input": "2 and 3", "output": "5"}


def test_prompt():
    assert template.prompt(ROW) == f"{template.system} USER: Add the numbers.\n2 and 3 ASSISTANT:"


def test_learns_the_output_alone():
    assert template.render(ROW) == template.prompt(ROW) + " 5"
    assert template.parse(" 5") == {"response": "5"}


def test_a_conversation():
    greeting = [{"instruction": "Hi.", "output": "Hello."}]
    assert template.prompt(Row.of({**ROW, "system": "Talk."}, greeting)) == (
        "Talk. USER: Hi. ASSISTANT: Hello.USER: Add the numbers.\n2 and 3 ASSISTANT:"
    )


def test_contract():
    assert [result for result in check_template(template) if result.status != "ok"] == []

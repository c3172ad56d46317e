import fasttune_chatml

from fasttune import check_template

(template,) = fasttune_chatml.register_templates()
ROW = {"instruction": "Add the numbers.", "input": "2 and 3", "output": "5"}


def test_prompt():
    assert template.prompt(ROW) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nAdd the numbers.\n\n2 and 3<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_learns_the_output_alone():
    assert template.render(ROW) == template.prompt(ROW) + "5"


def test_system_text_can_be_replaced():
    assert "<|im_start|>system\nBe brief.<|im_end|>\n" in template.prompt(
        ROW | {"system": "Be brief."}
    )


def test_contract():
    assert [result for result in check_template(template) if result.status != "ok"] == []

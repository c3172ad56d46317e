"""What libraries print is kept, and what they keep of the terminal still works afterwards."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from fasttune.terminal import library_prints, quiet


def test_what_is_printed_inside_is_kept_from_the_terminal(capfd):
    with quiet():
        print("noise")
        print("noise", file=sys.stderr)
        print("no end of line", end="")
        print("no end of line", end="", file=sys.stderr)
        os.write(1, b"compiled noise\n")
        os.write(2, b"compiled noise\n")
    print("after")
    assert capfd.readouterr() == ("after\n", "")


def test_a_block_that_fails_tells_what_it_kept(capfd):
    with pytest.raises(ZeroDivisionError), quiet():
        print("the last words", end="")
        os.write(2, b"of compiled code\n")
        1 / 0  # noqa: B018
    out, err = capfd.readouterr()
    assert out == "" and "the last words" in err and "of compiled code" in err


def test_a_log_handler_made_inside_logs_after_it(capfd):
    logger = logging.Logger("a library's")
    with quiet():
        logger.addHandler(logging.StreamHandler())  # takes the sys.stderr that it finds
        logger.warning("loading")
    logger.warning("a word later on")
    assert capfd.readouterr() == ("", "a word later on\n")
    with quiet():
        logger.warning("loading again")
    assert capfd.readouterr() == ("", "")


def test_a_letter_that_the_terminal_lacks_is_no_error():
    code = "from fasttune.terminal import quiet\nwith quiet(): print('\\N{SLOTH}')\nprint('after')"
    ascii_only = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | ascii_only
    )
    assert (done.stdout, done.stderr) == ("after\n", "")


def test_standard_output_stays_the_commands_own(capfd, caplog, monkeypatch):
    # Without the handler that a command of an earlier test has put up.
    monkeypatch.setattr(logging.getLogger("fasttune"), "handlers", [])
    monkeypatch.setattr(logging.getLogger("fasttune"), "propagate", True)
    with caplog.at_level(logging.DEBUG, "fasttune"), library_prints():
        print("Unsloth: Will smartly offload gradients to save VRAM!")
        print("Unsloth: block compile failed\nand half a line of a callback", end="")
    print("after")
    told = "Unsloth: block compile failed\nand half a line of a callback\n"
    assert capfd.readouterr() == ("after\n", told)
    assert caplog.messages == ["Unsloth: Will smartly offload gradients to save VRAM!"]

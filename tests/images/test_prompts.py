"""Prompts: the grammar, the user's file."""

import pytest

from diffcompress.errors import UsageError
from diffcompress.images import prompts
from diffcompress.runtime import Progress


def test_the_grammar_gives_thousands_of_different_prompts_that_follow_from_their_number():
    many = prompts.grammar(4000)
    assert len(set(many)) == 4000
    assert prompts.grammar(50) == many[:50]
    words = {word for prompt in many for word in prompt.split()}
    assert len(words) > 200
    assert not any("{" in prompt or "  " in prompt or not prompt.strip() for prompt in many)


def test_a_prompts_file_has_one_a_line(tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("a cat\n\n  ein Bär \na cat\n", encoding="utf-8")
    assert prompts.read(file) == ["a cat", "ein Bär"]


@pytest.mark.parametrize(("content", "words"), [(b"\n \n", "holds no prompt"), (b"caf\xe9", "not UTF-8")])
def test_a_bad_prompts_file_is_refused(tmp_path, content, words):
    file = tmp_path / "p.txt"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        prompts.read(file)
    with pytest.raises(UsageError, match="cannot read"):
        prompts.read(tmp_path / "nowhere.txt")


def test_a_prompt_that_would_end_the_process_is_refused_and_equal_ones_are_told(tmp_path):
    file, notes, progress = tmp_path / "p.txt", [], Progress()
    progress.note = notes.append
    file.write_text("a cat\na dog\na cat \n")
    assert prompts.read(file, progress) == ["a cat", "a dog"]
    assert notes == [f"2 of the 3 prompts in '{file}' are different, and each counts once"]
    file.write_text("a cat\n" + "x" * 1_000_000)
    with pytest.raises(UsageError, match=r"line 2 of .* holds a text of 1,000,000 characters"):
        prompts.read(file)


def test_prompts_end_with_their_line_and_begin_after_a_byte_order_mark(tmp_path):
    file = tmp_path / "p.txt"
    file.write_bytes("\ufeffa cat\r\nan owl\u2028in fog\r\n".encode())
    assert prompts.read(file) == ["a cat", "an owl\u2028in fog"]

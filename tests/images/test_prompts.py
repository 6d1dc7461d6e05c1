"""Prompts: the grammar, the user's file."""

import os
import re
import shutil
import threading
from pathlib import Path

import pytest

from diffcompress import inputs
from diffcompress.errors import UsageError
from diffcompress.images import grammar, prompts
from diffcompress.sources.resolve import resolve
from tests.images.notes import Notes


def test_the_grammar_gives_tens_of_thousands_of_different_prompts():
    many = grammar.grammar(20_000)
    assert len(set(many)) == 20_000
    assert grammar.grammar(50) == many[:50] != grammar.grammar(50, seed=1)
    assert len({word for prompt in many for word in re.findall(r"\w+", prompt)}) > 1000
    odd = re.compile(r"[{};]|  | ,|,$|^$|\b[Aa] [aeio]|\ban [^aeiou]")
    assert [prompt for prompt in many if odd.search(prompt)] == []


def test_every_rule_of_the_grammar_is_used_and_there():
    asked = {name for text in grammar.RULES.values() for name in re.findall(r"{(\w+)}", text)}
    assert asked | {"prompt"} == set(grammar.RULES)


@pytest.mark.parametrize(
    ("noun", "many"),
    [("young woman", "young women"), ("box", "boxes"), ("puppy", "puppies"), ("boy", "boys"), ("knife", "knives")],
)
def test_plurals(noun, many):
    assert grammar.plural(noun) == many


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
    file, progress = tmp_path / "p.txt", Notes()
    notes = progress.notes
    file.write_text("a cat\na dog\na cat \n")
    assert prompts.read(file, progress) == ["a cat", "a dog"]
    assert notes == [f"2 of the 3 prompts in '{file}' are different, and each counts once"]
    file.write_text("a cat\n" + "x" * 1_000_000)
    with pytest.raises(UsageError, match=r"line 2 of .* holds a text of 1,000,000 characters"):
        prompts.read(file)


def test_a_file_of_that_name_beside_a_teacher_is_not_taken_for_its_prompts(tmp_path):
    """A demo, and a student of one, bring theirs along."""
    progress = Notes()
    notes = progress.notes
    demo = resolve("demo:mmdit")
    assert len(prompts.default_for(demo, 5, progress)) > 100 and notes == []
    teacher = shutil.copytree(demo.pipeline, tmp_path / "teacher")
    assert prompts.default_for(resolve(str(teacher)), 5, progress) == grammar.grammar(5)
    assert notes == [
        f"{teacher / 'prompts.txt'} is not taken for the teacher's prompts: name it with --prompts if it is meant"
    ]
    (teacher / "diffcompress.json").write_text("{}")
    assert len(prompts.default_for(resolve(str(teacher)), 5)) > 100
    (tmp_path / "mine.txt").write_text("a secret")
    (teacher / "prompts.txt").unlink()
    (teacher / "prompts.txt").symlink_to(tmp_path / "mine.txt")
    assert prompts.default_for(resolve(str(teacher)), 5) == grammar.grammar(5)


def test_prompts_that_students_are_judged_by_are_taught_by_no_recipe(tmp_path):
    demo = resolve("demo:mmdit")
    assert prompts.held_out_for(demo, ["a shirt"]) == []
    teacher = resolve(str(shutil.copytree(demo.pipeline, tmp_path / "teacher")))
    found = prompts.held_out_for(teacher, prompts.default_for(teacher, 100))
    assert len(found) == len(set(found)) == prompts.NUM_HELD_OUT
    assert not set(found) & set(grammar.grammar(prompts.MOST_TAUGHT))
    more = prompts.held_out_for(teacher, [*grammar.grammar(5), found[0]])
    assert more[:-1] == found[1:] and found[0] not in more


def test_a_pipe_is_read_and_not_waited_for_without_end(tmp_path, monkeypatch):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setattr(inputs, "PIPE_SECONDS", 0.1)
    with pytest.raises(UsageError, match="nothing came through it"):
        prompts.read(pipe)
    monkeypatch.setattr(inputs, "PIPE_SECONDS", 30.0)
    writer = threading.Thread(target=lambda: pipe.write_text("a cat\na dog\n"))
    writer.start()
    assert prompts.read(pipe) == ["a cat", "a dog"]
    writer.join()
    with pytest.raises(UsageError, match="it is a folder"):
        prompts.read(tmp_path)
    with pytest.raises(UsageError, match="no regular file"):
        prompts.read(Path("/dev/zero"))


def test_prompts_end_with_their_line_and_begin_after_a_byte_order_mark(tmp_path):
    file = tmp_path / "p.txt"
    file.write_bytes("\ufeffa cat\r\nan owl\u2028in fog\r\n".encode())
    assert prompts.read(file) == ["a cat", "an owl\u2028in fog"]

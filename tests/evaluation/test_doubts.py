"""When a result looks too good to be true."""

from __future__ import annotations

from diffcompress.evaluation.doubts import beats_teacher
from tests.evaluation.records import measured, metrics, value


def metric(number, teacher, better="lower", spread=0.1):
    theirs = value(teacher, teacher - spread, teacher + spread)
    return measured(number, number - spread, number + spread, better=better, teacher=theirs)


def test_a_student_that_beats_its_teacher_is_told():
    told = beats_teacher(
        metrics(
            params=metric(1.0, 9.0),
            fd_demo=metric(1.95, 2.0),
            kd_demo=metric(0.3, 0.2),
            fd_demo_held_out=metric(1.0, 2.0),
            fd_demo_corrected=metric(1.0, 2.0),
            coverage_demo=metric(0.95, 0.9, "higher"),
            precision_demo=metric(0.95, 0.6, "higher"),
            failed_samples=metric(0.0, 0.001),
            fd_teacher_demo=measured(1.0, 0.9, 1.1),
        )
    )
    assert [text.split(" in ")[1].split(":")[0] for text in told] == ["fd_demo", "precision_demo"]


def test_the_teacher_itself_is_no_wonder():
    assert beats_teacher(metrics(fd_demo=metric(2.0, 2.0), coverage_demo=metric(0.9, 0.9, "higher"))) == []

from __future__ import annotations

import io

from export.progress import stream_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_stream_progress__a_file_gets_a_line_at_the_start_now_and_then_and_at_the_end() -> None:
    out, clock = io.StringIO(), Clock()
    show = stream_progress(out, every_s=30, clock=clock)
    for second in range(91):
        clock.now_s = second
        show("compiling", second, 90)
    assert out.getvalue().splitlines() == [
        "compiling ...",
        "compiling: 33 %, 0:30",
        "compiling: 67 %, 1:00",
        "compiling: done after 1:30",
    ]


def test_stream_progress__unknown_total_shows_time_alone() -> None:
    out, clock = io.StringIO(), Clock()
    show = stream_progress(out, every_s=30, clock=clock)
    show("waiting", 0, None)
    clock.now_s = 31
    show("waiting", 0, None)
    assert out.getvalue().splitlines() == ["waiting ...", "waiting: 0:31"]


def test_stream_progress__a_terminal_gets_one_line_drawn_over() -> None:
    out, clock = Terminal(), Clock()
    show = stream_progress(out, clock=clock)
    for step in range(101):
        clock.now_s = step / 4
        show("compiling", step, 100)
    text = out.getvalue()
    assert text.count("\n") == 1 and text.endswith("100 %  0:25\n")
    assert "compiling  " + "█" * 14 + "░" * 14 + "  50 %  0:12" in text


def test_stream_progress__a_terminal_is_not_drawn_more_often_than_it_can_be_read() -> None:
    out, clock = Terminal(), Clock()
    show = stream_progress(out, clock=clock)
    for step in range(1000):
        clock.now_s = 5 + step / 1000
        show("hashing", step, 10_000)
    assert out.getvalue().count("\r") <= 11

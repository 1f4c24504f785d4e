"""Progress: a bar on a terminal, few plain lines elsewhere, nothing when it is turned off."""

import io

from genmodel.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_elsewhere():
    stream = io.StringIO()
    with Progress("work", 1000, stream=stream) as shown:
        for done in range(1001):
            shown.update(done, "3 broken" if done == 1000 else "")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2  # the beginning and the end: nothing took ten seconds
    assert lines[0].startswith("work    0%  0 / 1,000  0:00")
    assert lines[1].startswith("work  100%  1,000 / 1,000")
    assert lines[1].endswith("3 broken")


def test_a_bar_on_a_terminal():
    stream = Terminal()
    with Progress("work", 4, stream=stream) as shown:
        shown.update(0)
        shown.update(4)
    assert f"[{'=' * 24}] 100%" in stream.getvalue()
    assert stream.getvalue().endswith("\n")


def test_silence_and_closed_streams():
    stream = io.StringIO()
    with Progress("work", 4, enabled=False, stream=stream) as shown:
        shown.update(4)
    assert stream.getvalue() == ""
    with Progress("work", 4, stream=stream) as shown:
        stream.close()
        shown.update(4)

"""What a person sees: plain lines without a terminal, a bar with rate and loss on one; signals become wishes."""

import io
import signal
import threading

import pytest
from rich.console import Console

from jaxbig.progress import Report, Stop, line_of, stop_on_signals


def shown(terminal):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=40 if not terminal else 120)
    with Report(10, 5, console) as report:
        report.advance(2, 64, 0.25)
        report.line("epoch 1/2  loss 0.250 [not markup] " + "x" * 80)
    return text.getvalue()


def test_without_a_terminal_there_are_plain_unwrapped_lines_and_nothing_else():
    assert shown(False) == "epoch 1/2  loss 0.250 [not markup] " + "x" * 80 + "\n"


def test_a_terminal_shows_a_bar_with_what_is_done_and_the_loss():
    text = shown(True)
    assert "7/10" in text
    assert "0.25" in text
    assert "\x1b[" in text


def test_quiet_is_quiet(capsys):
    with Report(10, quiet=True) as report:
        report.advance(1, 1, 1.0)
        report.line("words")
    assert capsys.readouterr().out == ""


def test_the_line_of_an_epoch_holds_every_metric_in_few_digits():
    line = {"epoch": 1, "step": 5, "loss": 0.0, "accuracy": 1.0, "val_loss": 1e-5, "tiny": 123456.0, "save_wait": 0.5}
    assert line_of(line, 2, 10) == "epoch 1/2  loss 0.000 accuracy 1.000 tiny 1.23e+05  val_loss 1e-05"
    assert line_of(line | {"epoch": 1.4, "step": 7}, 2, 10).startswith("step 7/10  loss 0.000")
    rates = [line_of(line | {"examples_per_second": rate, "data_wait": 0.0}, 2, 10) for rate in (0.0423, 9.5, 2310.4)]
    assert [told.split("  ")[-1].split(",")[0] for told in rates[:2]] == ["0.042 examples/s", "9.5 examples/s"]
    assert "2,310 examples/s" in rates[2]


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_the_first_signal_is_a_wish_and_the_handlers_come_back(number, ends):
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert stop.signal is None
        signal.raise_signal(number)
        assert stop.signal == number
        assert signal.getsignal(number) == before
    assert signal.getsignal(number) == before
    with pytest.raises(ends):
        stop.leave()


def test_other_threads_leave_signals_alone():
    seen: list[Stop] = []

    def run():
        with stop_on_signals() as stop:
            seen.append(stop)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen[0].signal is None

"""A site's own log of errors: a refusal in its sentence, everything else with its trace."""

from lepton_client.traces import keep_trace
from lepton_common.errors import ConsentRefused, PrivateWorkFailed


def kept(folder, fail):
    try:
        fail()
    except Exception as error:
        keep_trace(folder, error)
    return (folder / "errors.log").read_text().splitlines()[1:]


def test_a_refusal_is_one_line_with_its_sentence(tmp_path):
    def refuse():
        raise ConsentRefused("Not here.")

    sentence, place = kept(tmp_path, refuse)
    assert sentence == "lepton_common.errors.ConsentRefused: Not here."
    assert place.startswith("  at test_traces.py:")


def test_a_stranger_whom_a_refusal_quotes_writes_no_line_and_steers_no_terminal(tmp_path):
    def refuse():
        raise ConsentRefused("No \x1b[31m\n2026-01-01T00:00:00+0000\nForged \ud800")

    sentence, _ = kept(tmp_path, refuse)
    assert sentence.endswith("ConsentRefused: No [31m2026-01-01T00:00:00+0000Forged ")


def test_what_nobody_foresaw_has_its_trace(tmp_path):
    lines = kept(tmp_path, lambda: 1 // 0)
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "ZeroDivisionError: integer division or modulo by zero"


def test_a_name_that_was_given_to_another_error_has_that_one_s_trace(tmp_path):
    def fail():
        try:
            raise OSError("disk on fire")
        except OSError as error:
            raise PrivateWorkFailed("It failed.") from error

    lines = kept(tmp_path, fail)
    assert "OSError: disk on fire" in lines
    assert lines[-1] == "lepton_common.errors.PrivateWorkFailed: It failed."

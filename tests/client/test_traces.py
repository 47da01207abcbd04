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

    assert kept(tmp_path, refuse) == ["lepton_common.errors.ConsentRefused: Not here."]


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

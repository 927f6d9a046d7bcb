import subprocess
import sys

import pytest

from pipeline.errors import InputError
from serving.settings import Settings, read_settings
from tests.serving.made import ROOT, environment


def test_every_setting_has_a_default_that_runs() -> None:
    assert read_settings({"PATH": "/bin"}) == Settings()


def test_settings_are_read_from_variables_with_the_prefix() -> None:
    settings = read_settings({"SERVING_PORT": "9000", "SERVING_INSPECTED": "0", "SERVING_READ_TIMEOUT_S": "2.5"})
    assert (settings.port, settings.inspected, settings.read_timeout_s) == (9000, False, 2.5)


def test_an_unknown_setting_is_refused_by_name_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"SERVING_PROT: no such setting; the settings are SERVING_MODEL_DIR, .*_PORT"):
        read_settings({"SERVING_PROT": "9000"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SERVING_PORT", "many"),
        ("SERVING_PORT", "70000"),
        ("SERVING_INSPECTED", "perhaps"),
        ("SERVING_MAX_ROWS", "0"),
        ("SERVING_MAX_BODY_BYTES", "-1"),
        ("SERVING_READ_TIMEOUT_S", "0"),
        ("SERVING_MODEL_HASH", "abc"),
        ("SERVING_MODEL_VERSION", "a b"),
    ],
)
def test_a_wrong_value_is_refused_with_name_value_and_what_was_expected(name: str, value: str) -> None:
    with pytest.raises(InputError, match=rf"{name} \(.+\): .+should.+, got '{value}'"):
        read_settings({name: value})


def test_a_wrong_setting_ends_the_start_with_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "serving"],
        cwd=ROOT,
        env=environment(SERVING_CANARY="5"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("serving: SERVING_CANARY: no such setting")
    assert done.stderr.count("\n") == 1

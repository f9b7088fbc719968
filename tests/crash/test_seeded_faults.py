"""The list of seeded faults is one of faults that can be put into the program as it stands."""

import pytest

from .seeded_faults import FAULTS, ROOT, place_of

FOLDERS = sorted(path.parent.name for path in (ROOT / "sat").glob("*/__init__.py"))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_text_stands_once_and_its_tests_are_there(fault):
    place = place_of(fault)
    text = place.read_text()
    compile(text.replace(fault.old, fault.new), str(place), "exec")
    for word in fault.tests.split():
        assert not word.startswith("tests/") or (ROOT / word).is_file(), word


def test_there_are_enough_of_each_kind():
    assert len(FAULTS) >= 40 and len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert sum(fault.history is not None for fault in FAULTS) >= 20
    for folder in FOLDERS:
        assert sum(fault.folder == folder for fault in FAULTS) >= 2, folder

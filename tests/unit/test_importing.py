"""Reading what `-X importtime` prints."""

from runtimes.declaration import ImportedModule
from runtimes.python.importing import _BEGIN, read

PRINTED = f"""\
import time: self [us] | cumulative | imported package
import time:       100 |        100 | json
{_BEGIN}
import time:      2500 |       2500 |   slow.part
import time:       500 |       3000 | slow
something that the function printed
import time: or what it likes to print
""".splitlines()


def test_modules_are_read_with_depth_and_cost():
    assert read(PRINTED) == (ImportedModule("slow.part", 1, 2.5, 2.5), ImportedModule("slow", 0, 0.5, 3.0))


def test_what_the_runtime_has_loaded_ahead_is_left_out():
    assert "json" not in {each.name for each in read(PRINTED)}

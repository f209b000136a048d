"""Run a script that is killed (SIGKILL) just before its N-th change to a file of the working folder.

    python killed.py N SCRIPT [FLAG ...]

Opening a file to write, renaming and removing count. At its end a script that was not killed prints
"changes: COUNT".
"""

import os
import runpy
import signal
import sys


def main():
    stop, script = int(sys.argv[1]), sys.argv[2]
    here, changes = os.getcwd() + os.sep, 0

    def watch(event, arguments):
        nonlocal changes
        if event == "open" and not (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")):
            return
        if event not in ("open", "os.rename", "os.remove") or isinstance(arguments[0], int):
            return
        if os.path.abspath(os.fsdecode(arguments[0])).startswith(here):
            changes += 1
            if changes == stop:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    sys.argv = sys.argv[2:]
    sys.path.insert(0, os.path.dirname(script))
    runpy.run_path(script, run_name="__main__")
    print("changes:", changes)


if __name__ == "__main__":
    main()

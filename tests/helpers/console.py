"Console scripts in the process of the test."
import runpy, sys
from pathlib import Path
import pytest


def run_console(capfd, module, name, *args): # exit code, standard output, standard error
    "Run the console script `name` as pip would install it, in the present folder."
    Path(name).write_text(f"from {module} import {name}\n{name}()\n")
    capfd.readouterr()
    with pytest.MonkeyPatch.context() as mp:
        mp.setattr(sys, "argv", [name, *map(str, args)])
        try: runpy.run_path(name, run_name="__main__"); code = 0
        except SystemExit as e: code = e.code or 0
    return code, *capfd.readouterr()

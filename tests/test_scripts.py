"""The scripts as a user calls them: processes of their own."""

import importlib
import os
import re
import shlex
import subprocess
import sys
import time

import pytest
from conftest import ROOT

SCRIPTS = sorted(path.name for path in ROOT.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


def run(*command, cwd):
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    script, *arguments = map(str, command)
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_commands_in_the_documents_parse():
    text = "".join(path.read_text("utf-8") for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")])
    commands = re.findall(r"python (\w+)\.py([^\n`#']*)", text.replace("$SLURM_ARRAY_TASK_ID", "1"))
    commands = [(name, flags) for name, flags in commands if f"{name}.py" in SCRIPTS]
    assert len(commands) > 30
    for name, flags in commands:  # $W stands for two flags; aligned notes follow two spaces
        flags = flags.replace("$W", "--weights W --precision bfloat16").split("  ")[0].split("...")[0]
        importlib.import_module(name).parse_args(shlex.split(flags))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_nothing_heavy(script, tmp_path):
    start = time.perf_counter()
    done = run(script, "--help", cwd=tmp_path)
    assert time.perf_counter() - start < 5  # a heavy import takes longer; it is a fraction of a second
    assert done.returncode == 0
    assert "--data DIR" in done.stdout
    code = "import os, sys, runpy\nsys.argv = [sys.argv[1], '--help']\n"
    code += "sys.path.insert(0, os.path.dirname(sys.argv[0]))\n"
    code += "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    code += "except SystemExit: print([m for m in ('keras', 'tensorflow', 'sklearn', 'matplotlib')"
    code += " if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / script)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.endswith("[]\n"), done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("finetune.py", "--data", "data/mame"),  # named, so not replaced by the demo
        ("finetune.py", "--head", "iv"),
        ("finetune.py", "--learning-rate", "-1"),
        ("finetune.py", "--augment", "--final-augment"),
        ("random_forest.py", "--data", "nowhere"),
        ("random_forest.py", "--trees", "0"),
        ("extract_features.py", "--splits", "validation"),
        ("test_model.py", "--run", "nowhere", "--data", "nowhere"),
        pytest.param(
            ("get_data.py", "mame", "--url", "http://127.0.0.1:9", "--data", "here"), marks=pytest.mark.slow
        ),
        ("get_data.py", "everything"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(command, tmp_path):
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr.splitlines()[-1]
    assert not (tmp_path / "runs").exists()

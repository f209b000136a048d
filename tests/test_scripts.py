"""The scripts as a user calls them: processes of their own."""

import importlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
from conftest import ROOT

import finetune
import random_forest
from transfer import recipes, study, train

SCRIPTS = sorted(
    path.name for path in ROOT.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")
)


def run(*command, cwd, **more):
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **more}
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
    text = "".join(
        path.read_text("utf-8") for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    )
    commands = re.findall(r"python (\w+)\.py([^\n`#']*)", text.replace("$SLURM_ARRAY_TASK_ID", "1"))
    commands = [(name, given) for name, given in commands if f"{name}.py" in SCRIPTS]
    assert len(commands) > 30
    for name, given in commands:  # $W stands for two flags; aligned notes follow two spaces
        given = (
            given.replace("$W", "--weights W --precision bfloat16").split("  ")[0].split("...")[0]
        )
        importlib.import_module(name).parse_args(shlex.split(given))


def test_the_commands_in_the_documents_are_the_rows_that_they_stand_in():
    text = "".join((ROOT / name).read_text("utf-8") for name in ("README.md", "docs/study.md"))
    script, checked = None, 0
    for line in text.splitlines():
        header = re.search(r"\| command: `python (\w+)\.py` \|$", line)
        row = re.search(r"\| `(?:python (\w+)\.py )?(--[^`]*)` \|$", line)
        script = header[1] if header else script
        if not row:
            continue
        module = importlib.import_module(row[1] or script)
        args, numbers = module.parse_args(shlex.split(row[2])), re.findall(r"\d+(?:\.\d+)?", line)
        if module is finetune:
            whole = len(train.plan_stages(args))
            found = [
                r["figures"][3] for last, r in study.fine_tuning_rows(vars(args)) if last == whole
            ]
        else:
            [((layers, discretized), settings)] = random_forest.plan_settings(args).items()
            own = {"layers": layers, "discretize": discretized, **settings[0]}
            found = [r["val_accuracy"] for r in study.forest_rows(args.weights is None, own)]
        assert set(found) & set(map(float, numbers)), line
        checked += 1
    of_readme, of_one_command_twice = 4, 1
    rows = len(study.FINE_TUNING_ROWS) + len(study.FOREST_ROWS)
    assert checked == of_readme + rows - of_one_command_twice


def test_the_strong_recipe_is_what_the_documents_say():
    better = " ".join((ROOT / "docs" / "better.md").read_text("utf-8").split())
    for epochs, rate in (
        ("epochs", "learning_rate"),
        ("fine_tune_epochs", "fine_tune_learning_rate"),
    ):
        said = f"{recipes.STRONG[epochs]} epochs at {recipes.STRONG[rate]:.0e}".replace("e-0", "e-")
        assert said in better


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_nothing_heavy(script, tmp_path):
    start = time.perf_counter()
    done = run(script, "--help", cwd=tmp_path)
    assert (
        time.perf_counter() - start < 5
    )  # a heavy import takes longer; it is a fraction of a second
    assert done.returncode == 0
    assert "--data DIR" in done.stdout
    code = "import os, sys, runpy\nsys.argv = [sys.argv[1], '--help']\n"
    code += "sys.path.insert(0, os.path.dirname(sys.argv[0]))\n"
    code += "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    code += "except SystemExit: print([m for m in ('keras', 'tensorflow', 'sklearn', 'matplotlib')"
    code += " if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
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
        ("extract_features.py", "--part", "3/2"),
        ("test_model.py", "--run", "nowhere", "--data", "nowhere"),
        pytest.param(
            ("get_data.py", "mame", "--url", "http://127.0.0.1:9", "--data", "here"),
            marks=pytest.mark.slow,
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


@pytest.mark.parametrize(
    ("backend", "reason"), [("torch", "No module named 'torch'"), ("jaxx", "jaxx")]
)
@pytest.mark.parametrize("script", ["extract_features.py", "test_model.py"])
def test_a_backend_that_is_not_there_is_named(script, backend, reason, tmp_path):
    if backend == "torch" and find_spec("torch"):
        pytest.skip("torch is installed")
    done = run(script, cwd=tmp_path, KERAS_BACKEND=backend)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        f"Keras cannot be loaded ({reason}" in done.stderr or reason in done.stderr.splitlines()[-1]
    )
    assert "set KERAS_BACKEND to tensorflow, jax or torch" in done.stderr


@pytest.mark.slow
def test_output_of_another_encoding_and_a_reader_that_has_enough(tiny, tmp_path):
    for label in ("\u91d1\u5c5e", "wood"):
        shutil.copytree(tiny / "data_256", tmp_path / "own" / label)
    flags = ("--image-size", "32", "--weights", "none", "--layers", "block1_conv1", "--trees", "2")
    command = ("random_forest.py", "--data", "own", *flags)
    done = run(*command, cwd=tmp_path, PYTHONIOENCODING="cp1252")
    assert done.returncode == 0, done.stderr
    done = run("test_model.py", cwd=tmp_path, PYTHONIOENCODING="cp1252")
    assert done.returncode == 0 and "\\u91d1\\u5c5e" in done.stdout
    command = " ".join([sys.executable, str(ROOT / command[0]), *command[1:]])
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -2; exit ${{PIPESTATUS[0]}}"],
        cwd=tmp_path,
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.slow
def test_control_c_while_keras_is_imported_says_so(tmp_path):
    def heed_control_c():  # a shell has what it runs in the background ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    command = [sys.executable, str(ROOT / "test_model.py")]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed_control_c
    )
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (
        130,
        "\ntest_model.py: interrupted; run the same command again to resume.\n",
    )

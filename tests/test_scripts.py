"""The scripts as a user calls them."""

import importlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec

import pytest
from conftest import ROOT

from transfer.console import BadInput
from transfer.recipes import STRONG

SCRIPTS = sorted(
    path.stem for path in ROOT.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")
)
HELP_OF_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name).parse_args(["--help"])
    except SystemExit as end:
        heavy = {"keras", "tensorflow", "sklearn", "matplotlib"} & set(sys.modules)
        print("ended", name, end.code, sorted(heavy))
"""
REFUSED = [
    ("finetune --head iv", "invalid choice"),
    ("finetune --learning-rate -1", "number above 0"),
    ("finetune --epochs 1e999", "integer of 1 or more"),
    ("finetune --seed " + "9" * 30, "integer of 0 or more"),
    ("finetune --data data/mame", "data/mame"),  # named, so not replaced by the demo
    ("random_forest --data nowhere", "nowhere"),
    ("random_forest --trees 0", "integer of 1 or more"),
    ("random_forest --alpha 3", "--alpha is for --classifier linear"),
    ("random_forest --classifier linear --trees 5", "--trees is for --classifier forest"),
    ("random_forest --classifier linear --leaf 5", "--leaf is for --classifier forest"),
    ("random_forest --classifier linear --discretize", "--discretize is for --classifier forest"),
    ("extract_features --part 3/2", "invalid"),
    ("extract_features --part 1", "invalid"),
    ("train_pretrained --top i", "invalid choice"),
    ("test_model --run nowhere --data nowhere", "nowhere"),
    ("test_model --accept 95", "between 0 and 1"),
    ("test_model --predict a --compare x y", "not allowed with"),
    ("rerun_study --processes", "unrecognized"),
    ("rerun_study --seed 3", "unrecognized"),  # and not short for --seeds
    ("get_data --nothing", "unrecognized"),
]


def run(*command, cwd, **environment):
    """A script in a process of its own."""
    script, *arguments = map(str, command)
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def assert_refused(done, message):
    """One sentence with `message`, status 2, no traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert "error: " in last and message in last


def test_the_commands_in_the_documents_parse():
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    text = "".join(page.read_text("utf-8") for page in pages)
    text = text.replace("$SLURM_ARRAY_TASK_ID", "1")
    text = text.replace("$W", "--weights W --precision bfloat16")
    # aligned notes follow two spaces
    commands = re.findall(rf"python ({'|'.join(SCRIPTS)})\.py(.*?)(?=  |\.\.\.|[\n`#'])", text)
    assert len(commands) > 20
    for name, given in commands:
        importlib.import_module(name).parse_args(shlex.split(given))


def test_the_strong_recipe_is_what_the_documents_say():
    better = " ".join((ROOT / "docs" / "better.md").read_text("utf-8").split())
    for stage in ("", "fine_tune_"):
        epochs, rate = STRONG[f"{stage}epochs"], STRONG[f"{stage}learning_rate"]
        assert f"{epochs} epochs at {rate:.0e}".replace("e-0", "e-") in better


def test_help_imports_nothing_heavy(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HELP_OF_ALL, *SCRIPTS],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    for name in SCRIPTS:
        assert f"\nended {name} 0 []\n" in done.stdout, done.stderr
    assert done.stdout.count("--data DIR") >= len(SCRIPTS)


@pytest.mark.parametrize(("command", "message"), REFUSED)
def test_bad_input_is_refused(command, message, workdir, script, capsys):
    with pytest.raises((BadInput, SystemExit)) as refused:
        script(*command.split())
    assert message in f"{refused.value} {capsys.readouterr().err}"
    assert not (workdir / "runs").exists()


@pytest.mark.parametrize("flags", [("--head", "iv"), ("--augment", "--final-augment")])
def test_bad_input_is_one_sentence_and_status_2(flags, tmp_path):
    assert_refused(run("finetune.py", *flags, cwd=tmp_path), flags[-1])


@pytest.mark.parametrize("backend", ["torch", "jaxx"])
def test_a_backend_that_is_not_there_is_named(backend, tmp_path):
    if find_spec(backend):
        pytest.skip(f"{backend} is installed")
    done = run("test_model.py", cwd=tmp_path, KERAS_BACKEND=backend)
    assert_refused(done, backend)
    assert "KERAS_BACKEND to tensorflow" in done.stderr


@pytest.mark.slow
def test_output_of_another_encoding_and_a_reader_that_has_enough(tiny, tmp_path):
    for label in ("\u91d1\u5c5e", "wood"):
        shutil.copytree(tiny / "data_256", tmp_path / "own" / label)
    flags = "--data own --image-size 32 --weights none --layers block1_conv1 --trees 2"
    for command in (f"random_forest.py {flags}", "test_model.py"):
        done = run(*command.split(), cwd=tmp_path, PYTHONIOENCODING="cp1252")
        assert done.returncode == 0, done.stderr
    assert "\\u91d1\\u5c5e" in done.stdout

    command = f"{sys.executable} {ROOT}/random_forest.py {flags} | head -2; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.slow
def test_control_c_while_keras_is_imported_says_so(tmp_path):
    process = subprocess.Popen(
        [sys.executable, ROOT / "test_model.py"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # a shell has what it runs in the background ignore it
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    expected = "\ntest_model.py: interrupted; run the same command again to resume.\n"
    assert (process.returncode, errors) == (130, expected)

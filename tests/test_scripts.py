"""The scripts as a user calls them."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
from conftest import ROOT, only_run

from transfer.console import BadInput

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
    ("finetune --augment --final-augment", "--final-augment"),
    ("finetune --epochs 1e999", "integer of 1 or more"),
    ("finetune --data data/mame", "data/mame"),  # named, so not replaced by the demo
    ("random_forest --trees 0", "integer of 1 or more"),
    ("random_forest --alpha 3", "--alpha is for --classifier linear"),
    ("random_forest --classifier linear --discretize", "--discretize is for --classifier forest"),
    ("extract_features --part 3/2", "invalid"),
    ("test_model --run nowhere --data nowhere", "nowhere"),
    ("test_model --accept 95", "between 0 and 1"),
    ("test_model --predict a --compare x y", "not allowed with"),
    ("rerun_study --seed 3", "unrecognized"),  # and not short for --seeds
    ("get_data --url http://127.0.0.1:9", "could not be downloaded from http://127.0.0.1:9"),
]


def run(*command, cwd, **environment):
    """A script and its flags, and what else a user types into a shell."""
    words = " ".join(map(str, command))
    return subprocess.run(
        ["bash", "-c", f"'{sys.executable}' '{ROOT}'/{words}"],
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


def test_help_imports_nothing_heavy():
    command = [sys.executable, "-c", HELP_OF_ALL, *SCRIPTS]
    said = subprocess.check_output(command, cwd=ROOT, text=True)
    for name in SCRIPTS:
        assert f"\nended {name} 0 []\n" in said


@pytest.mark.parametrize(("command", "message"), REFUSED)
def test_bad_input_is_refused(command, message, workdir, script, capsys):
    with pytest.raises((BadInput, SystemExit)) as refused:
        script(*command.split())
    assert message in f"{refused.value} {capsys.readouterr().err}"
    assert not (workdir / "runs").exists()


@pytest.mark.parametrize("backend", ["torch", "jaxx"])
def test_a_backend_that_is_not_there_is_named(backend, tmp_path):
    if find_spec(backend):
        pytest.skip(f"{backend} is installed")
    done = run("test_model.py", cwd=tmp_path, KERAS_BACKEND=backend)
    assert_refused(done, backend)
    assert "KERAS_BACKEND to tensorflow" in done.stderr


def test_a_backend_that_fails_while_it_is_imported_is_shown(tmp_path):
    (tmp_path / "tensorflow.py").write_text("import os; os.write(2, b'no AVX'); None + 1")
    done = run("test_model.py", cwd=tmp_path, PYTHONPATH=tmp_path, KERAS_BACKEND="tensorflow")
    assert "no AVX" in done.stderr
    assert_refused(done, "Keras cannot be loaded (TypeError(")


@pytest.mark.slow
def test_settings_of_a_notebook_and_of_a_user_do_not_count(tiny, stored_features, tmp_path):
    """Of Keras and of matplotlib, from the command line; standard output is closed."""
    settings = '{"floatx": "float64", "image_data_format": "channels_first"}'
    (tmp_path / "keras.json").write_text(settings)
    (tmp_path / "matplotlibrc").write_text("text.usetex: True")  # read from the working folder
    command = f"random_forest.py --data {tiny} --features {stored_features} --trees 2 >&-"
    done = run(command, cwd=tmp_path, KERAS_HOME=tmp_path, MPLBACKEND="module://nowhere")
    assert done.returncode == 0, done.stderr
    assert (only_run(tmp_path) / "confusion_val.png").exists()


@pytest.mark.slow
def test_output_of_another_encoding_and_a_reader_that_has_enough(tiny, tmp_path):
    for label in ("\u91d1\u5c5e", "wood"):
        shutil.copytree(tiny / "data_256", tmp_path / "own" / label)
    flags = "--data own --image-size 32 --weights none --layers block1_conv1 --trees 2"
    for command in (f"random_forest.py {flags}", "test_model.py"):
        done = run(command, cwd=tmp_path, PYTHONIOENCODING="cp1252")
        assert done.returncode == 0, done.stderr
    assert "\\u91d1\\u5c5e" in done.stdout

    done = run(f"random_forest.py {flags} | head -2; exit ${{PIPESTATUS[0]}}", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.slow
def test_control_c_while_keras_is_imported_says_so(tmp_path):
    command = [
        "env",
        "--default-signal=INT",  # a shell has what it runs in the background ignore it
        "timeout",
        "--signal=INT",
        "--preserve-status",
        "1.5",
        sys.executable,
        ROOT / "test_model.py",
    ]
    done = subprocess.run(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    expected = "\ntest_model.py: interrupted; run the same command again to resume.\n"
    assert (done.returncode, done.stderr) == (130, expected)

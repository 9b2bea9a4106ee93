import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from prism_dml import __version__
from prism_dml.cli.main import COMMANDS, main


def run_prism(*arguments, **environment):
    """The command as a shell runs it."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from prism_dml.cli.main import main; sys.exit(main())",
            *arguments,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.fixture
def command(monkeypatch):
    """Lets a test put a function in the place of `prism corrupt`."""

    def put(function):
        module = type(sys)("prism_dml.cli.corrupt")
        module.corrupt = function
        monkeypatch.setitem(sys.modules, "prism_dml.cli.corrupt", module)

    return put


def raising(error):
    def function() -> None:
        raise error

    return function


def test_overview_lists_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown and summary in shown for name, summary in COMMANDS.items())


def test_without_a_command_shows_the_overview_and_fails(capsys):
    assert main([]) == 2
    assert "usage: prism COMMAND" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"prism {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_its_summary(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"usage: prism {name}" in shown
    assert COMMANDS[name].split(";")[0].split(".")[0] in shown
    assert "<class" not in shown


def test_help_through_the_shell_is_quick_and_imports_nothing_heavy():
    assert run_prism("--help").returncode == 0
    code = (
        "import sys, time; from prism_dml.cli.main import main; main(['--help'])\n"
        "print(time.process_time(), 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, torch_imported = result.stdout.splitlines()[-1].split()
    # The processor's time, start of Python included: the clock on the wall would measure the other tests too.
    assert float(seconds) < 0.5
    assert torch_imported == "False"


def test_unknown_command_suggests_and_is_one_line():
    result = run_prism("corupt")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == "prism: error: unknown command 'corupt': did you mean 'corrupt'?\n"


def test_unlike_any_command_lists_them(capsys):
    assert main(["zzz"]) == 2
    assert "the commands are demo, train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("the data\nhas no   rows"), "the data has no rows"),
        (FileNotFoundError(2, "No such file or directory", "x.csv"), "No such file or directory: x.csv"),
        (OSError("out of paper"), "out of paper"),
        (ValueError(), "ValueError"),
        (MemoryError("70 GB"), "not enough memory: 70 GB"),
    ],
)
def test_users_mistakes_are_one_line(command, capsys, error, line):
    command(raising(error))
    assert main(["corrupt"]) == 2
    assert capsys.readouterr().err == f"prism: error: {line}\n"


LOST = "a process that decodes images {}: if memory is short, fewer workers need less"
SHORT = (
    "not enough memory: torch {}; smaller batches, images, embeddings or banks need less, and fewer workers"
)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("DataLoader worker (pid 47) is killed by signal: Killed. "), LOST.format("was killed (Killed)")),
        (RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"), LOST.format("has ended")),
        (
            RuntimeError(
                "process 1 failed\nTraceback (most recent call last):\nRuntimeError: DataLoader worker (pid 4) is "
                "killed by signal: Bus error. It is possible that dataloader's workers are out of shared memory."
            ),
            LOST.format("was killed (Bus error)"),
        ),
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity"),
            SHORT.format("asked for 2.50 GiB"),
        ),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), SHORT.format("got no more")),
        (MemoryError("Caught MemoryError in DataLoader worker process 0.\nOriginal"), SHORT.format("got no more")),
    ],
)  # fmt: skip
def test_what_torch_says_of_a_lack_of_room_is_one_line(command, capsys, monkeypatch, error, line):
    command(raising(error))
    assert main(["corrupt"]) == 2
    assert capsys.readouterr().err == f"prism: error: {line}\n"
    monkeypatch.setenv("PRISM_DEBUG", "1")
    assert main(["corrupt"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback") and str(error) in shown and shown.endswith(f"{line}\n")


def test_our_mistakes_show_where(command):
    command(raising(AssertionError("ours")))
    with pytest.raises(AssertionError, match="ours"):
        main(["corrupt"])
    command(raising(RuntimeError("ours, too")))
    with pytest.raises(RuntimeError, match="ours, too"):
        main(["corrupt"])


def test_debug_shows_where_a_users_mistake_was_found(command, capsys, monkeypatch):
    monkeypatch.setenv("PRISM_DEBUG", "1")
    command(raising(ValueError("bad")))
    assert main(["corrupt"]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("prism: error: bad\n")


def test_interrupt_is_130(command, capsys):
    command(raising(KeyboardInterrupt()))
    assert main(["corrupt"]) == 130
    assert capsys.readouterr().err == "prism: interrupted\n"


def test_a_reader_that_leaves_early_is_no_error():
    code = (
        "import sys, types; module = types.ModuleType('prism_dml.cli.corrupt')\n"
        "def corrupt() -> None: print('x' * 10_000_000)\n"
        "module.corrupt = corrupt; sys.modules[module.__name__] = module\n"
        "from prism_dml.cli.main import main; sys.exit(main(['corrupt']))"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout.read(5) == b"xxxxx"
    writer.stdout.close()
    shown = writer.stderr.read()
    writer.stderr.close()
    assert writer.wait() == 0
    assert shown == b""


def test_warnings_of_the_package_reach_standard_error():
    code = (
        "import logging\nfrom prism_dml.cli import main\n"
        "main._log_to_standard_error(); main._log_to_standard_error()\n"
        "logging.getLogger('prism_dml').warning('skipped %s', 'a.png')"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert shown == "prism: warning: skipped a.png\n"


def test_commands_have_a_module_of_their_name():
    assert all(find_spec(f"prism_dml.cli.{name}") for name in COMMANDS)

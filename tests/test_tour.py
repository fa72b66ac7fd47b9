"""README's tour, run as printed: every `$ command` of its console blocks in one shell, every line of output compared.

Before the tour deletes the state directory the server is killed without warning; `make serve` starts it again. `…` in the printed output
stands for any text.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

from served import ROOT, Server, binary, free_port
from test_seed import wait_for_published

PORT = "127.0.0.1:8642"


def console_blocks():
    tour = (ROOT / "README.md").read_text().split("## Five minutes")[1].split("\n## ")[0]
    return re.findall(r"```console\n(.*?)```", tour, re.DOTALL)


def steps(block):
    """Commands with the output printed under each; a command goes on while its line ends in a backslash or its quote is open."""
    found = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append(([line[2:]], []))
        elif found and not found[-1][1] and is_open("\n".join(found[-1][0])):
            found[-1][0].append(line)
        else:
            found[-1][1].append(line)
    return [("\n".join(command), output) for command, output in found]


def is_open(command):
    if "<<'END'" in command:
        return not command.endswith("\nEND")
    return command.endswith(("\\", "|")) or command.count("'") % 2 == 1 or command.count('"') % 2 == 1


def matches(printed, got):
    # An id or a position is printed as far as it helps to recognise one.
    printed = [re.sub(r"^(tarn-(?:query-id|position): ).*", r"\1…", line) for line in printed]
    pattern = ".*".join(re.escape(part) for part in "\n".join(printed).split("…"))
    return re.fullmatch(pattern, got, re.DOTALL)


def test_the_tour_prints_what_the_readme_says(tmp_path):
    server = Server(tmp_path)
    server.state, server.objects = tmp_path / "volumes" / "duckdb", tmp_path / "volumes" / "objects"
    server.arguments = ["--store", f"file:{server.objects}"]
    server.token = None
    server.listen = f"127.0.0.1:{free_port()}"  # one for both starts
    server.start()
    shell = Shell(tmp_path)
    try:
        ran = 0
        for block in console_blocks():
            for command, printed in steps(block):
                if command == "make serve":
                    server.start()
                    continue
                if command.startswith("rm -rf volumes/duckdb"):
                    server.kill()
                if command.endswith("python polars_tour.py"):
                    # A reader of the README gets here later than the file does.
                    wait_for_published(server, "SELECT count(*) FROM metrics.daily", lambda count: count > 0)
                got = shell.run(command.replace(PORT, server.address), server.address)
                assert matches(printed, got), f"$ {command}\n--- printed\n{chr(10).join(printed)}\n--- got\n{got}\n{server.log()}"
                ran += 1
        assert ran > 8
    finally:
        shell.close()
        server.kill()


class Shell:
    """One bash for the whole tour, so that what a step exports or defines is there in the next."""

    END = "--- end of step ---"

    def __init__(self, directory):
        setup = f"""
            make() {{ [ "$1" = tour.data ] && mkdir -p volumes/objects && cp -r '{ROOT}/vendor/data/sm-default-processed' volumes/objects/ &&
                echo "volumes/objects/sm-default-processed: $(find volumes/objects/sm-default-processed -type f | wc -l) files"; }}
            shopt -s expand_aliases
        """
        (directory / "target" / "debug").mkdir(parents=True)
        (directory / "target" / "debug" / "tarn").symlink_to(Path(binary()).resolve())
        (directory / "vendor").symlink_to(ROOT / "vendor")
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
        self.process = subprocess.Popen(
            [shutil.which("bash")],
            cwd=directory,
            env=kept,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.process.stdin.write(setup)

    def run(self, command, address):
        self.process.stdin.write(f"{command}\necho '{self.END}'\n")
        self.process.stdin.flush()
        lines = []
        for line in self.process.stdout:
            if line.rstrip("\n").endswith(self.END):
                # Output without a final newline ends on the same line.
                rest = line.rstrip("\n")[: -len(self.END)]
                lines += [rest] if rest else []
                return "\n".join(lines).replace(address, PORT)
            lines.append(line.rstrip("\n"))
        raise AssertionError(f"the shell ended at `{command}`")

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=30)

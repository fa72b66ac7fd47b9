"""`tarn shell` in a pseudo-terminal, and from a pipe."""

import os
import signal
import stat
import subprocess

import pytest

from marts import FOREVER
from processes import descendants, engines_work
from served import binary
from terminal import CTRL_C, CTRL_D, TAB, UP, Terminal


@pytest.fixture
def environment(mart, tmp_path):
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "TARN_PAGER": "",
        "TARN_DSN": f"tarn://{mart.server.address}/{mart.name}",
        "TARN_TOKEN": mart.token,
    }


@pytest.fixture
def shell(environment):
    """Starts shells, each at its first prompt."""
    opened = []

    def start(columns=100, lines=40, **more):
        opened.append(Terminal([binary(), "shell"], {**environment, **more}, columns, lines))
        opened[-1].wait_for(ready)
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


def ready(text):
    """Whether the last line is a prompt with nothing behind it."""
    return text.splitlines()[-1:] != [] and text.splitlines()[-1].endswith(">")


def run(terminal, line):
    terminal.type(line)
    # The editor has drawn it before it is sent, so that the prompt waited for is the next one.
    terminal.wait_for(lambda text: not ready(text))
    terminal.type("\r")
    return terminal.wait_for(ready)


def test_a_statement_may_take_several_lines(shell):
    terminal = shell()
    terminal.type("SELECT 6 * 7\r")
    terminal.wait_for("…>")
    terminal.type("AS answer;\r")
    text = terminal.wait_for("(1 row)")
    assert "answer" in text and "42" in text


def test_errors_are_told_and_the_shell_goes_on(shell):
    terminal = shell()
    assert "nowhere" in run(terminal, "FROM nowhere;")
    assert "\\?" in run(terminal, "\\nothing")
    assert "(1 row)" in run(terminal, "SELECT 1;")


def test_the_history_is_there_the_next_time_and_for_its_owner_only(shell, tmp_path):
    first = shell()
    run(first, "SELECT 'first';")
    run(first, " SELECT 'not to be kept';")
    first.type(CTRL_D)
    assert first.wait_for_end() == 0
    second = shell()
    second.type(UP)
    second.wait_for("> SELECT 'first';")
    file = tmp_path / "state" / "tarn" / "history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and file.read_text() == "SELECT 'first';\n"


def test_names_keywords_and_commands_are_completed(shell, mart):
    mart.query("CREATE TABLE departures (carrier VARCHAR, mean_delay DOUBLE)")
    terminal = shell()
    terminal.type("SELECT mean_d from depar" + TAB)
    terminal.wait_for("from departures")
    terminal.type(CTRL_C)
    terminal.wait_for(ready)
    terminal.type("FROM departures d WHERE d.carr" + TAB)
    terminal.wait_for("d.carrier")
    terminal.type(CTRL_C)
    terminal.wait_for(ready)
    terminal.type("summariz" + TAB)
    terminal.wait_for("summarize")
    terminal.type(CTRL_C)
    terminal.wait_for(ready)
    # A table that this shell makes is known at once.
    run(terminal, "CREATE TABLE arrivals AS SELECT 1 AS a;")
    terminal.type("FROM arriv" + TAB)
    terminal.wait_for("FROM arrivals")
    terminal.type(CTRL_C)
    terminal.wait_for(ready)
    terminal.type("\\tim" + TAB)
    terminal.wait_for("\\timing")


def test_what_the_mart_holds_is_described(shell, mart):
    mart.query("CREATE TABLE t (a INTEGER NOT NULL, b VARCHAR DEFAULT 'x'); COMMENT ON TABLE t IS 'of letters'; CREATE VIEW v AS FROM t")
    terminal = shell()
    text = run(terminal, "\\d")
    assert "of letters" in text and "view" in text
    text = run(terminal, "\\d t")
    assert "table main.t" in text and "INTEGER" in text and "not null" in text and "'x'" in text
    assert "no table or view `missing`" in run(terminal, "\\d missing")


def test_plans_times_and_records_are_shown_when_asked_for(shell, mart):
    mart.query("CREATE TABLE t AS SELECT range AS a FROM range(1000)")
    terminal = shell()
    assert "SEQ_SCAN" in run(terminal, "\\plan SELECT a FROM t WHERE a > 10;")
    run(terminal, "SELECT count(*) AS rows_of_t FROM t;")
    assert "UNGROUPED_AGGREGATE" in run(terminal, "\\plan analyze")
    run(terminal, "\\timing on")
    assert " ms" in run(terminal, "SELECT 1;")
    run(terminal, "\\x on")
    assert "── row 1" in run(terminal, "SELECT 7 AS seven;")


def test_an_earlier_moment_is_shown_until_now_is(shell, mart):
    mart.query("CREATE TABLE t AS SELECT 'as it was' AS a")
    mart.json("POST", "/snapshots", {"name": "before"})
    mart.query("UPDATE t SET a = 'as it is'")
    terminal = shell()
    assert f"{mart.name}@before>" in run(terminal, "\\at before")
    assert "as it was" in run(terminal, "FROM t;")
    assert "only reads" in run(terminal, "DELETE FROM t;")
    assert "never" in run(terminal, "\\at never")
    assert run(terminal, "\\at now").splitlines()[-1] == f"{mart.name}>"
    assert "as it is" in run(terminal, "FROM t;")


def test_a_result_is_exported_whole(shell, mart, tmp_path):
    terminal = shell()
    assert "there are more" in run(terminal, "SELECT range AS n FROM range(20000);")
    run(terminal, f"\\export {tmp_path}/n.csv")
    assert len((tmp_path / "n.csv").read_text().splitlines()) == 20_001
    run(terminal, f"\\export {tmp_path}/m.parquet SELECT 5 AS five")
    assert (tmp_path / "m.parquet").read_bytes()[:4] == b"PAR1"
    assert "ends in none of" in run(terminal, f"\\export {tmp_path}/m.xyz")


def test_transactions_last_over_statements_and_the_prompt_says_so(shell, mart):
    mart.query("CREATE TABLE t (a INTEGER)")
    terminal = shell()
    assert run(terminal, "BEGIN;").endswith(f"{mart.name}*>")
    run(terminal, "INSERT INTO t VALUES (1);")
    assert mart.rows("SELECT count(*) FROM t") == [(0,)]
    assert run(terminal, "COMMIT;").endswith(f"{mart.name}>")
    assert mart.rows("SELECT count(*) FROM t") == [(1,)]
    run(terminal, "CREATE TEMP TABLE own AS SELECT 'mine' AS a;")
    assert "mine" in run(terminal, "FROM own;")


def test_a_shell_outlives_its_engine(shell, mart):
    terminal = shell()
    run(terminal, "SELECT 1;")
    for pid in descendants(mart.server.process.pid):
        os.kill(pid, signal.SIGKILL)
    # The first may still be told of the death.
    run(terminal, "SELECT 2;")
    assert "(1 row)" in run(terminal, "SELECT 'it goes on' AS here;")
    assert "it goes on" in terminal.text()


def test_ctrl_c_stops_what_runs_and_nothing_else(shell, mart):
    terminal = shell()
    run(terminal, "CREATE TEMP TABLE own AS SELECT 'still here' AS a;")
    terminal.type(f"{FOREVER};\r")
    terminal.wait_for("Ctrl-C stops it")
    terminal.type(CTRL_C)
    text = terminal.wait_for(ready)
    assert "cancelled" in text and "Ctrl-C stops it" not in text
    assert not engines_work(mart.server.process.pid)
    assert "still here" in run(terminal, "FROM own;")


def test_tables_fit_the_terminal(shell):
    terminal = shell(columns=60)
    sql = "SELECT repeat('long ', 30) AS first, 12345 AS second, repeat('wide ', 30) AS third;"
    text = run(terminal, sql)
    rule = next(line for line in text.splitlines() if line.startswith("───"))
    assert len(rule) <= 60 and "12345" in text and "…" in text
    many = ", ".join(f"'value {n}' AS column_{n}" for n in range(30))
    terminal = shell(columns=60)
    assert "column_29  value 29" in run(terminal, f"SELECT {many};")


def test_long_results_go_through_the_pager(shell):
    terminal = shell(lines=20, TARN_PAGER="sed 's/^/paged: /'")
    assert "paged:" not in run(terminal, "SELECT 1;")
    assert "paged: (100 rows)" in run(terminal, "SELECT range FROM range(100);")


def test_scripts_come_through_a_pipe(environment):
    def piped(text):
        return subprocess.run([binary(), "shell"], input=text, capture_output=True, text=True, env=environment, timeout=60)

    done = piped("CREATE TEMP TABLE t AS\n  SELECT 42 AS answer;\nFROM t;\n\\x on\nFROM t;")
    assert done.returncode == 0 and "answer\n──────\n    42\n(1 row)\n" in done.stdout and "answer  42" in done.stdout, done
    failed = piped("FROM nowhere;\nSELECT 'not reached';\n")
    assert failed.returncode == 1 and "nowhere" in failed.stderr and "not reached" not in failed.stdout

"""Runs SQL in a plain DuckDB that reaches s3:// through a gateway: settings in the first line of input, then a JSON list of
statements per line; answers each with a line of outcomes."""

import json
import sys

import duckdb


def connect(request):
    connection = duckdb.connect(
        ":memory:",
        config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false", "threads": "4"},
    )
    connection.execute(f"LOAD '{request['httpfs']}'")
    connection.execute("SET GLOBAL http_retries = 1")
    # Small parts, so that uploads of a few megabytes already go in several.
    connection.execute("SET GLOBAL s3_uploader_max_filesize = '50GB'")
    if request["proxy"]:
        connection.execute(f"SET GLOBAL http_proxy = 'http://{request['endpoint']}'")
    scopes = ", ".join(f"'{scope}'" for scope in request["scopes"])
    connection.execute(
        f"""CREATE TEMPORARY SECRET gateway (TYPE s3, KEY_ID '{request["key_id"]}', SECRET '{request["secret"]}',
            ENDPOINT '{request["endpoint"]}', REGION '{request["region"]}', URL_STYLE 'path', USE_SSL false, SCOPE [{scopes}])"""
    )
    return connection


def outcome(connection, sql):
    try:
        rows = connection.execute(sql).fetchall()
        return {"rows": [[str(value) for value in row] for row in rows]}
    except duckdb.Error as error:
        return {"error": str(error)}


def main():
    connection = connect(json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        print(json.dumps([outcome(connection, sql) for sql in json.loads(line)]), flush=True)


main()

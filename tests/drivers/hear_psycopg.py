"""Hears notifications with psycopg 3: see tests/server/drivers.rs for what it prints when.

Usage: hear_psycopg.py SOCKET_FOLDER
"""

import sys

import psycopg


def say(*words):
    print(*words, flush=True)


with psycopg.connect(host=sys.argv[1], user="postgres", dbname="postgres", autocommit=True) as connection:
    channels = connection.execute("SELECT oban_listen_channels('{insert}')").fetchall()
    say("listening", *[name for (name,) in channels])

    for heard in connection.notifies(stop_after=1):
        say("idle", heard.channel, heard.payload)

    with connection.transaction():
        say("in transaction", connection.execute("SELECT 1").fetchone()[0])
        sys.stdin.readline()  # meanwhile another session notifies
        connection.execute("SELECT 1")
        early = list(connection.notifies(timeout=0))
        say("in transaction", "too early" if early else "nothing")
    for heard in connection.notifies(stop_after=1):
        say("after", heard.channel, heard.payload)

-- As Oban's migration 11 makes it, but logged: a crash of the server must not empty it.
CREATE TABLE {prefix}.oban_peers (
    name text NOT NULL PRIMARY KEY,
    node text NOT NULL,
    started_at timestamp NOT NULL,
    expires_at timestamp NOT NULL
);

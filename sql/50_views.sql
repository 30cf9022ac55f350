-- Views over the set-returning functions. They show the caller's database, and of it the prefixes
-- that the caller may read; they filter and don't raise for lack of a right.

CREATE VIEW @extschema@.oban_members AS
    SELECT prefix, name, node, member, kind, pid, leader, joined_at, expires_at
    FROM @extschema@.obanrs_memberships();

CREATE VIEW @extschema@.oban_leadership AS
    SELECT prefix, name, node, term, started_at, expires_at
    FROM @extschema@.obanrs_leadership();

CREATE FUNCTION @extschema@.obanrs_gossip() RETURNS TABLE (
    prefix pg_catalog.text,
    name pg_catalog.text,
    node pg_catalog.text,
    queue pg_catalog.text,
    state pg_catalog.jsonb,
    started_at pg_catalog.timestamptz,
    updated_at pg_catalog.timestamptz,
    expires_at pg_catalog.timestamptz
) STRICT VOLATILE PARALLEL RESTRICTED LANGUAGE c AS 'MODULE_PATHNAME', 'obanrs_gossip_wrapper';

CREATE VIEW @extschema@.oban_gossip AS
    SELECT
        g.prefix, g.name, g.node, g.queue,
        (g.state OPERATOR(pg_catalog.->>) 'paused')::pg_catalog.bool AS paused,
        COALESCE(
            g.state OPERATOR(pg_catalog.->>) 'local_limit',
            g.state OPERATOR(pg_catalog.->>) 'limit'
        )::pg_catalog.int4 AS local_limit,
        pg_catalog.jsonb_array_length(g.state OPERATOR(pg_catalog.->) 'running') AS running,
        g.state OPERATOR(pg_catalog.->>) 'uuid' AS uuid,
        g.started_at, g.updated_at, g.expires_at, g.state
    FROM @extschema@.obanrs_gossip() g;

CREATE VIEW @extschema@.oban_watches AS
    SELECT
        w.queue_table::pg_catalog.regclass AS queue_table,
        w.channel,
        CASE WHEN w.content OPERATOR(pg_catalog.=) 'queue' THEN w.column_name END::pg_catalog.name AS queue_column,
        pg_catalog.array_agg(w.event ORDER BY w.ordinality) AS events,
        CASE WHEN w.content OPERATOR(pg_catalog.=) 'payload' THEN w.column_name END::pg_catalog.name AS payload_column,
        CASE WHEN w.condition OPERATOR(pg_catalog.<>) '' THEN w.condition END AS condition,
        pg_catalog.bool_and(w.ok) AS ok
    FROM @extschema@.obanrs_watches() WITH ORDINALITY w
    GROUP BY w.queue_table, w.channel, w.content, w.column_name, w.condition;

CREATE VIEW @extschema@.oban_workers AS
    SELECT w.kind, d.datname AS database, w.pid, w.state, w.started_at, w.restarts, w.last_error, w.prefix
    FROM (
        SELECT kind, database, pid, state, started_at, restarts, last_error, NULL::pg_catalog.text AS prefix
        FROM @extschema@.obanrs_workers()
        UNION ALL
        SELECT 'stager', database, pid, state, started_at, restarts, last_error, prefix
        FROM @extschema@.obanrs_stagers()
    ) w
    LEFT JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) w.database;

CREATE VIEW @extschema@.oban_stats AS
    SELECT counter, value
    FROM @extschema@.obanrs_stats();

CREATE VIEW @extschema@.oban_queue_signals AS
    SELECT prefix, name, queue, node, paused, queue_limit, since
    FROM @extschema@.obanrs_queue_signals();

-- Their rows come all at once, which pgrx can't declare.

CREATE FUNCTION @extschema@.oban_orphans(
    prefix pg_catalog.text DEFAULT 'public',
    grace pg_catalog.interval DEFAULT '60s'
) RETURNS TABLE (
    id pg_catalog.int8,
    queue pg_catalog.text,
    worker pg_catalog.text,
    node pg_catalog.text,
    reason pg_catalog.text,
    since pg_catalog.timestamptz
) VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_orphans_wrapper';

CREATE FUNCTION @extschema@.oban_rescue(
    prefix pg_catalog.text DEFAULT 'public',
    grace pg_catalog.interval DEFAULT '60s',
    term pg_catalog.int8 DEFAULT NULL,
    name pg_catalog.text DEFAULT 'Oban',
    include_unknown pg_catalog.bool DEFAULT false
) RETURNS TABLE (
    id pg_catalog.int8,
    state pg_catalog.text
) VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_rescue_wrapper';

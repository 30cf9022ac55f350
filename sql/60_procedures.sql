-- What ends the transaction that called it, which a function can't.

CREATE PROCEDURE @extschema@.oban_wait(
    channels pg_catalog.text[] DEFAULT '{gossip,insert,leader,signal}',
    after pg_catalog.int8 DEFAULT NULL,
    timeout pg_catalog.interval DEFAULT '5s',
    max_messages pg_catalog.int4 DEFAULT 1000,
    prefix pg_catalog.text DEFAULT 'public',
    INOUT "position" pg_catalog.int8 DEFAULT NULL,
    INOUT missed pg_catalog.int8 DEFAULT NULL,
    INOUT messages pg_catalog.jsonb DEFAULT NULL,
    queues pg_catalog.text[] DEFAULT NULL
) LANGUAGE c AS 'MODULE_PATHNAME', 'oban_wait_queues_wrapper';

CREATE PROCEDURE @extschema@.oban_take(
    queues pg_catalog.text[],
    node pg_catalog.text,
    max_jobs pg_catalog.int4 DEFAULT 1,
    timeout pg_catalog.interval DEFAULT '5s',
    uuid pg_catalog.text DEFAULT NULL,
    prefix pg_catalog.text DEFAULT 'public',
    INOUT jobs pg_catalog.jsonb DEFAULT NULL
) LANGUAGE c AS 'MODULE_PATHNAME', 'oban_take_wrapper';

\echo Use "ALTER EXTENSION obanrs UPDATE TO '0.2.0'" to load this file. \quit

-- Reading messages.
CREATE FUNCTION @extschema@.oban_poll(
    channels pg_catalog.text[] DEFAULT '{gossip,insert,leader,signal}',
    after pg_catalog.int8 DEFAULT NULL,
    max_messages pg_catalog.int4 DEFAULT 1000,
    prefix pg_catalog.text DEFAULT 'public'
) RETURNS TABLE ("position" pg_catalog.int8, missed pg_catalog.int8, messages pg_catalog.jsonb)
VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_poll_wrapper';

CREATE FUNCTION @extschema@.oban_position() RETURNS pg_catalog.int8
STRICT VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_position_wrapper';

CREATE PROCEDURE @extschema@.oban_wait(
    channels pg_catalog.text[] DEFAULT '{gossip,insert,leader,signal}',
    after pg_catalog.int8 DEFAULT NULL,
    timeout pg_catalog.interval DEFAULT '5s',
    max_messages pg_catalog.int4 DEFAULT 1000,
    prefix pg_catalog.text DEFAULT 'public',
    INOUT "position" pg_catalog.int8 DEFAULT NULL,
    INOUT missed pg_catalog.int8 DEFAULT NULL,
    INOUT messages pg_catalog.jsonb DEFAULT NULL
) LANGUAGE c AS 'MODULE_PATHNAME', 'oban_wait_wrapper';

CREATE FUNCTION @extschema@.obanrs_stats() RETURNS TABLE (counter pg_catalog.text, value pg_catalog.int8)
STRICT VOLATILE PARALLEL RESTRICTED LANGUAGE c AS 'MODULE_PATHNAME', 'obanrs_stats_wrapper';

CREATE VIEW @extschema@.oban_stats AS
    SELECT counter, value
    FROM @extschema@.obanrs_stats();

GRANT SELECT ON @extschema@.oban_stats TO PUBLIC;

COMMENT ON FUNCTION @extschema@.oban_notify(text, jsonb, text) IS
    'Sends a JSON object on <prefix>.oban_<channel> when this transaction commits; a transaction or savepoint that is rolled back sends nothing. Equal messages of a transaction are sent once. By obanrs.notifier they go through shared memory or natively. What the transaction sends by NOTIFY itself comes before them. Needs INSERT on the prefix''s oban_jobs (UPDATE for signal, ownership for leader); prefix '''' sends on the channel as it is named. 22023 for a channel that is no name or too long and for a payload that is no object, 54000 for one over 7,999 bytes after compression and for more than obanrs.max_transaction_messages in a transaction, 0A000 at a PREPARE TRANSACTION after it, 3F000 without such a prefix, 55000 in recovery.';
COMMENT ON FUNCTION @extschema@.oban_poll(text[], bigint, integer, text) IS
    'What was sent on these channels behind a position: always one row, with the position to go on from, how many of the database''s messages were passed over unread (0; after a gap an upper bound, as it counts all channels; NULL when nobody knows, as after a restart), and the messages as [{"seq", "channel", "payload", "sent_at"}], the oldest first. after NULL is from now on: nothing but the position. An answer ends after max_messages or 16 MB; the next one goes on there. What others NOTIFY by themselves is not among it. Through any pooler. Needs SELECT on the prefix''s oban_jobs, or on a column of it; prefix '''' reads channels as they are named. 22023 for a negative position, max_messages below 1, more than 64 channels and what is no channel; 55000 without preload, in recovery and when the extension was dropped; 53400 when the database has no place in obanrs.max_databases.';
COMMENT ON PROCEDURE @extschema@.oban_wait(text[], bigint, interval, integer, text, bigint, bigint, jsonb) IS
    'As oban_poll, waiting up to timeout (at most a day) for the first message, or for a gap. CALL it with autocommit: it commits before it waits, so that it holds no snapshot and no lock meanwhile; 25001 in a transaction block. It occupies its connection, behind a pooler one of the server''s, as long as it waits.';
COMMENT ON FUNCTION @extschema@.oban_position() IS
    'The position of this database''s last message, for oban_poll and oban_wait to go on from. It never goes back. 55000 without preload and in recovery, 53400 when the database has no place in obanrs.max_databases.';
COMMENT ON VIEW @extschema@.oban_workers IS
    'The background workers: the coordinator of the server, and for each database that has the extension a keeper, which holds elections, and a relay, which sends notifications. state: running, starting, waiting (to be started, or kept off by a DDL command), backoff (after a failure), stopping. last_error: what went wrong last, also with elections of one prefix; it stays until something else does, and only superusers and members of pg_read_all_stats see it.';
COMMENT ON VIEW @extschema@.oban_stats IS
    'What the notifications of this database have done since the server (or the extension) started. published: messages that were given a position. relayed: sent by the relay, in relay_transactions; merged: wake-ups that one of these stood for; unheard: not sent as no session LISTENs. native: sent by their own transactions, also if these failed to commit; native_fallbacks: those and others, for want of a relay or of room. gaps: transactions that found no room, so that readers are told they missed something. dropped: wake-ups of triggers that could not be sent: over the limit, before PREPARE TRANSACTION, with a column missing, with NOTIFY''s queue full; and what was on its way when the extension was dropped. polls: calls of oban_poll and oban_wait. ring_waiting: messages that the relay has still to send. ring_bytes_used, ring_bytes: memory of the ring.';
COMMENT ON FUNCTION @extschema@.obanrs_stats() IS 'The rows of the view oban_stats.';
COMMENT ON FUNCTION @extschema@.obanrs_jobs_insert() IS
    'The trigger that oban_install puts on oban_jobs: tells each queue that got available jobs. It never fails the INSERT: a wake-up over obanrs.max_transaction_messages, or before a PREPARE TRANSACTION, is dropped.';

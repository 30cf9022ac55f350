\echo Use "ALTER EXTENSION obanrs UPDATE TO '0.7.0'" to load this file. \quit

-- A new argument makes another function of the same name, and two of a name could not be called without it. So the
-- old function goes. What depends on it, such as a view, is an error that names it.

CREATE FUNCTION @extschema@.oban_join(
    node pg_catalog.text,
    name pg_catalog.text DEFAULT 'Oban',
    lease pg_catalog.interval DEFAULT NULL,
    replace pg_catalog.bool DEFAULT false,
    prefix pg_catalog.text DEFAULT 'public',
    candidate pg_catalog.bool DEFAULT NULL
) RETURNS pg_catalog.int8
VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_join_as_wrapper';

CREATE FUNCTION @extschema@.oban_poll(
    channels pg_catalog.text[] DEFAULT '{gossip,insert,leader,signal}',
    after pg_catalog.int8 DEFAULT NULL,
    max_messages pg_catalog.int4 DEFAULT 1000,
    prefix pg_catalog.text DEFAULT 'public',
    queues pg_catalog.text[] DEFAULT NULL
) RETURNS TABLE ("position" pg_catalog.int8, missed pg_catalog.int8, messages pg_catalog.jsonb)
VOLATILE PARALLEL UNSAFE LANGUAGE c AS 'MODULE_PATHNAME', 'oban_poll_queues_wrapper';

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

CREATE FUNCTION @extschema@.obanrs_memberships() RETURNS TABLE (
    prefix pg_catalog.text,
    name pg_catalog.text,
    node pg_catalog.text,
    member pg_catalog.int8,
    kind pg_catalog.text,
    pid pg_catalog.int4,
    leader pg_catalog.bool,
    joined_at pg_catalog.timestamptz,
    expires_at pg_catalog.timestamptz,
    candidate pg_catalog.bool
) STRICT VOLATILE PARALLEL RESTRICTED LANGUAGE c AS 'MODULE_PATHNAME', 'obanrs_memberships_wrapper';

CREATE OR REPLACE VIEW @extschema@.oban_members AS
    SELECT prefix, name, node, member, kind, pid, leader, joined_at, expires_at, candidate
    FROM @extschema@.obanrs_memberships();

-- The new functions take over owners, rights and settings. These are copied in the catalogs. A GRANT in an extension's
-- script would count as the extension's own, and pg_dump would leave the user's GRANTs and REVOKEs out.

CREATE TEMPORARY TABLE obanrs_replaced AS
    SELECT old::pg_catalog.oid AS old, new::pg_catalog.oid AS new
    FROM (VALUES
        (
            '@extschema@.oban_join(text, text, interval, boolean, text)'::pg_catalog.regprocedure,
            '@extschema@.oban_join(text, text, interval, boolean, text, boolean)'::pg_catalog.regprocedure
        ),
        (
            '@extschema@.oban_poll(text[], bigint, integer, text)'::pg_catalog.regprocedure,
            '@extschema@.oban_poll(text[], bigint, integer, text, text[])'::pg_catalog.regprocedure
        ),
        (
            '@extschema@.oban_wait(text[], bigint, interval, integer, text, bigint, bigint, jsonb)'::pg_catalog.regprocedure,
            '@extschema@.oban_wait(text[], bigint, interval, integer, text, bigint, bigint, jsonb, text[])'::pg_catalog.regprocedure
        ),
        (
            '@extschema@.obanrs_members()'::pg_catalog.regprocedure,
            '@extschema@.obanrs_memberships()'::pg_catalog.regprocedure
        )
    ) AS replaced (old, new);

UPDATE pg_catalog.pg_proc AS new
    SET proowner = old.proowner, proacl = old.proacl, proconfig = old.proconfig
    FROM pg_temp.obanrs_replaced AS r, pg_catalog.pg_proc AS old
    WHERE new.oid OPERATOR(pg_catalog.=) r.new AND old.oid OPERATOR(pg_catalog.=) r.old;

-- Which roles a function depends on: its owner, and those in its rights.
DELETE FROM pg_catalog.pg_shdepend AS d
    USING pg_temp.obanrs_replaced AS r, pg_catalog.pg_database AS own
    WHERE d.dbid OPERATOR(pg_catalog.=) own.oid AND own.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
        AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
        AND d.objid OPERATOR(pg_catalog.=) r.new;
UPDATE pg_catalog.pg_shdepend AS d
    SET objid = r.new
    FROM pg_temp.obanrs_replaced AS r, pg_catalog.pg_database AS own
    WHERE d.dbid OPERATOR(pg_catalog.=) own.oid AND own.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
        AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
        AND d.objid OPERATOR(pg_catalog.=) r.old;

DROP TABLE pg_temp.obanrs_replaced;

DROP FUNCTION @extschema@.oban_join(text, text, interval, boolean, text);
DROP FUNCTION @extschema@.oban_poll(text[], bigint, integer, text);
DROP PROCEDURE @extschema@.oban_wait(text[], bigint, interval, integer, text, bigint, bigint, jsonb);
DROP FUNCTION @extschema@.obanrs_members();

-- Comments that are new or say more.
COMMENT ON FUNCTION @extschema@.oban_poll(text[], bigint, integer, text, text[]) IS
    'What was sent on these channels behind a position: always one row, with the position to go on from, how many of the database''s messages were passed over unread (0; after a gap an upper bound, as it counts all channels; NULL when nobody knows, as after a restart), and the messages as [{"seq", "channel", "payload", "sent_at"}], the oldest first. after NULL is from now on: nothing but the position. queues: of messages with a "queue", only those of these queues. An answer ends after max_messages or 16 MB; the next one goes on there. What others NOTIFY by themselves is not among it. Through any pooler. Needs SELECT on the prefix''s oban_jobs, or on a column of it; prefix '''' reads channels as they are named. 22023 for a negative position, max_messages below 1, more than 64 channels, what is no channel, and more than 1,024 queues or one of more than 255 bytes; 55000 without preload, in recovery and when the extension was dropped; 53400 when the database has no place in obanrs.max_databases, or no ring is free (obanrs.max_rings).';
COMMENT ON PROCEDURE @extschema@.oban_wait(text[], bigint, interval, integer, text, bigint, bigint, jsonb, text[]) IS
    'As oban_poll, waiting up to timeout (at most a day) for the first message (of these queues, if queues are given), or for a gap. CALL it with autocommit: it commits before it waits, so that it holds no snapshot and no lock meanwhile; 25001 in a transaction block. It occupies its connection, behind a pooler one of the server''s, as long as it waits.';
COMMENT ON FUNCTION @extschema@.oban_join(text, text, interval, boolean, text, boolean) IS
    'Makes this process a member: what the node''s name stands for, in the instance name and prefix. Returns a member id. Stands for election from now on, whether or not this transaction commits: until oban_leave, the end of the session or its DISCARD ALL; with a lease (100 ms to a day) until oban_leave or the end of the lease, which oban_renew begins anew from any session. Waits up to 1 s for the election. candidate false makes a member that is seen and never leads; NULL is true, but false with a NOTICE where a foreign node (one of Oban''s own, which did not join) leads the name or has led it since the server started. The same session again: the same id, and candidate NULL changes nothing. A WARNING says why no election can be held, if that is so. 23505 when another live one is that member, unless replace; 53400 when obanrs.max_members have joined, when the role has its share of them (obanrs.role_share), or when the database has no place in obanrs.max_databases; 55000 without preload, in recovery, without a lease while obanrs.require_lease is on, and for a second node of the name without a lease in one session. Needs INSERT on the prefix''s oban_jobs. Without a lease it sets this session''s tcp_keepalives_* and tcp_user_timeout, where they are unset, so that a client whose host vanished is noticed in about 8 s.';
COMMENT ON FUNCTION @extschema@.oban_fence(bigint, text, text) IS
    'Lets this transaction go on only if that term is held and its lease unexpired; until it ends nobody else becomes leader. The term is one''s own, from oban_renew or oban_term. 40001 otherwise, for NULL (what these return to a process that does not lead), and when this transaction''s snapshot (REPEATABLE READ, SERIALIZABLE) is older than the leadership: roll back. Locks the leader''s row in oban_peers against deletion; a renewal does not wait for it. Needs INSERT on the prefix''s oban_jobs. 25006 in a read-only transaction; 55000 in recovery, when the prefix is not installed and when its oban_peers has what elections would have to ignore (the hint names it).';
COMMENT ON VIEW @extschema@.oban_members IS
    'The members that have joined. kind: session (bound to the backend pid) or lease (until expires_at). leader: whether it leads now. candidate: whether it stands for election.';
COMMENT ON FUNCTION @extschema@.obanrs_memberships() IS 'The rows of the view oban_members.';

\echo Use "ALTER EXTENSION obanrs UPDATE TO '0.5.0'" to load this file. \quit

-- What large arguments are refused with.
COMMENT ON FUNCTION @extschema@.oban_notify_many(text, jsonb[], text) IS
    'As oban_notify, one message for each element: all of them or, if one is refused, none. 54000 also for more than 1,048,576 elements, and for more than 128 MB of them.';
COMMENT ON FUNCTION @extschema@.oban_listen_channels(text[], text) IS
    'LISTENs in this session to the channels of a prefix, from the end of this transaction on, and returns their full names. Needs SELECT on the prefix''s oban_jobs, or on a column of it; prefix '''' listens to the channels as they are named. 22023 for more than 64 channels and what is no channel; 55000 in recovery.';
COMMENT ON FUNCTION @extschema@.oban_unlisten_channels(text[], text) IS
    'Ends what oban_listen_channels began, for the channels of a prefix, and returns their full names. 22023 for more than 64 channels and what is no channel.';
COMMENT ON FUNCTION @extschema@.oban_encode(jsonb) IS
    'The wire form of a JSON object: itself up to 7,999 bytes, base64 of gzip (H4sI...) above; 54000 when that is longer, too, or the object is longer than 16 MB as text or nested more than 500 levels deep; 22023 for what is no object.';
COMMENT ON FUNCTION @extschema@.oban_decode(text) IS
    'Reads all wire forms of Oban''s nodes: JSON, H4sI..., and Z:H4sI.... 54000 for more than 7,999 bytes, which no notification has, for what unpacks to more than 16 MB and for what is nested more than 500 levels deep; 22023 for anything else, also for JSON that jsonb can''t hold (a NUL, half a surrogate pair, a number out of range).';

-- Fences write and lock through access methods.
COMMENT ON FUNCTION @extschema@.oban_fence(bigint, text, text) IS
    'Lets this transaction go on only if that term is held and its lease unexpired; until it ends nobody else becomes leader. The term is one''s own, from oban_renew or oban_term. 40001 otherwise, also when this transaction''s snapshot (REPEATABLE READ, SERIALIZABLE) is older than the leadership: roll back. Locks the leader''s row in oban_peers against deletion; a renewal does not wait for it. Needs INSERT on the prefix''s oban_jobs. 25006 in a read-only transaction; 55000 in recovery, when the prefix is not installed and when its oban_peers has what elections would have to ignore (the hint names it).';

COMMENT ON FUNCTION @extschema@.oban_install(text, boolean) IS
    'Makes a prefix (schema) usable: creates what is missing of oban_jobs (as Oban''s migration 14 makes it) and oban_peers, adds the insert trigger to oban_jobs, and the columns term and boot and three triggers to oban_peers. Needs the ownership of tables that exist. Again without effect, and without a lock, when nothing is missing; waits at most 2 s for a lock (55P03); 22023 when a table that is there, or the type oban_job_state, is of another kind than Oban''s; 40001 when the schema or a table is renamed, dropped or replaced meanwhile. Nothing of a table''s owner is evaluated. stage => true is not supported yet (0A000). 25006 in a read-only transaction, 55000 in recovery. Run it again after adding a partition to oban_jobs, and after an update of the extension.';
COMMENT ON FUNCTION @extschema@.oban_uninstall(text) IS
    'Removes what oban_install added to the tables of a prefix: the triggers and the columns. Never removes a table. Needs their ownership; waits at most 2 s for a lock (55P03); 3F000 without such a schema, 40001 when it or a table is renamed, dropped or replaced meanwhile, 25006 in a read-only transaction, 55000 in recovery.';

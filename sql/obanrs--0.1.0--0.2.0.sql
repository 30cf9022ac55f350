\echo Use "ALTER EXTENSION obanrs UPDATE TO '0.2.0'" to load this file. \quit

COMMENT ON FUNCTION @extschema@.oban_notify(text, jsonb, text) IS
    'Sends a JSON object on <prefix>.oban_<channel> when this transaction commits; a transaction or savepoint that is rolled back sends nothing. Equal messages of a transaction are sent once. What the transaction sends by native NOTIFY comes before them. Needs INSERT on the prefix''s oban_jobs (UPDATE for signal, ownership for leader); prefix '''' sends on the channel as it is named. 22023 for a channel that is no name or too long and for a payload that is no object, 54000 for one over 7,999 bytes after compression and for more than obanrs.max_transaction_messages in a transaction, 0A000 at a PREPARE TRANSACTION after it, 3F000 without such a prefix, 55000 in recovery.';
COMMENT ON FUNCTION @extschema@.obanrs_jobs_insert() IS
    'The trigger that oban_install puts on oban_jobs: tells each queue that got available jobs. It never fails the INSERT: a wake-up over obanrs.max_transaction_messages, or before a PREPARE TRANSACTION, is dropped.';

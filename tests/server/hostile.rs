//! Calls of every function, procedure and view of the extension, as the catalogs list them, with hostile
//! arguments.
//!
//! Several roles call at once, in every kind of transaction. Calls are cancelled and sessions terminated.
//! Names shadow Postgres' own. Meanwhile other sessions rename, replace and drop the schemas and tables that
//! the calls are about.
//!
//! The test prints a seed, from which the statements of each session follow. OBANRS_HOSTILE_SEED sets it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use fallible_iterator::FallibleIterator;
use postgres::{Client, SimpleQueryMessage};

use super::errors::{Function, functions_like};
use super::memory::{Watch, packed};
use super::splitbrain::Dice;
use crate::support::comments::announced;
use crate::support::{Ask, Cluster, wait_until};

const SETTINGS: [&str; 14] = [
    "shared_preload_libraries = 'obanrs'",
    // These are small, so that they are full at times.
    "obanrs.max_members = 16",
    "obanrs.gossip_memory = 64kB",
    "obanrs.ring_size = 64kB",
    "obanrs.max_transaction_messages = 300",
    "obanrs.gossip_interval = 50ms",
    "obanrs.lease = 1s",
    // A crash ends the server, and with it the test.
    "restart_after_crash = off",
    "statement_timeout = 2s",
    "lock_timeout = 500ms",
    "deadlock_timeout = 50ms",
    "log_line_prefix = '%m [%p] %b %e '",
    "log_min_error_statement = panic",
    "log_error_verbosity = terse",
];

/// The SQLSTATEs that functions raise, each with its reason. Which of them a function may raise, the comment on it
/// announces. A statement on a view or sequence may end with any.
const ANNOUNCED: [(&str, &str); 16] = [
    ("22004", "a null argument"),
    ("22023", "a bad argument"),
    ("23505", "the node has joined already, or another session has created a type"),
    ("25001", "oban_wait in a transaction block"),
    ("25006", "a read-only transaction"),
    ("3F000", "no such prefix, or the extension's schema is dropped"),
    ("40001", "the term is not held, the prefix changed meanwhile, or Postgres could not serialize"),
    ("42501", "not allowed"),
    ("42809", "a view or foreign table to watch; Postgres' own for a row of a sequence"),
    ("42939", "a schema of Postgres' own"),
    ("53400", "a bounded table is full"),
    ("54000", "a payload or transaction too large, or chr(0)"),
    ("55000", "no member, no elections, or no extension"),
    ("55P03", "a lock was not had in time"),
    ("0A000", "PREPARE TRANSACTION after oban_notify, staging; Postgres' own for FOR UPDATE of some views"),
    ("42P07", "a relation that was created after oban_install has looked for its name"),
];

/// Of these, what Postgres itself raises in a call of any function, by the beginning of the message.
const OWN_MESSAGES: [(&str, &str, &str); 4] = [
    ("54000", "null character not permitted", "chr(0) in an argument"),
    ("3F000", "schema \"ext\" does not exist", "the extension's schema is dropped"),
    ("40001", "could not serialize access", "in a SERIALIZABLE transaction"),
    ("55P03", "canceling statement due to lock timeout", "lock_timeout is short here"),
];

/// The SQLSTATEs with which any call may end: Postgres' own, by what the statement is in.
const EXPECTED: [(&str, &str); 20] = [
    ("57014", "cancelled, or timed out"),
    ("57P01", "terminated"),
    ("25P02", "in a transaction that has failed"),
    ("40P01", "a deadlock with DDL beside"),
    ("42883", "the extension is dropped: no such function"),
    ("42P01", "the extension is dropped: no such view"),
    ("26000", "a prepared statement that DISCARD ALL or an error took away"),
    ("34000", "a cursor that an error or a rollback took away"),
    ("25P01", "DECLARE after a BEGIN that was cancelled"),
    ("42P05", "a prepared statement that was to be deallocated, in vain"),
    ("42P03", "a cursor that was to be closed, in vain"),
    ("42704", "a function of a prepared statement that was dropped with the extension"),
    ("22P02", "no such value of the type"),
    ("22P05", "no such character in jsonb"),
    ("22003", "a number out of range"),
    ("22007", "no interval (infinity, before 17)"),
    ("22008", "an interval out of range"),
    ("22021", "no valid UTF-8"),
    ("42804", "a function of a trigger in FROM"),
    ("39P01", "a function of a trigger elsewhere"),
];

/// What Postgres itself raises as XX000 when DDL races with DDL, in statements that are no calls of the
/// extension.
const OWN_RACES: [&str; 5] = [
    "tuple concurrently",
    "cache lookup failed for",
    "could not open relation with OID",
    "could not find tuple for",
    "relation with OID",
];

/// The same of a call whose function, or view, was dropped with the extension after the statement was parsed.
const DROPPED_UNDER_WAY: [&str; 2] = ["cache lookup failed for function", "could not open relation with OID"];

/// In the server's log: that something ended that should not, or was left behind.
const FATEFUL: [&str; 9] = [
    "terminated by signal",
    "PANIC:",
    "refcount leak",
    "reference leak",
    "was not closed",
    "TRAP:",
    "problem in alloc set",
    "you don't own a lock",
    "panicked",
];

const ROLES: [&str; 4] = ["postgres", "owner", "writer", "nobody"];

/// Schemas that DDL works on, as identifiers.
const RACED: [&str; 6] = ["r1", "r2", "\"R 3\"", "app", "public", "\"p\"\"q\""];

/// Tables named oban_jobs and oban_peers of every shape.
const SHAPES: &str = r#"
    TABLE {p}.oban_jobs (id bigint, state text, queue text)
    TABLE {p}.oban_jobs (LIKE public.oban_jobs)
    TABLE {p}.oban_jobs (LIKE public.oban_jobs) PARTITION BY LIST (state)
    TABLE {p}.oban_jobs (id bigint, state int, queue int[])
    TABLE {p}.oban_jobs ()
    TABLE {p}.oban_jobs (id bigint, state text, queue text GENERATED ALWAYS AS (state) STORED)
    TABLE {p}.oban_jobs (LIKE public.oban_jobs INCLUDING COMMENTS)
    UNLOGGED TABLE {p}.oban_jobs (LIKE public.oban_jobs INCLUDING ALL)
    TABLE {p}.oban_jobs () INHERITS (public.oban_jobs)
    VIEW {p}.oban_jobs AS SELECT 1 AS id
    MATERIALIZED VIEW {p}.oban_jobs AS SELECT 1 AS id
    SEQUENCE {p}.oban_jobs
    TYPE {p}.oban_jobs AS (id int)
    TYPE {p}.oban_job_state AS ENUM ('a')
    TABLE {p}.oban_peers (name text, node text, started_at timestamp, expires_at timestamp)
    TABLE {p}.oban_peers (name text PRIMARY KEY, node text, started_at timestamp, expires_at timestamp, term text)
    TABLE {p}.oban_peers (name text, node text, started_at timestamp, expires_at timestamp) PARTITION BY HASH (name)
    UNLOGGED TABLE {p}.oban_peers (LIKE public.oban_peers INCLUDING ALL)
    TABLE {p}.oban_peers () INHERITS (app.oban_peers)
    TABLE {p}.oban_peers AS SELECT 'Oban'::text AS name, 1 AS node
    VIEW {p}.oban_peers AS SELECT 1
    SEQUENCE {p}.oban_peers
"#;

/// What else can be done to them: {p} and {q} are schemas, {t} either table.
const ACTS: &str = r#"
    CREATE SCHEMA {p}
    DROP SCHEMA {p} CASCADE
    DROP SCHEMA {p} CASCADE; CREATE SCHEMA {p}; SELECT ext.oban_install('r1')
    ALTER SCHEMA {p} RENAME TO {q}
    ALTER SCHEMA {p} RENAME TO swapped; ALTER SCHEMA {q} RENAME TO {p}; ALTER SCHEMA swapped RENAME TO {q}
    ALTER SCHEMA {p} OWNER TO owner
    GRANT ALL ON SCHEMA {p} TO PUBLIC
    REVOKE ALL ON SCHEMA {p} FROM PUBLIC, owner
    DROP TABLE {p}.{t} CASCADE
    DROP VIEW {p}.{t} CASCADE
    DROP SEQUENCE {p}.{t} CASCADE
    DROP MATERIALIZED VIEW {p}.{t}
    DROP TYPE {p}.oban_job_state CASCADE
    DROP TYPE {p}.oban_jobs CASCADE
    ALTER TYPE {p}.oban_job_state ADD VALUE IF NOT EXISTS 'odd'
    ALTER TYPE {p}.oban_job_state RENAME TO odd_state
    ALTER TABLE {p}.{t} RENAME TO other
    ALTER TABLE {p}.other RENAME TO {t}
    ALTER TABLE {p}.other RENAME TO oban_peers; ALTER TABLE {p}.oban_peers RENAME TO oban_jobs
    ALTER TABLE {p}.{t} SET SCHEMA {q}
    ALTER TABLE {p}.{t} OWNER TO writer
    ALTER TABLE {p}.{t} OWNER TO owner
    ALTER TABLE {p}.{t} ADD COLUMN extra int DEFAULT 1
    ALTER TABLE {p}.{t} DROP COLUMN extra
    ALTER TABLE {p}.oban_peers DROP COLUMN term
    ALTER TABLE {p}.oban_peers DROP COLUMN boot CASCADE
    ALTER TABLE {p}.oban_peers ALTER COLUMN term TYPE numeric
    ALTER TABLE {p}.oban_peers ALTER COLUMN name TYPE varchar(3)
    ALTER TABLE {p}.oban_peers ALTER COLUMN expires_at TYPE timestamptz
    ALTER TABLE {p}.oban_peers ALTER COLUMN node SET NOT NULL
    ALTER TABLE {p}.oban_peers DROP CONSTRAINT oban_peers_pkey
    ALTER TABLE {p}.oban_peers ADD PRIMARY KEY (name)
    ALTER TABLE {p}.oban_peers ADD CONSTRAINT odd CHECK (name <> 'Oban') NOT VALID
    ALTER TABLE {p}.oban_peers DROP CONSTRAINT odd
    ALTER TABLE {p}.oban_peers ADD CONSTRAINT twice UNIQUE (node) DEFERRABLE INITIALLY DEFERRED
    ALTER TABLE {p}.oban_peers DROP CONSTRAINT twice
    ALTER TABLE {p}.oban_jobs RENAME COLUMN queue TO q
    ALTER TABLE {p}.oban_jobs RENAME COLUMN q TO queue
    ALTER TABLE {p}.oban_jobs DROP CONSTRAINT queue_length
    ALTER TABLE {p}.oban_jobs ALTER COLUMN queue DROP DEFAULT, ALTER COLUMN queue TYPE bytea USING NULL
    ALTER TABLE {p}.{t} SET UNLOGGED
    ALTER TABLE {p}.{t} SET LOGGED
    ALTER TABLE {p}.{t} DISABLE TRIGGER ALL
    ALTER TABLE {p}.{t} ENABLE TRIGGER USER
    ALTER TABLE {p}.oban_jobs ENABLE ALWAYS TRIGGER obanrs_jobs_insert
    ALTER TABLE {p}.{t} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY
    ALTER TABLE {p}.{t} DISABLE ROW LEVEL SECURITY
    ALTER TABLE {p}.{t} REPLICA IDENTITY FULL
    ALTER TABLE {p}.{t} INHERIT {q}.{t}
    ALTER TABLE {p}.{t} NO INHERIT {q}.{t}
    ALTER TABLE {p}.{t} SET (fillfactor = 10)
    CREATE TABLE {p}.part PARTITION OF {p}.{t} DEFAULT
    CREATE TABLE {p}.part (LIKE public.oban_jobs); ALTER TABLE {p}.oban_jobs ATTACH PARTITION {p}.part DEFAULT
    ALTER TABLE {p}.oban_jobs DETACH PARTITION {p}.part
    DROP TABLE {p}.part CASCADE
    CREATE INDEX odd ON {p}.oban_peers (node) WHERE node <> 'x'
    CREATE INDEX odd ON {p}.oban_peers (pg_catalog.lower(node))
    DROP INDEX {p}.odd
    DROP INDEX {p}.oban_jobs_state_queue_priority_scheduled_at_id_index
    REINDEX TABLE {p}.{t}
    VACUUM FULL {p}.{t}
    VACUUM {p}.{t}
    ANALYZE {p}.{t}
    CLUSTER {p}.oban_peers USING oban_peers_pkey
    TRUNCATE {p}.{t}
    BEGIN; LOCK TABLE {p}.{t}; SELECT pg_sleep(0.05); COMMIT
    BEGIN; LOCK TABLE {p}.{t} IN SHARE MODE; SELECT pg_sleep(0.05); ROLLBACK
    CREATE RULE odd AS ON INSERT TO {p}.{t} DO ALSO NOTHING
    DROP RULE odd ON {p}.{t}
    DROP TRIGGER obanrs_jobs_insert ON {p}.oban_jobs
    CREATE TRIGGER odd AFTER INSERT ON {p}.oban_jobs FOR EACH ROW EXECUTE FUNCTION ext.obanrs_jobs_insert()
    CREATE TRIGGER odd BEFORE UPDATE OR DELETE OR INSERT ON {p}.{t} FOR EACH ROW EXECUTE FUNCTION ext.obanrs_peers('x')
    CREATE TRIGGER odd AFTER TRUNCATE ON {p}.{t} EXECUTE FUNCTION ext.obanrs_peers()
    CREATE TRIGGER odd AFTER INSERT ON {p}.oban_jobs REFERENCING NEW TABLE AS n EXECUTE FUNCTION ext.obanrs_jobs_insert(1)
    CREATE CONSTRAINT TRIGGER odd AFTER INSERT ON {p}.{t} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ext.obanrs_peers()
    DROP TRIGGER odd ON {p}.{t}
    GRANT INSERT ON {p}.oban_jobs TO writer
    GRANT SELECT (queue), UPDATE (queue) ON {p}.oban_jobs TO writer
    REVOKE ALL ON {p}.oban_jobs FROM writer, owner
    INSERT INTO {p}.oban_jobs (worker) VALUES ('w')
    INSERT INTO {p}.oban_jobs (worker, queue) SELECT 'w', 'q' || i FROM generate_series(1, 500) i
    INSERT INTO {p}.oban_jobs (worker, queue, state) VALUES ('w', E'\n\t"ü日\x01', 'completed'), ('w', repeat('é', 60), 'available')
    INSERT INTO {p}.oban_jobs (id, state, queue) VALUES (1, 'available', NULL), (2, NULL, repeat('x', 10000))
    UPDATE {p}.oban_jobs SET queue = 'other'
    DELETE FROM {p}.oban_jobs
    INSERT INTO {p}.oban_peers (name, node, started_at, expires_at) VALUES ('Oban', 'foreign', now(), now() + '1 s'::interval)
    INSERT INTO {p}.oban_peers (name, node, started_at, expires_at) VALUES ('Other', 'foreign', 'infinity', '-infinity')
    INSERT INTO {p}.oban_peers (name, node, started_at, expires_at) VALUES ('Oban', repeat('é', 2000), '-infinity', 'infinity')
    INSERT INTO {p}.oban_peers (name, node, started_at, expires_at) VALUES (repeat('x', 300), 'foreign', now(), now() + '1 s'::interval) ON CONFLICT (name) DO UPDATE SET node = 'x'
    INSERT INTO {p}.oban_peers (name, node, started_at, expires_at, term) VALUES ('Third', 'foreign', now(), now() - '1 s'::interval, -5)
    INSERT INTO {p}.oban_peers (name, node, started_at, expires_at, term) VALUES ('Fourth', 'foreign', now(), now() + '1 s'::interval, 1::bigint << 50)
    UPDATE {p}.oban_peers SET expires_at = now() - '1 s'::interval
    UPDATE {p}.oban_peers SET node = 'other'
    UPDATE {p}.oban_peers SET term = 7, name = name || 'x'
    DELETE FROM {p}.oban_peers
    COMMENT ON TABLE {p}.{t} IS '99'
    ALTER EXTENSION obanrs SET SCHEMA {p}
    ALTER EXTENSION obanrs ADD TABLE {p}.{t}
    ALTER EXTENSION obanrs DROP TABLE {p}.{t}
    CREATE OR REPLACE VIEW {p}.seen AS SELECT * FROM ext.oban_members
    DROP VIEW {p}.seen
"#;

/// What a session can set, hold or hide.
const SET: &str = r#"
    SET search_path = shadow, pg_catalog
    SET search_path = shadow, pg_catalog, ext, public
    SET search_path = ''
    SET search_path = nowhere, "$user", app
    SET search_path = pg_temp, pg_catalog, shadow
    SET search_path = ext
    RESET search_path
    SET statement_timeout = 1
    SET statement_timeout = 5
    SET statement_timeout = 50
    RESET statement_timeout
    SET lock_timeout = 1
    SET default_transaction_read_only = on
    SET default_transaction_read_only = off
    SET default_transaction_isolation = 'serializable'
    SET default_transaction_isolation = 'repeatable read'
    RESET default_transaction_isolation
    SET obanrs.notifier = postgres
    RESET obanrs.notifier
    SET session_replication_role = replica
    RESET session_replication_role
    SET row_security = off
    SET ROLE grouped
    RESET ROLE
    SET plan_cache_mode = force_generic_plan
    SET TimeZone = 'Asia/Kathmandu'
    SET DateStyle = 'German'
    SET IntervalStyle = 'sql_standard'
    SET work_mem = '64kB'
    SET client_min_messages = error
    SET client_encoding = 'SQL_ASCII'
    RESET client_encoding
    SET escape_string_warning = off
    SET temp_tablespaces = pg_default
    RESET ALL
    DISCARD ALL
    DISCARD PLANS
    UNLISTEN *
    LISTEN "public.oban_insert"
    CREATE TEMP TABLE IF NOT EXISTS oban_jobs (id bigint, state text, queue text)
    CREATE TEMP TABLE IF NOT EXISTS oban_peers (name text, node text)
    SELECT pg_catalog.set_config(name, 'on', false) FROM pg_catalog.pg_settings WHERE name OPERATOR(pg_catalog.~) '^(force|debug)_parallel'
    SELECT pg_catalog.pg_advisory_lock_shared(1)
"#;

/// JSON that is odd, or none.
const ODD_JSON: &str = r#"
    []
    1
    null
    "x"
    true
    {"a":1,"a":2}
    {"":""}
    {"a":1e131071}
    {"a":-1e-16383}
    {"a":1e131072}
    {"a":123456789012345678901234567890.5}
    {"a":"\u0000"}
    {"a":"\\u0000"}
    {"a":"\ud83d\ude00\u2028"}
    {"a":"\ud800"}
    {"\u0001":"\u001f"}
    {"queue":null}
    {"queue":["a"]}
    {"queue":"default"}
    {"running":[1,2]}
    {"running":[null,{},1e300,"x"]}
    {"running":1}
    {"paused":"maybe"}
    {"paused":1}
    {"paused":null}
    {"limit":10000000000}
    {"limit":-1}
    {"local_limit":1.5}
    {"local_limit":null,"limit":3}
    {"local_limit":"3"}
    {"uuid":{}}
    {"uuid":"x"}
    {"started_at":"infinity"}
    {"started_at":"now"}
    {"started_at":"2026-01-01T00:00:00Z"}
    {"started_at":"0000-00-00T00:00:00Z"}
    {"started_at":"9999-12-31T23:59:60Z","shutdown_started_at":"-4713-01-01T00:00:00Z"}
    {"started_at":12}
    {"name":"x","node":"y","queue":"z"}
    {"global_limit":{"allowed":1e300}}
    {"rate_limit":{"windows":[{"curr_count":1}]}}
    {"action":"pkill","job_id":1}
    {"é":"日本😀"}
"#;

/// Arrays of texts.
const ARRAYS: &str = r#"
    NULL
    '{}'
    ARRAY[NULL]::text[]
    '{insert,NULL}'
    '{{insert,signal},{gossip,leader}}'
    '[-5:-4]={insert,signal}'
    '[2147483645:2147483646]={a,b}'
    '{""}'
    '{Insert}'
    '{insert,insert,insert}'
    (ARRAY['a', 'insert', NULL])[2:2]
    pg_catalog.array_fill('a'::text, ARRAY[64])
    pg_catalog.array_fill('a'::text, ARRAY[65])
    pg_catalog.array_fill('a'::text, ARRAY[100000])
    pg_catalog.array_fill(NULL::text, ARRAY[10], ARRAY[-3])
    pg_catalog.array_fill('a'::text, ARRAY[2,2,2,2,2,2])
    pg_catalog.string_to_array('a,b,,c', ',')
"#;

/// Arrays of documents.
const ARRAYS_OF_JSON: &str = r#"
    NULL
    '{}'
    ARRAY[NULL]::jsonb[]
    ARRAY['{}', NULL]::jsonb[]
    '{{"{}","{}"},{"{}","[]"}}'
    '[-5:-4]={"{}","{}"}'
    pg_catalog.array_fill('{}'::jsonb, ARRAY[1000])
    pg_catalog.array_fill('{}'::jsonb, ARRAY[1048577])
    (SELECT pg_catalog.array_agg(pg_catalog.jsonb_build_object('i', i)) FROM pg_catalog.generate_series(1, 400) i)
    (SELECT pg_catalog.array_agg(pg_catalog.jsonb_build_object('i', i)) FROM pg_catalog.generate_series(1, 100) i)
"#;

/// Intervals.
const INTERVALS: &str = r#"
    NULL
    '0'
    '1 microsecond'
    '99 ms'
    '100 ms'
    '-1 s'
    '1 day'
    '24:00:00.000001'
    '1 mon -30 days'
    '-1 mon 31 days'
    '366 days'
    '178000000 years'
    '-178000000 years'
    'infinity'
    '-infinity'
    '2147483647 days'
    '-2147483648 mons'
    '2562047788:00:54.775807'
    '-9223372036854775808 microseconds'
    pg_catalog.make_interval(2147483647)
    ''
"#;

/// How a view is asked.
const VIEWED: &str = r#"
    SELECT * FROM ext.{}
    SELECT pg_catalog.count(*) FROM ext.{}
    SELECT * FROM ext.{} LIMIT 1
    SELECT x FROM ext.{} x ORDER BY 1 DESC
    SELECT x FROM pg_catalog.generate_series(1, 20) g, ext.{} x
    SELECT * FROM ext.{} FOR UPDATE
    TABLE ext.{}
"#;

/// The extension and what shadows Postgres' own names.
fn prepare(client: &mut Client) {
    let mut run = |sql: &str| client.batch_execute(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    run("CREATE SCHEMA ext; GRANT USAGE ON SCHEMA ext TO PUBLIC; CREATE EXTENSION obanrs SCHEMA ext");
    run("CREATE ROLE owner LOGIN; CREATE ROLE writer LOGIN; CREATE ROLE nobody LOGIN; CREATE ROLE grouped;
         GRANT grouped TO owner, writer; GRANT CREATE ON DATABASE postgres TO owner; CREATE SCHEMA shadow;
         GRANT USAGE, CREATE ON SCHEMA shadow TO PUBLIC");
    run(RESTORE);
    let raises = format!(
        "LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'shadowed' USING ERRCODE = '{SHADOWED_CODE}'; END $$"
    );
    for kind in
        ["text", "name", "oid", "int4", "int8", "timestamp", "timestamptz", "interval", "jsonb", "bool"]
    {
        run(&format!("CREATE FUNCTION shadow.raise(a {kind}, b {kind}) RETURNS bool {raises}"));
        for operator in ["=", "<>", "<", ">", "<=", ">=", "+", "-", "||", "->", "->>", "~"] {
            let operator =
                format!("shadow.{operator} (FUNCTION = shadow.raise, LEFTARG = {kind}, RIGHTARG = {kind})");
            run(&format!("CREATE OPERATOR {operator}"));
        }
    }
    for function in SHADOWED.lines().map(str::trim).filter(|f| !f.is_empty()) {
        run(&format!("CREATE FUNCTION shadow.{function} RETURNS text {raises}"));
    }
    for table in ["pg_class", "pg_namespace", "pg_database", "pg_trigger", "oban_members", "obanrs_term"] {
        run(&format!("CREATE TABLE shadow.{table} (oid oid, relname name, nspname name)"));
    }
}

/// What a function or operator raises that is called in place of Postgres' own.
const SHADOWED_CODE: &str = "SHADW";

const SHADOWED: &str = "
    now()
    clock_timestamp()
    current_setting(text)
    current_setting(text, bool)
    current_database()
    quote_ident(text)
    quote_literal(text)
    format(text)
    format_type(oid, int4)
    timezone(text, timestamptz)
    pg_notify(text, text)
    to_jsonb(anyelement)
    nextval(regclass)
    lower(text)
    length(text)
    has_table_privilege(oid, text)
    has_schema_privilege(oid, text)
    pg_has_role(oid, text)
    obj_description(oid, name)
    jsonb_array_length(jsonb)
    oban_version()
    oban_position()
    obanrs_memberships()
";

/// What the DDL takes away comes back again and again.
const RESTORE: &str = "
    CREATE SCHEMA IF NOT EXISTS public; GRANT USAGE ON SCHEMA public TO PUBLIC;
    CREATE SCHEMA IF NOT EXISTS app AUTHORIZATION owner; GRANT USAGE ON SCHEMA app TO PUBLIC;
    SET ROLE owner; SELECT ext.oban_install('app'); GRANT INSERT ON app.oban_jobs TO writer; RESET ROLE;
    SELECT ext.oban_install(); GRANT INSERT ON public.oban_jobs TO writer";

fn pick<T: Copy>(dice: &mut Dice, of: &[T]) -> T {
    of[dice.below(of.len() as u64) as usize]
}

/// A line of these, without its indentation.
fn line(dice: &mut Dice, lines: &'static str) -> &'static str {
    let lines: Vec<&str> = lines.trim_matches('\n').lines().collect();
    lines[dice.below(lines.len() as u64) as usize].trim_start()
}

/// One of these, between bars.
fn one_of(dice: &mut Dice, of: &'static str) -> String {
    let of: Vec<&str> = of.split(" | ").collect();
    of[dice.below(of.len() as u64) as usize].to_owned()
}

/// A literal.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A text that is hostile in itself.
fn odd_text(dice: &mut Dice) -> String {
    match dice.below(12) {
        0 => quoted(&"x".repeat(63)),
        1 => quoted(&"x".repeat(64)),
        2 => quoted(&format!("{}x", "é".repeat(31))),
        3 => quoted(&format!("x{}", "é".repeat(32))),
        4 => quoted(pick(dice, &["", " ", "a\nb", "a\r\nb", "\t\u{1}\u{7f}", "\u{202e}abc", "\u{feff}"])),
        5 => line(dice, ODD_TEXTS).into(),
        _ => quoted(&one_of(dice, ODD_WORDS)),
    }
}

const ODD_WORDS: &str = "a.b | . | p\"q | \" | it's | \\ | $1 | %s%n%d | -- | /* | ; DROP TABLE | * | Odd | ünï | 日本語 \
    | 😀 | e\u{301} | NaN | null | pg_catalog | pg_toast | pg_temp | pg_temp_3 | pg_foo | information_schema | shadow \
    | ext | nowhere | PUBLIC | oban_jobs | public.oban_insert | Z: | H4sI | H4sIAAAA | {} | {\"a\":";

/// Texts that the statement makes, or fails to make.
const ODD_TEXTS: &str = r#"
    NULL
    pg_catalog.repeat('x', 255)
    pg_catalog.repeat('x', 256)
    pg_catalog.repeat('日', 100)
    pg_catalog.repeat('x', 8000)
    pg_catalog.repeat('x', 5000000)
    pg_catalog.chr(0)
    E'\xff'
    pg_catalog.convert_from('\xc3', 'UTF8')
"#;

/// Documents that the statement makes.
const LONG_JSON: &str = "
    NULL
    pg_catalog.jsonb_build_object('a', pg_catalog.repeat('x', 7980))
    pg_catalog.jsonb_build_object('a', pg_catalog.repeat('x', 70000))
    pg_catalog.jsonb_build_object('a', pg_catalog.repeat('x', 20000000))
    pg_catalog.jsonb_build_object(pg_catalog.repeat('é', 4000), 1)
    pg_catalog.to_jsonb(pg_catalog.array_fill(1, ARRAY[20000]))
";

/// A payload, a state or whatever else is JSON.
fn odd_json(dice: &mut Dice) -> String {
    match dice.below(8) {
        0 => {
            let depth = pick(dice, &[50usize, 99, 101, 499, 501, 5_000]);
            quoted(&format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth)))
        }
        1 => line(dice, LONG_JSON).into(),
        _ => quoted(line(dice, ODD_JSON)),
    }
}

fn wire(dice: &mut Dice) -> String {
    let json =
        one_of(dice, r#"{} | [1] | {"a":"\u0000"} | {"a":"\ud800"} | 1e1000000 | nonsense | {"a":[[[[]]]]}"#);
    let mut wire = packed(&json);
    match dice.below(5) {
        0 => wire = packed(&"[".repeat(100_000)),
        1 => wire = packed(&format!("\"{}\"", "x".repeat(20_000_000))),
        2 => wire.truncate(dice.below(wire.len() as u64) as usize),
        3 => wire.replace_range(12..13, "A"),
        _ => {}
    }
    quoted(&format!("{}{wire}", pick(dice, &["", "Z:", "z:", " "])))
}

/// Positions, terms and members.
const NUMBERS: &str = "NULL | 0 | -1 | 1 | 2 | 7 | 30 | 2147483648 | 1099511627776 | 9223372036854775807 \
    | -9223372036854775808 | 9223372036854775808 | 'x'";

/// Values of use, by the name of their argument.
const OF_USE: [(&str, &str); 18] = [
    ("after", "NULL | 0 | ext.oban_position()"),
    ("channel", "'insert' | 'gossip' | 'signal' | 'leader' | 'sonar'"),
    ("channels", "'{insert}' | '{gossip,insert,leader,signal}' | '{sonar}'"),
    ("lease", "NULL | '100 ms' | '1 s' | '1 min'"),
    ("max_messages", "1 | 10 | 1000"),
    ("name", "'Oban' | 'Oban' | 'Other'"),
    ("node", "'web.1' | 'web.2' | 'web.3' | pg_catalog.gen_random_uuid()::text"),
    ("payload", "'{}' | '{\"queue\": \"default\"}' | '{\"a\": 1}'"),
    ("payloads", "ARRAY['{}']::jsonb[] | ARRAY['{\"a\": 1}', '{\"b\": 2}']::jsonb[]"),
    ("prefix", "'public' | 'public' | 'app' | 'r1' | 'r2' | 'R 3' | 'p\"q'"),
    ("queue", "'default' | 'mail'"),
    ("replace", "true | false"),
    (
        "state",
        "'{}' | '{\"limit\": 10, \"running\": [1], \"paused\": false}' | pg_catalog.jsonb_build_object('pad', pg_catalog.repeat('x', 20000))",
    ),
    ("stage", "NULL | NULL | false"),
    ("timeout", "'0' | '1 ms' | '50 ms'"),
    ("ttl", "NULL | '1 s' | '1 min'"),
    ("wire", "'{}' | 'H4sIAAAAAAAAA6uuBQBDv6ajAgAAAA=='"),
    ("term", "1 | (SELECT o.term FROM ext.oban_leadership o LIMIT 1)"),
];

/// A value for an argument: of use, or hostile.
fn value(dice: &mut Dice, name: &str, kind: &str, hostile: bool) -> String {
    if !hostile && let Some((_, of_use)) = OF_USE.iter().find(|(of, _)| *of == name) {
        return one_of(dice, of_use);
    }
    match kind {
        "text" if name == "wire" && dice.below(2) == 0 => wire(dice),
        "text" => odd_text(dice),
        "text[]" => match dice.below(3) {
            0 => format!("ARRAY['insert', {}]::text[]", odd_text(dice)),
            _ => line(dice, ARRAYS).into(),
        },
        "jsonb" => odd_json(dice),
        "jsonb[]" => match dice.below(3) {
            0 => format!("ARRAY['{{}}', {}]::jsonb[]", odd_json(dice)),
            _ => line(dice, ARRAYS_OF_JSON).into(),
        },
        "bigint" => one_of(dice, NUMBERS),
        "integer" => one_of(dice, "NULL | 0 | -1 | 1 | 2147483647 | -2147483648 | 2147483648 | 1e300"),
        "boolean" => one_of(dice, "NULL | true | false"),
        "interval" => line(dice, INTERVALS).into(),
        other => panic!("what is a hostile {other}? Say so here"),
    }
}

/// A view or sequence of the extension, or a function: what it is called, and a statement.
struct Call {
    object: String,
    sql: String,
}

/// What all sessions share.
struct World {
    cluster: Cluster,
    functions: Vec<Function>,
    relations: Vec<String>,
    stop: AtomicBool,
    calls: AtomicU64,
    tally: Mutex<Tally>,
}

#[derive(Default)]
struct Tally {
    /// By whether it is a call, and its SQLSTATE: how many, and by which objects, each with an example.
    codes: BTreeMap<(bool, String), (u64, BTreeMap<String, String>)>,
    succeeded: BTreeSet<String>,
    called: BTreeSet<String>,
    slowest: (Duration, String),
    lost: u64,
    /// What should not have come.
    wrong: BTreeSet<String>,
}

/// Ends the sessions also when the test fails.
struct Stop(Arc<World>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// Whether a call of an object, or a statement beside, may end so.
fn is_right(object: Option<&str>, code: &str, message: &str) -> bool {
    let is_listed = |list: &[(&str, &str)]| list.iter().any(|(listed, _)| *listed == code);
    let is_own = || OWN_MESSAGES.iter().any(|(of, begins, _)| *of == code && message.starts_with(begins));
    let is_announced = || match object.and_then(announced) {
        Some(codes) => codes.contains(code) || is_own(),
        None => is_listed(&ANNOUNCED),
    };
    let was_dropped = || DROPPED_UNDER_WAY.iter().any(|dropped| message.starts_with(dropped));
    match object.is_some() {
        _ if code == "00000" => true,
        true => is_listed(&EXPECTED) || is_announced() || was_dropped(),
        // DDL of others may end as it likes.
        false if code.starts_with("XX") => OWN_RACES.iter().any(|race| message.contains(race)),
        false => code != SHADOWED_CODE,
    }
}

impl World {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn note(&self, object: Option<&str>, code: &str, example: &str, took: Duration) {
        let shown: String = example.chars().take(700).collect();
        let mut tally = self.tally.lock().expect("no session panicked");
        if !is_right(object, code, example) && tally.wrong.len() < 100 {
            tally.wrong.insert(format!("{code} {}: {shown}", object.unwrap_or_default()));
        }
        if took > tally.slowest.0 {
            tally.slowest = (took, shown.clone());
        }
        let (count, of) = tally.codes.entry((object.is_some(), code.to_owned())).or_default();
        *count += 1;
        of.entry(object.unwrap_or_default().to_owned()).or_insert(shown);
        if let Some(object) = object {
            self.calls.fetch_add(1, Ordering::Relaxed);
            tally.called.insert(object.to_owned());
            if code == "00000" {
                tally.succeeded.insert(object.to_owned());
            }
        }
    }
}

/// One connection after another, in one thread.
struct Session<'a> {
    world: &'a World,
    dice: Dice,
    client: Client,
    /// Members that it joined, and perhaps left.
    members: Vec<i64>,
}

impl<'a> Session<'a> {
    fn new(world: &'a World, seed: u64) -> Self {
        let client = world.cluster.client();
        Self { world, dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)), client, members: Vec::new() }
    }

    fn connect(&mut self, roles: &[&'static str]) {
        let role = pick(&mut self.dice, roles);
        // A server that can't be reached is found by the watch.
        while !self.world.stopped() {
            match self.world.cluster.try_client("postgres", role) {
                Ok(client) => return self.client = client,
                Err(_) => self.dice.pause(20),
            }
        }
    }

    /// Runs a statement and counts how it ended.
    fn run(&mut self, object: Option<&str>, sql: &str) -> Option<Vec<SimpleQueryMessage>> {
        if self.client.is_closed() {
            return None;
        }
        let since = Instant::now();
        let answer = self.client.simple_query(sql);
        let took = since.elapsed();
        match answer {
            Ok(rows) => {
                self.world.note(object, "00000", sql, took);
                Some(rows)
            }
            Err(error) => {
                match error.as_db_error() {
                    Some(e) => {
                        let within = e.where_().unwrap_or_default();
                        let example = format!("{} {within}<- {sql}", e.message());
                        self.world.note(object, e.code().code(), &example, took);
                    }
                    None => self.world.tally.lock().expect("no session panicked").lost += 1,
                }
                None
            }
        }
    }

    fn call(&mut self, call: &Call) {
        let Some(rows) = self.run(Some(&call.object), &call.sql) else { return };
        if call.object == "oban_join"
            && let Some(SimpleQueryMessage::Row(row)) =
                rows.iter().find(|m| matches!(m, SimpleQueryMessage::Row(_)))
            && let Some(member) = row.get(0).and_then(|m| m.parse().ok())
        {
            self.members.push(member);
        }
    }

    /// Any function, procedure, view or sequence, with any arguments.
    fn any(&mut self) -> Call {
        let world = self.world;
        let functions = world.functions.len() as u64;
        let nth = self.dice.below(functions + world.relations.len() as u64 + 8);
        if nth >= functions {
            let relation = &world.relations[((nth - functions) as usize) % world.relations.len()];
            return self.view(relation);
        }
        self.function(&world.functions[nth as usize])
    }

    /// The same, but for what can't be prepared.
    fn query(&mut self) -> Call {
        loop {
            let call = self.any();
            if !call.sql.starts_with("CALL") && !call.sql.starts_with("EXPLAIN") {
                return call;
            }
        }
    }

    fn view(&mut self, relation: &str) -> Call {
        let form = line(&mut self.dice, VIEWED);
        let sql = if relation == "obanrs_term" && self.dice.below(8) == 0 {
            "SELECT pg_catalog.nextval('ext.obanrs_term')".into()
        } else {
            form.replace("{}", relation)
        };
        Call { object: relation.into(), sql }
    }

    fn function(&mut self, function: &Function) -> Call {
        let hostility = pick(&mut self.dice, &[0, 10, 30, 100]);
        let mut values: Vec<(&str, String)> = Vec::new();
        for (name, kind, _) in &function.arguments {
            let hostile = self.dice.below(100) < hostility;
            let own = name == "member" && !self.members.is_empty() && !hostile;
            let value = if own {
                pick(&mut self.dice, &self.members).to_string()
            } else {
                value(&mut self.dice, name, kind, hostile)
            };
            // What CALL is given is no query.
            let called = function.name.ends_with("oban_wait") && value.starts_with("(SELECT");
            values.push((name, if called { "NULL".into() } else { value }));
        }
        let values: Vec<(&str, &str)> = values.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut sql = function.call(&values);
        if let Some(call) = sql.strip_prefix("SELECT * FROM ") {
            sql = match self.dice.below(10) {
                0 => format!("SELECT {call}"),
                1 => format!("SELECT x FROM pg_catalog.generate_series(1, 3) g, LATERAL {call} x"),
                2 => format!("EXPLAIN ANALYZE SELECT {call}"),
                3 => format!("SELECT (SELECT x FROM {call} x LIMIT 1) FROM pg_catalog.generate_series(1, 3)"),
                _ => sql,
            };
        }
        Call { object: function.name.strip_prefix("ext.").expect("it is qualified").into(), sql }
    }

    fn set_something(&mut self) {
        let mut set = line(&mut self.dice, SET).to_owned();
        if self.dice.below(8) == 0 {
            let check = r#"{"name":"Oban","node":"n","queue":"q","#;
            let payload = match self.dice.below(3) {
                0 => odd_json(&mut self.dice),
                1 => quoted(&odd_json(&mut self.dice).trim_matches('\'').replacen('{', check, 1)),
                _ => wire(&mut self.dice),
            };
            let channel = pick(&mut self.dice, &["public.oban_gossip", "app.oban_gossip", "r1.oban_gossip"]);
            set = format!("SELECT pg_catalog.pg_notify('{channel}', {payload})");
        }
        self.run(None, &set);
    }

    /// Some calls, in some kind of transaction.
    fn situation(&mut self) {
        let world = self.world;
        match self.dice.below(12) {
            0 => self.set_something(),
            1..=3 => self.transaction(),
            4 => self.caught(),
            5 => {
                // One message, so one transaction.
                let first = self.any();
                let second = match world.functions.iter().find(|f| f.name == format!("ext.{}", first.object))
                {
                    Some(function) => self.function(function),
                    None => self.view(&first.object),
                };
                let sql = format!("{}; {}", first.sql, second.sql);
                self.run(Some(&first.object), &sql);
            }
            6 => {
                let call = self.query();
                self.run(Some(&call.object), &format!("PREPARE hostile AS {}", call.sql));
                for _ in 0..self.dice.below(8) {
                    self.run(Some(&call.object), "EXECUTE hostile");
                }
                self.run(None, "DEALLOCATE ALL");
            }
            7 => {
                let call = self.query();
                let hold = pick(&mut self.dice, &["", "WITH HOLD"]);
                self.run(None, "BEGIN");
                self.run(Some(&call.object), &format!("DECLARE hostile CURSOR {hold} FOR {}", call.sql));
                self.run(Some(&call.object), "FETCH 1 FROM hostile");
                let end = pick(&mut self.dice, &["COMMIT", "ROLLBACK"]);
                self.run(None, end);
                self.run(Some(&call.object), "FETCH ALL FROM hostile");
                self.run(None, "CLOSE ALL");
            }
            _ => {
                let call = self.any();
                self.call(&call);
            }
        }
    }

    fn transaction(&mut self) {
        let begin = pick(
            &mut self.dice,
            &[
                "BEGIN",
                "BEGIN",
                "BEGIN READ ONLY",
                "BEGIN ISOLATION LEVEL REPEATABLE READ",
                "BEGIN ISOLATION LEVEL SERIALIZABLE",
                "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
            ],
        );
        self.run(None, begin);
        for _ in 0..1 + self.dice.below(4) {
            let saved = self.dice.below(4) > 0;
            if saved {
                self.run(None, "SAVEPOINT hostile");
            }
            let call = self.any();
            self.call(&call);
            if saved {
                let end = pick(
                    &mut self.dice,
                    &[
                        "ROLLBACK TO hostile",
                        "ROLLBACK TO hostile",
                        "RELEASE hostile",
                        "ROLLBACK TO hostile; RELEASE hostile",
                        "",
                    ],
                );
                self.run(None, end);
            }
        }
        match self.dice.below(6) {
            0 => {
                let id = format!("'hostile {}'", self.dice.below(1 << 30));
                self.run(None, &format!("PREPARE TRANSACTION {id}"));
                let end = pick(&mut self.dice, &["COMMIT", "ROLLBACK"]);
                self.run(None, "ROLLBACK");
                self.run(None, &format!("{end} PREPARED {id}"));
            }
            1 | 2 => drop(self.run(None, "ROLLBACK")),
            3 => drop(self.run(None, "COMMIT AND CHAIN; COMMIT")),
            _ => drop(self.run(None, "COMMIT")),
        }
    }

    /// In PL/pgSQL, which goes on after an error.
    fn caught(&mut self) {
        let calls: Vec<Call> = (0..1 + self.dice.below(4)).map(|_| self.any()).collect();
        let mut body = String::new();
        for (i, call) in calls.iter().enumerate() {
            body.push_str(&format!(
                "FOR i IN 1..2 LOOP
                    BEGIN
                        EXECUTE $hostile${}$hostile$;
                        PERFORM pg_catalog.set_config('hostile.c{i}', '00000', false);
                    EXCEPTION WHEN OTHERS THEN
                        PERFORM pg_catalog.set_config('hostile.c{i}', SQLSTATE, false),
                                pg_catalog.set_config('hostile.m{i}', SQLERRM, false);
                    END;
                 END LOOP; ",
                call.sql
            ));
        }
        if self.run(None, &format!("DO $do$ BEGIN {body} END $do$")).is_none() {
            return;
        }
        for (i, call) in calls.iter().enumerate() {
            let ask = format!(
                "SELECT pg_catalog.current_setting('hostile.c{i}', true), pg_catalog.current_setting('hostile.m{i}', true)"
            );
            let Some(rows) = self.run(None, &ask) else { return };
            if let Some(SimpleQueryMessage::Row(row)) =
                rows.iter().find(|m| matches!(m, SimpleQueryMessage::Row(_)))
                && let Some(code) = row.get(0).filter(|code| !code.is_empty())
            {
                let example = format!("{} <- caught: {}", row.get(1).unwrap_or_default(), call.sql);
                self.world.note(Some(&call.object), code, &example, Duration::ZERO);
            }
        }
    }

    /// Calls from many connections, until it is told to stop.
    fn work(&mut self) {
        while !self.world.stopped() {
            self.connect(&ROLES);
            for _ in 0..10 + self.dice.below(100) {
                if self.world.stopped() || self.client.is_closed() {
                    break;
                }
                self.situation();
            }
        }
    }

    /// DDL and DML on the tables of prefixes, beside the sessions that call.
    fn alter(&mut self, roles: &[&'static str]) {
        while !self.world.stopped() {
            self.connect(roles);
            for _ in 0..200 {
                if self.world.stopped() || self.client.is_closed() {
                    break;
                }
                match self.dice.below(40) {
                    0..=2 => drop(self.run(None, RESTORE)),
                    3..=8 => {
                        let function =
                            pick(&mut self.dice, &["oban_install", "oban_uninstall", "oban_install"]);
                        let prefix = value(&mut self.dice, "prefix", "text", false);
                        self.call(&Call {
                            object: function.into(),
                            sql: format!("SELECT ext.{function}({prefix})"),
                        });
                    }
                    _ => {
                        let sql = ddl(&mut self.dice);
                        self.run(None, &sql);
                    }
                }
                self.dice.pause(15);
            }
        }
    }

    /// Cancels and terminates sessions and workers, finishes what was prepared, drops the extension.
    fn sabotage(&mut self, rarely: u64) {
        while !self.world.stopped() {
            self.connect(&["postgres"]);
            while !self.world.stopped() && !self.client.is_closed() {
                let victims = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename IS NOT NULL
                    AND backend_type = 'client backend' AND application_name <> 'watch' ORDER BY random() LIMIT 1";
                let workers =
                    "FROM pg_stat_activity WHERE backend_type LIKE 'obanrs%' ORDER BY random() LIMIT 1";
                let sql = match self.dice.below(rarely) {
                    0 => "DROP EXTENSION obanrs CASCADE".into(),
                    1 => "DROP SCHEMA ext CASCADE".into(),
                    2 => format!("SELECT pg_terminate_backend(pid) {workers}"),
                    3..6 => format!("SELECT pg_cancel_backend(pid) {workers}"),
                    n if n % 7 == 0 => format!("SELECT pg_terminate_backend(pid) {victims}"),
                    _ => format!("SELECT pg_cancel_backend(pid) {victims}"),
                };
                if self.run(None, &sql).is_some() && sql.starts_with("DROP") {
                    self.dice.pause(100);
                }
                self.finish_prepared("now() - prepared > '300 ms'");
                self.extension_again();
                self.dice.pause(60);
            }
        }
        self.connect_for_good();
        wait_until("the extension is there", || self.extension_again());
        wait_until("nothing is prepared", || self.finish_prepared("true"));
    }

    fn connect_for_good(&mut self) {
        self.client = self.world.cluster.client();
        self.client.batch_execute("SET statement_timeout = 0; SET lock_timeout = 0").expect("it is up");
    }

    fn extension_again(&mut self) -> bool {
        let again = "CREATE SCHEMA IF NOT EXISTS ext; GRANT USAGE ON SCHEMA ext TO PUBLIC;
            CREATE EXTENSION IF NOT EXISTS obanrs SCHEMA ext";
        self.client.batch_execute(again).is_ok()
    }

    /// What was prepared by sessions that did not live to finish it.
    fn finish_prepared(&mut self, which: &str) -> bool {
        let sql = format!("SELECT gid FROM pg_prepared_xacts WHERE {which}");
        let Ok(rows) = self.client.query(&sql, &[]) else { return false };
        rows.iter().all(|row| {
            let rollback = format!("ROLLBACK PREPARED {}", quoted(row.get::<_, &str>(0)));
            self.client.batch_execute(&rollback).is_ok()
        })
    }
}

/// Tables named oban_jobs and oban_peers of every shape, and what can be done to them.
fn ddl(dice: &mut Dice) -> String {
    let sql =
        if dice.below(4) == 0 { format!("CREATE {}", line(dice, SHAPES)) } else { line(dice, ACTS).into() };
    let mut raced = || {
        let nth = dice.below(20) as usize;
        RACED[if nth < RACED.len() { nth } else { nth % 3 }]
    };
    let (p, q) = (raced(), raced());
    let sql = sql.replace("{p}", p).replace("{q}", q);
    sql.replace("{t}", pick(dice, &["oban_jobs", "oban_peers"]))
}

enum Until {
    Calls(u64),
    Seconds(u64),
}

fn relations(client: &mut Client) -> Vec<String> {
    let sql = "SELECT c.relname::text FROM pg_depend d
        JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'obanrs'
        JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
        WHERE d.deptype = 'e' ORDER BY 1";
    client.query(sql, &[]).expect("the catalogs can be read").iter().map(|row| row.get(0)).collect()
}

fn run(until: &Until, rarely: u64) {
    let seed = std::env::var("OBANRS_HOSTILE_SEED").map(|s| s.parse().expect("a number"));
    let seed: u64 = seed.unwrap_or_else(|_| match until {
        Until::Calls(_) => 1,
        Until::Seconds(_) => SystemTime::UNIX_EPOCH.elapsed().expect("it is later").as_secs(),
    });
    eprintln!("OBANRS_HOSTILE_SEED={seed}");
    let cluster = Cluster::start(&SETTINGS);
    let mut client = cluster.client();
    prepare(&mut client);
    let mut functions = functions_like(&mut client, "%");
    functions.iter_mut().for_each(|f| f.name = format!("ext.{}", f.name));
    let relations = relations(&mut client);
    assert!(relations.len() > 4, "{relations:?}");
    let mut watch = Watch::begin(&cluster);
    watch.client.batch_execute("SET application_name = 'watch'; SET statement_timeout = 0").unwrap();
    let world = Arc::new(World {
        cluster,
        functions,
        relations,
        stop: AtomicBool::new(false),
        calls: AtomicU64::new(0),
        tally: Mutex::default(),
    });
    let stop = Stop(world.clone());
    let spawn = |nth: u64, work: fn(&mut Session, u64)| {
        let world = world.clone();
        std::thread::spawn(move || work(&mut Session::new(&world, seed.wrapping_mul(100) + nth), rarely))
    };
    let mut threads = Vec::new();
    for nth in 0..6 {
        threads.push(spawn(nth, |session, _| session.work()));
    }
    // What races beside may bring an outcome that nobody has met yet: that is for a soak.
    if matches!(until, Until::Seconds(_)) {
        threads.push(spawn(10, |session, _| session.alter(&["owner"])));
        threads.push(spawn(11, |session, _| session.alter(&["postgres", "owner"])));
        threads.push(spawn(12, |session, rarely| session.sabotage(rarely)));
    }

    let since = Instant::now();
    let on = || match until {
        Until::Calls(calls) => world.calls.load(Ordering::Relaxed) < *calls,
        Until::Seconds(seconds) => since.elapsed() < Duration::from_secs(*seconds),
    };
    while on() {
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(watch.client.query_one("SELECT 1", &[]).expect("the server lives").get::<_, i32>(0), 1);
        let ended = threads.iter().any(|t| t.is_finished());
        assert!(!ended, "a session panicked");
    }
    drop(stop);
    threads.into_iter().for_each(|t| t.join().expect("no session panicked"));
    let took = since.elapsed();

    let tally = world.tally.lock().expect("no session panicked");
    report(&tally, took);
    watch.nothing_has_ended(&world.cluster, "hostile use");
    let log = world.cluster.log();
    let fateful: Vec<&str> = log.lines().filter(|line| FATEFUL.iter().any(|f| line.contains(f))).collect();
    assert!(fateful.is_empty(), "in the log: {fateful:#?}");
    let of_workers: BTreeSet<&str> = log
        .lines()
        .filter_map(|line| line.split_once("] obanrs ").map(|(_, what)| what))
        .filter(|what| what.contains(" XX"))
        .collect();
    assert!(of_workers.is_empty(), "workers: {of_workers:#?}");
    judge(&tally, &world);
    drop(tally);
    all_is_well(&world.cluster, &mut watch);
}

fn report(tally: &Tally, took: Duration) {
    for calls in [true, false] {
        let of: Vec<_> = tally.codes.iter().filter(|((call, _), _)| *call == calls).collect();
        let all: u64 = of.iter().map(|(_, (count, _))| count).sum();
        eprintln!("{all} {} in {took:.0?}", if calls { "calls" } else { "statements beside" });
        for ((_, code), (count, of)) in of {
            let objects: Vec<&str> = of.keys().map(String::as_str).collect();
            eprintln!("  {code} {count:>8}  {}", objects.join(" "));
        }
    }
    eprintln!(
        "{} connections were lost; the slowest took {:.1?}: {}",
        tally.lost, tally.slowest.0, tally.slowest.1
    );
    if std::env::var_os("OBANRS_HOSTILE_EXAMPLES").is_some() {
        for ((_, code), (_, of)) in &tally.codes {
            of.iter().for_each(|(object, example)| eprintln!("{code} {object}: {example}"));
        }
    }
}

fn judge(tally: &Tally, world: &World) {
    assert!(tally.wrong.is_empty(), "wrong outcomes: {:#?}", tally.wrong);
    let all: BTreeSet<String> = world
        .functions
        .iter()
        .map(|f| f.name.trim_start_matches("ext.").to_owned())
        .chain(world.relations.iter().cloned())
        .collect();
    assert_eq!(all, tally.called, "each was called");
    let failed: Vec<_> = all.difference(&tally.succeeded).collect();
    assert!(failed.iter().all(|f| TRIGGERS.contains(&f.as_str())), "none succeeded: {failed:?}");
    assert!(tally.slowest.0 < Duration::from_secs(20), "{:?}", tally.slowest);
}

const TRIGGERS: [&str; 2] = ["obanrs_jobs_insert", "obanrs_peers"];

/// After all of it, a member of a new prefix leads within a moment.
fn all_is_well(cluster: &Cluster, watch: &mut Watch) {
    let client = &mut watch.client;
    let idle = "SELECT count(*) = 0 FROM pg_locks l JOIN pg_stat_activity a USING (pid)
        WHERE a.backend_type LIKE 'obanrs%' AND l.locktype <> 'virtualxid'";
    let run = "SELECT count(*) = 3 FROM ext.oban_workers w JOIN pg_stat_activity a USING (pid)
        WHERE w.state = 'running' AND (w.database = 'postgres' OR w.kind = 'coordinator')";
    wait_until("the workers run", || client.one(run));
    client.batch_execute("SELECT ext.oban_leave(member) FROM ext.oban_members").unwrap();
    client.batch_execute("SELECT ext.oban_install('afterwards')").unwrap();
    let mut member = cluster.client();
    let since = Instant::now();
    member.batch_execute("SELECT ext.oban_join('new', prefix => 'afterwards')").unwrap();
    wait_until("it leads", || member.one("SELECT ext.oban_is_leader(prefix => 'afterwards')"));
    let took = since.elapsed();
    assert!(took < Duration::from_secs(5), "it led after {took:?}");
    member.batch_execute("SELECT ext.oban_listen_channels(prefix => 'afterwards')").unwrap();
    client.batch_execute("INSERT INTO afterwards.oban_jobs (worker) VALUES ('w')").unwrap();
    let mut notifications = member.notifications();
    let mut iter = notifications.timeout_iter(Duration::from_secs(10));
    wait_until("it hears of the job", || {
        iter.next().expect("the connection is open").is_some_and(|n| n.channel() == "afterwards.oban_insert")
    });
    wait_until("the workers hold no locks", || client.one(idle));
}

/// A few thousand calls, with nothing racing beside.
#[test]
fn hostile_calls_end_with_what_was_announced() {
    run(&Until::Calls(8_000), 150);
}

#[test]
#[ignore = "an hour: make soak"]
fn soak_hostile_calls() {
    let seconds = std::env::var("OBANRS_SOAK_SECONDS").map_or(3_600, |s| s.parse().expect("a number"));
    run(&Until::Seconds(seconds), 400);
}

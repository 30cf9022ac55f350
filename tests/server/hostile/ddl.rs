//! What do other sessions do meanwhile to tables, schemas, sessions and the extension?

use super::arguments::{line, pick, quoted, value};
use super::sessions::{Call, Session};
use super::setup::RESTORE;
use crate::splitbrain::Dice;
use crate::support::wait_until;

/// Schemas that DDL works on, as identifiers.
const RACED: [&str; 6] = ["r1", "r2", "\"R 3\"", "app", "public", "\"p\"\"q\""];

/// Tables named oban_jobs and oban_peers, and other objects of these names, of every shape.
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

/// Statements on those tables and their schemas. {p} and {q} are schemas, {t} is either table.
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

/// Returns a statement that creates one of the tables, or changes something about them.
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

impl Session<'_> {
    /// Runs DDL and DML on the tables of prefixes, beside the sessions that call.
    pub fn alter(&mut self, roles: &[&'static str]) {
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

    /// Cancels and terminates sessions and workers, finishes prepared transactions, and drops the extension.
    pub fn sabotage(&mut self, rarely: u64) {
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

    /// Rolls back the prepared transactions whose sessions ended. Returns false if one is left.
    fn finish_prepared(&mut self, which: &str) -> bool {
        let sql = format!("SELECT gid FROM pg_prepared_xacts WHERE {which}");
        let Ok(rows) = self.client.query(&sql, &[]) else { return false };
        rows.iter().all(|row| {
            let rollback = format!("ROLLBACK PREPARED {}", quoted(row.get::<_, &str>(0)));
            self.client.batch_execute(&rollback).is_ok()
        })
    }
}

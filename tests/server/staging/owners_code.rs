//! A table's owner writes code that the stager runs. It runs with the owner's rights and no more, and it
//! costs that prefix only.

use postgres::Client;

use super::{becomes_available, running, schedule, sleeps, stager};
use crate::support::{Ask, Cluster, heard, wait_until};

/// Starts a server with two roles that own a prefix each of their own name, and with the prefix public.
pub fn tenants() -> (Cluster, Client) {
    let cluster = Cluster::installed();
    let mut root = cluster.client();
    root.batch_execute(
        "CREATE ROLE eve LOGIN; CREATE ROLE bob LOGIN; GRANT CREATE ON DATABASE postgres TO eve, bob",
    )
    .unwrap();
    for tenant in ["eve", "bob"] {
        let mut client = cluster.client_as("postgres", tenant);
        client.batch_execute(&format!("SELECT oban_install('{tenant}')")).unwrap();
    }
    for prefix in ["public", "eve", "bob"] {
        sleeps(&mut root, prefix);
    }
    (cluster, root)
}

/// Creates a trigger on eve's table with this body.
pub fn code(eve: &mut Client, timing: &str, body: &str) {
    eve.batch_execute(&format!(
        "CREATE OR REPLACE FUNCTION eve.act() RETURNS trigger LANGUAGE plpgsql AS $act$ {body} $act$;
         DROP TRIGGER IF EXISTS act ON eve.oban_jobs;
         CREATE TRIGGER act {timing} UPDATE ON eve.oban_jobs FOR EACH ROW EXECUTE FUNCTION eve.act()"
    ))
    .unwrap();
}

#[test]
fn owners_code_runs_as_the_owner() {
    let (cluster, mut root) = tenants();
    let mut eve = cluster.client_as("postgres", "eve");
    eve.batch_execute("CREATE TABLE eve.seen (who text)").unwrap();
    code(
        &mut eve,
        "BEFORE",
        "BEGIN
            INSERT INTO eve.seen VALUES (current_user || ' ' || session_user || ' ' || current_setting('is_superuser'));
            BEGIN RESET ROLE; SET SESSION AUTHORIZATION DEFAULT; EXCEPTION WHEN OTHERS THEN NULL; END;
            INSERT INTO eve.seen VALUES (current_user || ' ' || session_user || ' ' || current_setting('is_superuser'));
            RETURN NEW;
         END",
    );
    let id = schedule(&mut root, "eve", "q", 50);
    becomes_available(&mut root, "eve", id);
    let seen: String = root.one("SELECT string_agg(DISTINCT who, ', ') FROM eve.seen");
    assert_eq!(seen, "eve eve off");
}

/// Code that waits or loops ends its stager, whatever it catches, and nothing else waits for it.
#[test]
fn code_that_does_not_end_costs_only_its_own_prefix() {
    let (cluster, mut root) = tenants();
    let mut eve = cluster.client_as("postgres", "eve");
    let before = sleeps(&mut root, "eve");
    code(
        &mut eve,
        "BEFORE",
        "BEGIN LOOP BEGIN PERFORM pg_sleep(0.1); EXCEPTION WHEN OTHERS OR query_canceled THEN NULL; END; END LOOP; END",
    );
    schedule(&mut root, "eve", "q", 0);
    let busy = format!("SELECT count(*) = 1 FROM pg_stat_activity WHERE pid = {before} AND state = 'active'");
    wait_until("it runs the code", || root.one(&busy));
    // Meanwhile others are staged, elected and sent.
    let mut listener = cluster.client();
    listener.batch_execute("SELECT oban_listen_channels('{insert}', 'bob')").unwrap();
    for prefix in ["bob", "public"] {
        let id = schedule(&mut root, prefix, "q", 100);
        becomes_available(&mut root, prefix, id);
    }
    wait_until("its queue is woken", || !heard(&mut listener).is_empty());
    root.batch_execute("SELECT oban_join('n', 'Oban', '1 hour', prefix => 'eve')").unwrap();
    wait_until("eve's prefix has a leader", || {
        root.one("SELECT oban_is_leader(node => 'n', prefix => 'eve')")
    });
    root.query_one("SELECT pg_cancel_backend($1)", &[&before]).unwrap();
    assert!(root.one::<bool>(&busy), "a cancel does not end it");

    for times in 1..=2 {
        wait_until("its stager has ended", || stager(&mut root, "eve").is_some_and(|s| s.restarts >= times));
    }
    wait_until("it is said", || {
        stager(&mut root, "eve").is_some_and(|s| s.last_error.contains("took longer than 10 s"))
    });
    let line =
        "has set a due job of prefix \"eve\" in database \"postgres\" aside: a transaction took longer";
    wait_until("it is logged", || cluster.log().contains(line));
    let log = cluster.log();
    assert!(!log.contains("FATAL"), "{log}");
}

/// At the commit, deferred code of the owner's runs, too.
#[test]
fn code_that_is_deferred_is_ended_as_well() {
    let (cluster, mut root) = tenants();
    let mut eve = cluster.client_as("postgres", "eve");
    eve.batch_execute(
        "CREATE FUNCTION eve.slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(3600); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON eve.oban_jobs DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION eve.slow()",
    )
    .unwrap();
    running(&mut root, "eve");
    schedule(&mut root, "eve", "q", 0);
    for times in 1..=2 {
        wait_until("its stager has ended", || stager(&mut root, "eve").is_some_and(|s| s.restarts >= times));
    }
    let seen = stager(&mut root, "eve").unwrap();
    assert!(seen.last_error.contains("took longer than 10 s"), "{seen:?}");
    let id = schedule(&mut root, "bob", "q", 0);
    becomes_available(&mut root, "bob", id);
}

/// A table of a superuser's whose code belongs to somebody else is left out, as the code would run with a
/// superuser's rights.
#[test]
fn a_superusers_table_with_foreign_code_is_left_out() {
    let (cluster, mut root) = tenants();
    root.batch_execute(
        "CREATE TABLE public.proof (who text); GRANT ALL ON public.proof TO PUBLIC; GRANT CREATE ON SCHEMA public TO eve;
         GRANT TRIGGER ON oban_jobs TO eve",
    )
    .unwrap();
    let mut eve = cluster.client_as("postgres", "eve");
    eve.batch_execute(
        "CREATE FUNCTION eve.act() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO public.proof VALUES (current_user); RETURN NEW; END $$;
         CREATE FUNCTION eve.fine(text) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true';
         CREATE FUNCTION eve.same(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
         BEGIN INSERT INTO public.proof VALUES (current_user); RETURN $1; END $$;
         CREATE DOMAIN eve.word AS text; GRANT USAGE ON SCHEMA eve TO PUBLIC",
    )
    .unwrap();
    let alone = |root: &mut Client, what: &str, undo: &str| {
        let id = schedule(root, "public", "q", 100);
        wait_until(what, || {
            stager(root, "public").is_some_and(|s| s.state == "backoff" && s.last_error.contains("eve"))
        });
        let seen = stager(root, "public").unwrap();
        assert!(seen.last_error.contains("its owner is a superuser"), "{seen:?}");
        assert_eq!(root.one::<i64>("SELECT count(*) FROM public.proof"), 0, "{what}");
        root.batch_execute(undo).unwrap();
        // It recovers by itself, after a delay, or at once if it is installed anew.
        root.batch_execute("SELECT oban_install(stage => false); SELECT oban_install(stage => true)")
            .unwrap();
        becomes_available(root, "public", id);
        sleeps(root, "public");
        root.batch_execute("TRUNCATE public.proof, oban_jobs").unwrap();
    };
    eve.batch_execute(
        "CREATE TRIGGER act BEFORE UPDATE ON public.oban_jobs FOR EACH ROW EXECUTE FUNCTION eve.act()",
    )
    .unwrap();
    alone(&mut root, "a trigger", "DROP TRIGGER act ON oban_jobs");
    root.batch_execute("ALTER TABLE oban_jobs ADD CONSTRAINT foreign_code CHECK (eve.fine(queue)) NOT VALID")
        .unwrap();
    alone(&mut root, "a constraint", "ALTER TABLE oban_jobs DROP CONSTRAINT foreign_code");
    root.batch_execute("CREATE INDEX foreign_code ON oban_jobs (eve.same(queue)) WHERE state = 'available'")
        .unwrap();
    alone(&mut root, "an index", "DROP INDEX foreign_code");
    root.batch_execute("ALTER TABLE oban_jobs ADD word eve.word").unwrap();
    eve.batch_execute("ALTER DOMAIN eve.word ADD CHECK (eve.fine(VALUE)) NOT VALID").unwrap();
    alone(&mut root, "a domain", "ALTER TABLE oban_jobs DROP word");
    // What others build on the table does not keep it from being staged.
    root.batch_execute("GRANT SELECT ON oban_jobs TO eve").unwrap();
    eve.batch_execute("CREATE VIEW eve.jobs AS SELECT eve.same(queue) FROM public.oban_jobs").unwrap();
    let pid = sleeps(&mut root, "public");
    let id = schedule(&mut root, "public", "q", 50);
    becomes_available(&mut root, "public", id);
    assert_eq!(sleeps(&mut root, "public"), pid);
}

/// The owner of a schema gives its name to another one, again and again, while a table in it is staged. No
/// code of the table in its place runs as the owner of the first.
#[test]
fn a_schema_that_takes_anothers_place_gets_no_code_run() {
    let cluster = Cluster::with_extension();
    let mut root = cluster.client();
    root.batch_execute(
        "CREATE ROLE dbo LOGIN; CREATE ROLE vic LOGIN; ALTER DATABASE postgres OWNER TO dbo;
         CREATE SCHEMA place AUTHORIZATION dbo; CREATE SCHEMA decoy AUTHORIZATION dbo;
         GRANT ALL ON SCHEMA place, decoy TO PUBLIC; CREATE TABLE proof (who text); GRANT ALL ON proof TO PUBLIC",
    )
    .unwrap();
    cluster.client_as("postgres", "vic").batch_execute("SELECT oban_install('place')").unwrap();
    let mut dbo = cluster.client_as("postgres", "dbo");
    dbo.batch_execute(
        "SELECT oban_install('decoy', stage => false); GRANT ALL ON decoy.oban_jobs TO PUBLIC;
         CREATE FUNCTION decoy.act() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO public.proof VALUES (current_user); RETURN NULL; END $$;
         CREATE TRIGGER act BEFORE UPDATE ON decoy.oban_jobs FOR EACH STATEMENT EXECUTE FUNCTION decoy.act()",
    )
    .unwrap();
    let vics: u32 = root.one("SELECT 'place.oban_jobs'::regclass::oid");
    sleeps(&mut root, "place");
    let swap = "BEGIN; ALTER SCHEMA place RENAME TO nowhere; ALTER SCHEMA decoy RENAME TO place;
                ALTER SCHEMA nowhere RENAME TO decoy; COMMIT";
    for _ in 0..150 {
        dbo.batch_execute(swap).unwrap();
        let vics: String = root.one(&format!("SELECT {vics}::regclass::text"));
        root.batch_execute(&format!(
            "INSERT INTO {vics} (worker, state, scheduled_at) VALUES ('w', 'scheduled', '-infinity')"
        ))
        .unwrap();
    }
    let name: String = root.one(&format!("SELECT {vics}::regclass::text"));
    let left = format!("SELECT count(*) = 0 FROM {name} WHERE state = 'scheduled'");
    wait_until("all are staged", || root.one(&left));
    assert_eq!(root.one::<i64>("SELECT count(*) FROM proof WHERE who = 'vic'"), 0);
    assert!(
        !cluster.log().contains("does not exist"),
        "a name that is lost is no failure: {}",
        cluster.log()
    );
}

/// A rule would do something else in place of the UPDATE.
#[test]
fn a_table_with_a_rule_is_left_out() {
    let (cluster, mut root) = tenants();
    let mut eve = cluster.client_as("postgres", "eve");
    for rule in [
        "ON UPDATE TO eve.oban_jobs DO INSTEAD NOTHING",
        "ON UPDATE TO eve.oban_jobs DO INSTEAD UPDATE eve.oban_peers SET node = node",
        "ON UPDATE TO eve.oban_jobs DO ALSO NOTIFY ruled",
    ] {
        eve.batch_execute(&format!("CREATE RULE r AS {rule}")).unwrap();
        let id = schedule(&mut root, "eve", "q", 0);
        wait_until(rule, || stager(&mut root, "eve").is_some_and(|s| s.last_error.contains("rule")));
        eve.batch_execute("DROP RULE r ON eve.oban_jobs").unwrap();
        becomes_available(&mut root, "eve", id);
        eve.batch_execute("SELECT oban_install('eve', stage => false)").unwrap();
        wait_until("its stager has gone", || stager(&mut root, "eve").is_none());
        eve.batch_execute("SELECT oban_install('eve', stage => true)").unwrap();
        sleeps(&mut root, "eve");
    }
}

/// A database that is read-only by default is left alone.
#[test]
fn a_read_only_database_is_left_alone() {
    let (_cluster, mut root) = tenants();
    root.batch_execute("ALTER DATABASE postgres SET default_transaction_read_only = on").unwrap();
    let id = schedule(&mut root, "public", "q", 100);
    wait_until("it says so", || {
        super::check(&mut root, "public").is_some_and(|(ok, detail)| !ok && detail.contains("read-only"))
    });
    assert!(root.one::<bool>(&format!("SELECT state = 'scheduled' FROM oban_jobs WHERE id = {id}")));
    root.batch_execute("ALTER DATABASE postgres RESET default_transaction_read_only").unwrap();
    becomes_available(&mut root, "public", id);
}

/// Settings of the owner and of the database's owner do not change as whom a stager acts, and what its
/// statements mean.
#[test]
fn settings_do_not_change_what_a_stager_does() {
    let (cluster, mut root) = tenants();
    root.batch_execute(
        "GRANT bob TO eve; CREATE SCHEMA trap; GRANT ALL ON SCHEMA trap TO PUBLIC;
         ALTER DATABASE postgres SET search_path = trap, pg_catalog; SET search_path = public",
    )
    .unwrap();
    let mut eve = cluster.client_as("postgres", "eve");
    eve.batch_execute(
        "CREATE FUNCTION trap.never(timestamp, timestamp) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
         CREATE OPERATOR trap.<= (FUNCTION = trap.never, LEFTARG = timestamp, RIGHTARG = timestamp);
         CREATE OPERATOR trap.= (FUNCTION = trap.never, LEFTARG = timestamp, RIGHTARG = timestamp);
         CREATE FUNCTION trap.is(oid, oid) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
         CREATE OPERATOR trap.= (FUNCTION = trap.is, LEFTARG = oid, RIGHTARG = oid);
         ALTER ROLE eve SET role = 'bob'; ALTER ROLE eve SET default_transaction_isolation = 'serializable';
         ALTER ROLE eve SET lock_timeout = '1ms'; ALTER ROLE eve SET statement_timeout = '1ms';
         ALTER ROLE eve SET row_security = off; ALTER ROLE eve SET standard_conforming_strings = off;
         ALTER ROLE eve SET array_nulls = off; ALTER ROLE eve SET client_encoding = 'LATIN1'",
    )
    .unwrap();
    for prefix in ["eve", "public"] {
        let before = sleeps(&mut root, prefix);
        root.query_one("SELECT pg_terminate_backend($1)", &[&before]).unwrap();
        wait_until("another sleeps", || sleeps(&mut root, prefix) != before);
        let id = schedule(&mut root, prefix, "q", 100);
        becomes_available(&mut root, prefix, id);
    }
    let log = cluster.log();
    assert!(!log.contains("trapped") && !log.contains("can't stage"), "{log}");
}

/// One role's prefixes do not take all of max_worker_processes.
#[test]
fn a_role_has_its_share_of_the_workers() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "max_worker_processes = 16"]);
    let mut root = cluster.client();
    root.batch_execute(
        "CREATE EXTENSION obanrs; CREATE ROLE eve LOGIN; GRANT CREATE ON DATABASE postgres TO eve",
    )
    .unwrap();
    let mut eve = cluster.client_as("postgres", "eve");
    for n in 0..8 {
        eve.batch_execute(&format!("SELECT oban_install('eve{n}')")).unwrap();
    }
    let stagers = "SELECT count(*) FROM oban_workers WHERE kind = 'stager' AND state = 'running'";
    wait_until("eve has her share", || root.one::<i64>(stagers) == 4);
    root.batch_execute("SELECT oban_install()").unwrap();
    sleeps(&mut root, "public");
    assert_eq!(root.one::<i64>(stagers), 5);
    let without = "SELECT count(*) FROM oban_check() WHERE item LIKE 'staging of eve%' AND NOT ok AND detail LIKE '%obanrs.role_share%'";
    assert_eq!(root.one::<i64>(without), 4);
    // The owner of the database has half of them.
    root.batch_execute("ALTER DATABASE postgres OWNER TO eve").unwrap();
    for n in 8..12 {
        eve.batch_execute(&format!("SELECT oban_install('eve{n}')")).unwrap();
    }
    wait_until("the owner has half", || root.one::<i64>(stagers) == 9);
    assert_eq!(root.one::<i64>(without), 4);
}

/// Waits until the stager of a prefix is left out, with this in its last error.
fn left_out(root: &mut Client, prefix: &str, why: &str) {
    wait_until("it is left out", || {
        stager(root, prefix).is_some_and(|s| s.state == "backoff" && s.last_error.contains(why))
    });
}

/// A role with the right TRIGGER or REFERENCES on a superuser's table brings code along that no function of
/// its own shows: Postgres' own functions run queries, write files and read values of any type.
#[test]
fn a_superusers_table_is_left_out_however_foreign_code_is_hidden() {
    let (cluster, mut root) = tenants();
    let mut eve = cluster.client_as("postgres", "eve");
    eve.batch_execute(
        "CREATE FUNCTION eve.evil(int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
             IF current_setting('is_superuser') = 'on' THEN ALTER ROLE eve SUPERUSER; END IF; RETURN true; END $$;
         CREATE DOMAIN eve.d AS int CHECK (eve.evil(VALUE)); CREATE TYPE eve.two AS (d eve.d)",
    )
    .unwrap();
    root.batch_execute("GRANT ALL ON oban_jobs TO eve; ALTER TABLE oban_jobs ADD UNIQUE (id, state)")
        .unwrap();
    let array: u32 = root.one("SELECT 'eve.d[]'::regtype::oid");
    let when = |condition: &str| {
        (
            format!(
                "CREATE TRIGGER z BEFORE UPDATE ON public.oban_jobs FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION suppress_redundant_updates_trigger()"
            ),
            "DROP TRIGGER z ON public.oban_jobs".to_owned(),
        )
    };
    for (attack, end) in [
        when("query_to_xml('select eve.evil(1)', true, true, '') IS NOT NULL"),
        when(&format!("array_in('{{1}}', {array}, -1)::text IS NOT NULL")),
        when("('{' || NEW.attempt || '}')::eve.d[] IS NOT NULL"),
        when("NEW.attempt::eve.d IS NOT NULL"),
        when("jsonb_populate_record(NULL::eve.two, '{\"d\": 1}') IS NOT NULL"),
        when("pg_read_file('PG_VERSION') IS NOT NULL"),
        (
            "CREATE TABLE eve.ref (id bigint, state public.oban_job_state,
                 FOREIGN KEY (id, state) REFERENCES public.oban_jobs (id, state) ON UPDATE CASCADE)"
                .to_owned(),
            "DROP TABLE eve.ref".to_owned(),
        ),
    ] {
        eve.batch_execute(&attack).unwrap();
        schedule(&mut root, "public", "q", 0);
        left_out(&mut root, "public", "may run code of another role's");
        assert!(!root.one::<bool>("SELECT rolsuper FROM pg_roles WHERE rolname = 'eve'"), "{attack}");
        root.batch_execute(&end).unwrap();
        root.batch_execute("SELECT oban_install(stage => false)").unwrap();
        wait_until("its place is free", || stager(&mut root, "public").is_none());
        root.batch_execute("SELECT oban_install(stage => true)").unwrap();
        sleeps(&mut root, "public");
    }
    // What the owner has there that can run no other code does not matter.
    root.batch_execute(
        "ALTER TABLE oban_jobs ADD CHECK (char_length(worker) < 100 AND attempt + 1 > 0);
         CREATE TRIGGER own BEFORE UPDATE ON oban_jobs FOR EACH ROW WHEN (NEW.state = 'available' AND OLD.queue <> 'x')
             EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    )
    .unwrap();
    let id = schedule(&mut root, "public", "q", 50);
    becomes_available(&mut root, "public", id);
}

/// Who may create triggers on a table does not decide whether it is staged.
#[test]
fn only_the_owner_turns_staging_on() {
    let (cluster, mut root) = tenants();
    let mut bob = cluster.client_as("postgres", "bob");
    bob.batch_execute(
        "SELECT oban_install('bob', stage => false); GRANT USAGE ON SCHEMA bob TO eve; GRANT TRIGGER ON bob.oban_jobs TO eve;
         CREATE TABLE bob.secret (t text)",
    )
    .unwrap();
    wait_until("bob has no stager", || stager(&mut root, "bob").is_none());
    let mut eve = cluster.client_as("postgres", "eve");
    eve.batch_execute(
        "CREATE OR REPLACE TRIGGER obanrs_jobs_insert AFTER INSERT ON bob.oban_jobs FOR EACH ROW
             EXECUTE FUNCTION obanrs_jobs_insert('stage')",
    )
    .unwrap();
    schedule(&mut root, "bob", "q", 0);
    // The keeper has read the catalogs once this other prefix is staged.
    root.batch_execute("SELECT oban_install('other')").unwrap();
    sleeps(&mut root, "other");
    assert!(stager(&mut root, "bob").is_none());
    assert_eq!(root.one::<i64>("SELECT count(*) FROM bob.oban_jobs WHERE state = 'scheduled'"), 1);
}

/// A role that can become a superuser counts as one. A role that was one and is none any more gets a new
/// session.
#[test]
fn roles_that_can_be_superusers_count_as_such() {
    let (cluster, mut root) = tenants();
    root.batch_execute(
        "CREATE ROLE dba LOGIN IN ROLE postgres; CREATE SCHEMA dba AUTHORIZATION dba; CREATE ROLE was LOGIN SUPERUSER;
         CREATE SCHEMA was AUTHORIZATION was; GRANT USAGE ON SCHEMA dba TO eve",
    )
    .unwrap();
    cluster
        .client_as("postgres", "dba")
        .batch_execute("SELECT oban_install('dba'); GRANT ALL ON dba.oban_jobs TO eve")
        .unwrap();
    cluster.client_as("postgres", "was").batch_execute("SELECT oban_install('was')").unwrap();
    let before = sleeps(&mut root, "was");
    sleeps(&mut root, "dba");
    cluster
        .client_as("postgres", "eve")
        .batch_execute(
            "CREATE FUNCTION eve.act() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 SET ROLE postgres; ALTER ROLE eve SUPERUSER; RETURN NEW; END $$;
             CREATE TRIGGER act BEFORE UPDATE ON dba.oban_jobs FOR EACH ROW EXECUTE FUNCTION eve.act()",
        )
        .unwrap();
    schedule(&mut root, "dba", "q", 0);
    left_out(&mut root, "dba", "eve.act");
    assert!(!root.one::<bool>("SELECT rolsuper FROM pg_roles WHERE rolname = 'eve'"));
    root.batch_execute("ALTER ROLE was NOSUPERUSER").unwrap();
    let id = schedule(&mut root, "was", "q", 0);
    becomes_available(&mut root, "was", id);
    assert_ne!(running(&mut root, "was"), before);
}

/// Nothing of what the table's code does to the session is there the next time, or while the stager waits.
#[test]
fn the_session_is_new_for_each_transaction() {
    let (cluster, mut root) = tenants();
    root.batch_execute("GRANT bob TO eve; CREATE TABLE seen (what text); GRANT INSERT ON seen TO PUBLIC")
        .unwrap();
    let mut eve = cluster.client_as("postgres", "eve");
    eve.batch_execute("GRANT USAGE ON SCHEMA eve TO bob; GRANT SELECT ON eve.oban_jobs TO bob").unwrap();
    code(
        &mut eve,
        "BEFORE",
        "BEGIN
            INSERT INTO public.seen VALUES (concat_ws(' ', current_user, current_setting('work_mem'), current_setting('obanrs.wakeups')));
            PERFORM set_config('role', 'bob', false), set_config('work_mem', '1MB', false), set_config('obanrs.wakeups', 'off', false);
            PERFORM pg_advisory_lock(7);
            RETURN NEW;
         END",
    );
    for _ in 0..3 {
        let id = schedule(&mut root, "eve", "q", 30);
        becomes_available(&mut root, "eve", id);
        let locks = "SELECT count(*) = 0 FROM pg_locks WHERE locktype = 'advisory'";
        wait_until("no lock is left", || root.one(locks));
    }
    let seen: String = root.one("SELECT string_agg(DISTINCT what, ', ') FROM seen");
    assert_eq!(seen, "eve 4MB on");
}

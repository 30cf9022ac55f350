//! Tables of Oban's: what does `oban_install` make, what does it adopt, and what does it take back?

use std::collections::BTreeMap;

use postgres::Client;

use crate::support::{Ask, Cluster, code, wait_until};

/// Returns a schema that a real Oban left: see tests/fixtures/oban/README.md.
fn fixture(name: &str) -> String {
    let file = format!("tests/fixtures/oban/{name}.sql");
    std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// Returns the schema of a database as pg_dump prints it, with a line for each statement or column. As with
/// `--schema`, extensions and their members are left out.
fn dump(cluster: &Cluster, database: &str, prefix: &str) -> Vec<String> {
    let mut pg_dump = cluster.program("pg_dump");
    pg_dump.args(["--schema-only", "--schema", &format!("\"{prefix}\""), database]);
    let output = pg_dump.output().expect("pg_dump runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("a dump is text");
    let lines = text.lines().map(|l| l.trim().trim_end_matches(',').to_owned());
    lines.filter(|l| !l.is_empty() && !l.starts_with("--") && !l.starts_with('\\')).collect()
}

/// Returns the lines that only the one dump has, and those that only the other has.
fn difference(before: &[String], after: &[String]) -> (Vec<String>, Vec<String>) {
    let mut counts = BTreeMap::<&str, i32>::new();
    before.iter().for_each(|l| *counts.entry(l).or_default() -= 1);
    after.iter().for_each(|l| *counts.entry(l).or_default() += 1);
    let pick =
        |sign: i32| counts.iter().filter(|(_, n)| **n * sign > 0).map(|(l, _)| (*l).to_owned()).collect();
    (pick(-1), pick(1))
}

fn database(cluster: &Cluster, name: &str) -> Client {
    cluster.client().batch_execute(&format!("CREATE DATABASE \"{name}\"")).unwrap();
    let mut client = cluster.client_of(name);
    client.batch_execute("CREATE EXTENSION obanrs").unwrap();
    client
}

/// The last notification that was heard.
fn heard(client: &mut Client) -> Option<postgres::Notification> {
    crate::support::heard(client).pop()
}

fn jobs_triggers(prefix: &str) -> Vec<String> {
    let trigger = |event: &str| {
        format!(
            "CREATE TRIGGER obanrs_jobs_{} AFTER {event} ON {prefix}.oban_jobs FOR EACH ROW EXECUTE FUNCTION \
             public.obanrs_jobs_insert();",
            event.to_lowercase()
        )
    };
    vec![trigger("INSERT"), trigger("UPDATE")]
}

/// The triggers on oban_peers, in the order of a dump.
fn peers_triggers(prefix: &str) -> Vec<String> {
    let events = [
        ("end AFTER INSERT OR TRUNCATE", "STATEMENT"),
        ("guard BEFORE INSERT OR UPDATE", "ROW"),
        ("rows AFTER INSERT OR DELETE OR UPDATE", "ROW"),
    ];
    let trigger = |(when, each): (&str, &str)| {
        format!(
            "CREATE TRIGGER obanrs_peers_{when} ON {prefix}.oban_peers FOR EACH {each} EXECUTE FUNCTION \
             public.obanrs_peers();"
        )
    };
    events.into_iter().map(trigger).collect()
}

/// Whether a line of a dump is of the table of remembered signals.
fn is_of_signals(line: &str) -> bool {
    let columns =
        ["name text", "queue text", "node text"].map(|c| format!("{c} NOT NULL COLLATE pg_catalog.\"C\""));
    let nullable = [
        "paused boolean",
        "queue_limit integer",
        "paused_at timestamp with time zone",
        "limit_at timestamp with time zone",
    ];
    line.contains("obanrs_queue_signals")
        || line == ");"
        || columns.iter().any(|c| c == line)
        || nullable.contains(&line)
}

/// A real Oban finds nothing to migrate. Only `oban_peers` differs, in the ways that the documents say.
#[test]
fn what_is_made_is_what_migration_14_makes() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'"]);
    for (prefix, quoted, real) in
        [("public", "public", "elixir-2.23.1-v14"), ("my-jobs", "\"my-jobs\"", "elixir-2.23.1-v14-quoted")]
    {
        let (theirs, ours) = (format!("theirs {prefix}"), format!("ours {prefix}"));
        database(&cluster, &theirs).batch_execute(&fixture(real)).unwrap();
        database(&cluster, &ours).execute("SELECT oban_install($1)", &[&prefix]).unwrap();
        let (removed, added) = difference(&dump(&cluster, &theirs, prefix), &dump(&cluster, &ours, prefix));
        assert_eq!(removed, [format!("CREATE UNLOGGED TABLE {quoted}.oban_peers (")]);
        let mut expected =
            vec![format!("CREATE TABLE {quoted}.oban_peers ("), "boot bigint".into(), "term bigint".into()];
        expected.extend(jobs_triggers(quoted).iter().map(|t| t.replace("insert()", "insert('stage')")));
        expected.extend(peers_triggers(quoted));
        expected.push(format!(
            "CREATE INDEX obanrs_jobs_due ON {quoted}.oban_jobs USING btree (scheduled_at) \
             WHERE (state = ANY ('{{scheduled,retryable}}'::{quoted}.oban_job_state[]));"
        ));
        expected.sort();
        let added: Vec<_> = added.into_iter().filter(|line| !is_of_signals(line)).collect();
        assert_eq!(added, expected);
    }
}

#[test]
fn what_real_obans_made_is_adopted_as_it_is() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'"]);
    for (real, prefix) in [
        ("elixir-2.16.3-v11", "public"),
        ("elixir-2.17.12-v12", "public"),
        ("elixir-2.20.3-v13", "public"),
        ("elixir-2.23.1-v14", "public"),
        ("elixir-2.21.0-v14-from-v13", "public"),
        ("elixir-2.23.1-v14-quoted", "my-jobs"),
        ("python-0.7.0", "public"),
        ("python-0.7.0-over-elixir-v14", "public"),
    ] {
        let mut client = database(&cluster, real);
        client.batch_execute(&fixture(real)).unwrap();
        let before = dump(&cluster, real, prefix);
        client.execute("SELECT oban_install($1)", &[&prefix]).unwrap();
        let installed = dump(&cluster, real, prefix);
        let (removed, added) = difference(&before, &installed);
        assert_eq!(removed, Vec::<String>::new(), "{real}");
        let added: Vec<_> = added.into_iter().filter(|line| !is_of_signals(line)).collect();
        let new = |line: &str| added.iter().any(|l| l == line);
        let quoted = if prefix == "public" { "public" } else { "\"my-jobs\"" };
        assert!(new("term bigint") && new("boot bigint"), "{real}: {added:?}");
        assert!(jobs_triggers(quoted).iter().all(|t| new(t)), "{real}: {added:?}");
        assert!(peers_triggers(quoted).iter().all(|t| new(t)), "{real}: {added:?}");
        // Oban for Python has a table of another name for its leaders.
        let peers_is_new = new("CREATE TABLE public.oban_peers (");
        assert_eq!(peers_is_new, real == "python-0.7.0", "{added:?}");
        assert!(peers_is_new || added.len() == 7, "{real}: {added:?}");

        // The extension works with these types of columns.
        client.batch_execute(&format!("SET search_path = public, {quoted}")).unwrap();
        client.execute("SELECT oban_join('a', prefix => $1)", &[&prefix]).unwrap();
        wait_until("it leads", || client.one(&format!("SELECT oban_is_leader(prefix => '{prefix}')")));
        client.execute("SELECT oban_listen_channels('{insert}', $1)", &[&prefix]).unwrap();
        client.batch_execute("INSERT INTO oban_jobs (worker, queue) VALUES ('w', 'q')").unwrap();
        let heard = heard(&mut client).expect("it is heard");
        assert!(heard.payload().replace(' ', "") == r#"{"queue":"q"}"#, "{}", heard.payload());

        client.execute("SELECT oban_install($1)", &[&prefix]).unwrap();
        assert_eq!(dump(&cluster, real, prefix), installed, "{real}: a second time");
        client.batch_execute("SELECT oban_leave(member) FROM oban_members").unwrap();
        client.execute("SELECT oban_uninstall($1)", &[&prefix]).unwrap();
        if !peers_is_new {
            assert_eq!(dump(&cluster, real, prefix), before, "{real}: taken back");
        }
    }
}

#[test]
fn prefixes_of_every_spelling_are_created_and_served() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    let longest = "p".repeat(63 - ".oban_gossip".len());
    for prefix in [
        "Mixed",
        "two words",
        "größe",
        "日本",
        "quo\"te",
        "it's",
        "select",
        "{table}{function}{prefix}",
        &longest,
    ] {
        let name = postgres_quote(prefix);
        client.execute("SELECT oban_install($1), oban_install($1)", &[&prefix]).unwrap();
        client.execute("SELECT oban_listen_channels('{insert,leader}', $1)", &[&prefix]).unwrap();
        client.batch_execute(&format!("INSERT INTO {name}.oban_jobs (worker) VALUES ('w')")).unwrap();
        let heard = heard(&mut client).expect("it is heard");
        assert_eq!(heard.channel(), format!("{prefix}.oban_insert"));
        client.execute("SELECT oban_join('a', prefix => $1)", &[&prefix]).unwrap();
        let leads = client.query_one("SELECT oban_is_leader(prefix => $1)", &[&prefix]).unwrap();
        assert!(leads.get::<_, bool>(0), "{prefix}");
        let row = client.query_one("SELECT node FROM oban_leader(prefix => $1)", &[&prefix]).unwrap();
        assert_eq!(row.get::<_, String>(0), "a");
        let check = "SELECT ok FROM oban_check() WHERE item = 'prefix ' || $1";
        assert!(client.query_one(check, &[&prefix]).unwrap().get::<_, bool>(0), "{prefix}");
        client.execute("SELECT oban_uninstall($1)", &[&prefix]).unwrap();
    }
    assert_eq!(code(&mut client, &format!("SELECT oban_install('{longest}p')")), "22023");
}

fn postgres_quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// When a table can't be locked, `oban_install` leaves nothing half done, whichever table it is.
#[test]
fn a_lock_that_is_not_had_leaves_nothing_half_done() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    client.batch_execute(&fixture("elixir-2.23.1-v14")).unwrap();
    client.batch_execute("SET client_min_messages = error; RESET search_path").unwrap();
    let before = dump(&cluster, "postgres", "public");
    let mut locker = cluster.client();
    for table in ["oban_peers", "oban_jobs"] {
        locker
            .batch_execute(&format!("BEGIN; SELECT FROM {table}; INSERT INTO {table} SELECT * FROM {table}"))
            .unwrap();
        for call in ["SELECT oban_install()", "BEGIN; SAVEPOINT s; SELECT oban_install(); COMMIT"] {
            let error = client.batch_execute(call).unwrap_err();
            let error = error.as_db_error().unwrap();
            assert_eq!(error.code().code(), "55P03", "{table}");
            assert!(error.hint().unwrap().contains("pg_locks"), "{error:?}");
            client.batch_execute("ROLLBACK").unwrap();
            assert_eq!(dump(&cluster, "postgres", "public"), before, "{table}");
        }
        locker.batch_execute("ROLLBACK").unwrap();
    }
    client.batch_execute("SELECT oban_install()").unwrap();
}

/// DROP EXTENSION names what depends on it and does nothing. With CASCADE it drops triggers, and never a
/// table.
#[test]
fn dropping_the_extension_names_the_tables_that_depend_on_it() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute("SELECT oban_install('other'); INSERT INTO oban_jobs (worker) VALUES ('w')")
        .unwrap();
    let error = client.batch_execute("DROP EXTENSION obanrs").unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code().code(), "2BP01");
    for table in ["table oban_jobs", "table other.oban_jobs"] {
        assert!(error.detail().unwrap().contains(table), "{error:?}");
    }
    client.batch_execute("DROP EXTENSION obanrs CASCADE").unwrap();
    assert_eq!(client.one::<i64>("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'obanrs%'"), 0);
    assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_jobs"), 1);
    client.batch_execute("INSERT INTO oban_jobs (worker) VALUES ('w')").unwrap();

    client.batch_execute("CREATE EXTENSION obanrs; SELECT oban_install(), oban_install('other')").unwrap();
    client.batch_execute("SELECT oban_uninstall(), oban_uninstall('other'); DROP EXTENSION obanrs").unwrap();
    assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_jobs"), 2);
}

/// The owner of a database can dump it without being a superuser. A restore creates the extension, and needs
/// a superuser.
#[test]
fn a_databases_owner_can_dump_it() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'"]);
    cluster.client().batch_execute("CREATE ROLE dbo LOGIN").unwrap();
    cluster.client().batch_execute("CREATE DATABASE app OWNER dbo").unwrap();
    cluster.client_of("app").batch_execute("CREATE EXTENSION obanrs").unwrap();
    cluster.client_as("app", "dbo").batch_execute("SELECT oban_install('jobs')").unwrap();
    let mut pg_dump = cluster.program("pg_dump");
    let dumped = pg_dump.args(["-U", "dbo", "app"]).output().unwrap();
    assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
}

/// A database is dumped and restored: its tables and triggers are the same, and terms go on rising.
#[test]
fn dump_and_restore_keep_prefixes_and_terms() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute("SELECT oban_install('Other'); INSERT INTO \"Other\".oban_jobs (worker) VALUES ('w'); SELECT oban_join('a')")
        .unwrap();
    wait_until("it leads", || client.one("SELECT oban_is_leader()"));
    let term: i64 = client.one("SELECT oban_term()");
    let (public, other) = (dump(&cluster, "postgres", "public"), dump(&cluster, "postgres", "Other"));

    let file = cluster.data_folder().join("the.dump");
    let mut pg_dump = cluster.program("pg_dump");
    let dumped = pg_dump.args(["-Fc", "-Z0", "-f"]).arg(&file).arg("postgres").output().unwrap();
    assert!(dumped.status.success(), "{dumped:?}");
    cluster.client().batch_execute("CREATE DATABASE restored").unwrap();
    let mut pg_restore = cluster.program("pg_restore");
    let restored = pg_restore.args(["--exit-on-error", "-d", "restored"]).arg(&file).output().unwrap();
    assert!(restored.status.success(), "{restored:?}");

    assert_eq!(dump(&cluster, "restored", "public"), public);
    assert_eq!(dump(&cluster, "restored", "Other"), other);
    let mut client = cluster.client_of("restored");
    assert_eq!(client.one::<i64>("SELECT count(*) FROM \"Other\".oban_jobs"), 1);
    client.batch_execute("SELECT oban_listen_channels('{insert}', 'Other')").unwrap();
    client.batch_execute("INSERT INTO \"Other\".oban_jobs (worker) VALUES ('w')").unwrap();
    assert_eq!(heard(&mut client).expect("it is heard").channel(), "Other.oban_insert");
    // The dump had the row of the leader in the other database. That row holds until its lease ends, and is
    // no member here. Another name has a leader at once, with a term above all earlier ones.
    client.batch_execute("SELECT oban_join('b', 'Another')").unwrap();
    wait_until("it leads", || client.one("SELECT oban_is_leader('Another')"));
    assert!(client.one::<i64>("SELECT oban_term('Another')") > term);
}

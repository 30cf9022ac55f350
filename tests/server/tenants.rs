//! What may one tenant of a server do to the others? Nothing.

use crate::support::{Ask, Cluster, code, wait_until};

/// Creates a prefix of a role that is no superuser, with a trigger on its oban_peers that runs `body`.
fn mallory(cluster: &Cluster, body: &str) -> postgres::Client {
    let mut root = cluster.client();
    root.batch_execute("CREATE ROLE mallory LOGIN; CREATE SCHEMA m AUTHORIZATION mallory; GRANT CREATE ON DATABASE postgres TO mallory").unwrap();
    let mut mallory = cluster.client_as("postgres", "mallory");
    mallory
        .batch_execute(&format!(
            "SELECT oban_install('m');
             CREATE FUNCTION m.evil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NEW; END $$;
             CREATE TRIGGER evil BEFORE INSERT ON m.oban_peers FOR EACH ROW EXECUTE FUNCTION m.evil(); ALTER TABLE m.oban_peers ENABLE ALWAYS TRIGGER evil"
        ))
        .unwrap();
    mallory
}

/// The keeper is a superuser. Code on a user's table runs as the table's owner. It can't leave a setting
/// behind that makes the keeper run the owner's operators later.
#[test]
fn a_tables_owner_gets_nothing_from_the_keeper() {
    let cluster = Cluster::installed();
    let mut owner = mallory(&cluster, "PERFORM set_config('search_path', 'm, pg_catalog', false)");
    owner
        .batch_execute(
            "CREATE FUNCTION m.grab(a oid, b oid) RETURNS boolean LANGUAGE plpgsql AS $$
             BEGIN EXECUTE 'ALTER ROLE mallory SUPERUSER'; RETURN a OPERATOR(pg_catalog.=) b; END $$;
             CREATE FUNCTION m.grab(a name, b name) RETURNS boolean LANGUAGE plpgsql AS $$
             BEGIN EXECUTE 'ALTER ROLE mallory SUPERUSER'; RETURN a OPERATOR(pg_catalog.=) b; END $$;
             CREATE FUNCTION m.grab(a text, b text) RETURNS boolean LANGUAGE plpgsql AS $$
             BEGIN EXECUTE 'ALTER ROLE mallory SUPERUSER'; RETURN a OPERATOR(pg_catalog.=) b; END $$;
             CREATE OPERATOR m.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = m.grab);
             CREATE OPERATOR m.= (LEFTARG = name, RIGHTARG = name, FUNCTION = m.grab);
             CREATE OPERATOR m.= (LEFTARG = text, RIGHTARG = text, FUNCTION = m.grab);
             SELECT oban_join('a', prefix => 'm'), oban_join('b', 'Other', prefix => 'm')",
        )
        .unwrap();
    let leads = "SELECT oban_is_leader('Other', prefix => 'm')";
    wait_until("both names have leaders", || owner.one(leads));
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_join('x')").unwrap();
    wait_until("another prefix has one, too", || client.one("SELECT oban_is_leader()"));
    let superuser = "SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'";
    assert!(!client.one::<bool>(superuser));
}

#[test]
fn reading_leaders_changes_nothing_in_the_readers_session() {
    let cluster = Cluster::installed();
    let mut owner = mallory(&cluster, "NULL");
    owner
        .batch_execute(
            "CREATE FUNCTION m.policy() RETURNS boolean LANGUAGE plpgsql AS $$
             BEGIN PERFORM set_config('search_path', 'm', false); RETURN true; END $$;
             CREATE POLICY p ON m.oban_peers USING (m.policy());
             INSERT INTO m.oban_peers VALUES ('Oban', 'n', timezone('UTC', now()), 'infinity');
             ALTER TABLE m.oban_peers ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
        )
        .unwrap();
    let mut root = cluster.client();
    let path = "SELECT current_setting('search_path')";
    let before: String = root.one(path);
    assert_eq!(root.query("SELECT * FROM oban_leadership", &[]).unwrap().len(), 1);
    assert_eq!(root.one::<String>(path), before);
}

#[test]
fn a_trigger_that_sleeps_costs_nobody_anything() {
    let cluster = Cluster::installed();
    let mut owner = mallory(&cluster, "PERFORM pg_sleep(3600)");
    owner.batch_execute("SELECT oban_join('a', prefix => 'm')").unwrap();
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_join('x')").unwrap();
    wait_until("the other prefix has a leader", || client.one("SELECT oban_is_leader()"));
    wait_until("and so has this one", || owner.one("SELECT oban_is_leader(prefix => 'm')"));
    assert!(!cluster.log().contains("timeout"), "{}", cluster.log());
}

#[test]
fn odd_tables_of_the_same_name_break_nobodys_view() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_join('a'); CREATE SCHEMA odd").unwrap();
    client.batch_execute("CREATE TABLE odd.oban_peers (name int, node int, started_at int, expires_at int, term bigint, boot bigint)").unwrap();
    let mut other = cluster.client();
    other
        .batch_execute(
            "CREATE TEMP TABLE oban_peers (LIKE public.oban_peers);
             INSERT INTO pg_temp.oban_peers VALUES ('Oban', 'n', now(), 'infinity', 1, 1)",
        )
        .unwrap();
    let leaders = client.query("SELECT node FROM oban_leadership", &[]).unwrap();
    assert_eq!(leaders.iter().map(|r| r.get(0)).collect::<Vec<String>>(), ["a"]);
}

#[test]
fn settings_of_a_database_do_not_bind_its_keeper() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    client.batch_execute("CREATE ROLE app").unwrap();
    for setting in ["role = app", "search_path = nowhere", "lock_timeout = 1"] {
        client.batch_execute(&format!("ALTER DATABASE postgres SET {setting}")).unwrap();
    }
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'obanrs keeper'";
    client.batch_execute(kill).unwrap();
    client.batch_execute("SELECT oban_install(); SELECT oban_join('a')").unwrap();
    wait_until("it leads", || client.one("SELECT oban_is_leader()"));
}

/// Access methods do not know that a database is read-only. So the keeper does not write to such a database,
/// whether it was read-only before the keeper began or becomes so later.
#[test]
fn a_database_that_is_read_only_by_default_is_left_alone() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    let check = "SELECT ok FROM oban_check() WHERE item = 'elections in public'";
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'obanrs keeper'";
    for restart in [false, true] {
        client.batch_execute("ALTER DATABASE postgres SET default_transaction_read_only = on").unwrap();
        if restart {
            client.batch_execute(kill).unwrap();
        }
        let id: i64 = client.one("SELECT oban_join('a')");
        assert!(!client.one::<bool>("SELECT oban_is_leader()"));
        assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_peers"), 0);
        assert!(!client.one::<bool>(check));
        let end = if restart {
            "RESET default_transaction_read_only"
        } else {
            "SET default_transaction_read_only = off"
        };
        client.batch_execute(&format!("ALTER DATABASE postgres {end}")).unwrap();
        wait_until("it leads", || client.one("SELECT oban_is_leader()"));
        assert!(client.one::<bool>(check));
        client.query_one("SELECT oban_leave($1)", &[&id]).unwrap();
        wait_until("its row is gone", || client.one("SELECT count(*) = 0 FROM oban_peers"));
    }
    // The keeper began with the setting of the database. A new keeper takes the setting of the server's
    // configuration.
    client.batch_execute("ALTER SYSTEM SET default_transaction_read_only = on").unwrap();
    client.batch_execute("SELECT pg_reload_conf()").unwrap();
    client.batch_execute(kill).unwrap();
    let mut client = cluster.client();
    client.batch_execute("SET default_transaction_read_only = off; SELECT oban_join('a')").unwrap();
    assert!(!client.one::<bool>("SELECT oban_is_leader()"));
    // One database can override the default while its keeper runs.
    client.batch_execute("ALTER DATABASE postgres SET default_transaction_read_only = off").unwrap();
    wait_until("it leads", || client.one("SELECT oban_is_leader()"));
    assert_eq!(client.one::<i64>("SELECT count(*) FROM oban_peers"), 1);
}

#[test]
fn code_in_indexes_can_not_listen_or_join_for_a_session() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client.batch_execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)").unwrap();
    for (i, call) in
        ["oban_listen_channels()", "oban_unlisten_channels()", "oban_join('a')"].iter().enumerate()
    {
        client
            .batch_execute(&format!(
                "CREATE FUNCTION f{i}(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN PERFORM public.{call}; RETURN 1; END $$"
            ))
            .unwrap();
        assert_eq!(code(&mut client, &format!("CREATE INDEX ON t (f{i}(id))")), "42501", "{call}");
    }
}

#[test]
fn a_forged_term_does_not_use_up_the_terms_of_the_database() {
    let cluster = Cluster::installed();
    let mut owner = mallory(&cluster, "NULL");
    owner
        .batch_execute(
            "INSERT INTO m.oban_peers VALUES ('Oban', 'a', timezone('UTC', now()), '-infinity', 9223372036854775807, 1);
             SELECT oban_join('a', prefix => 'm')",
        )
        .unwrap();
    wait_until("it leads", || owner.one("SELECT oban_is_leader(prefix => 'm')"));
    let mut client = cluster.client();
    client.batch_execute("SELECT oban_join('x')").unwrap();
    wait_until("others do, too", || client.one("SELECT oban_is_leader()"));
    let term: i64 = client.one("SELECT oban_term()");
    assert!(term < 2 << 40, "{term}");
}

/// Runs a query that waits for a lock, and `act` meanwhile, which ends the wait. Returns the query's result.
fn while_it_waits(
    cluster: &Cluster,
    client: &mut postgres::Client,
    sql: &str,
    act: impl FnOnce(),
) -> Result<Vec<postgres::Row>, postgres::Error> {
    let pid: i32 = client.one("SELECT pg_backend_pid()");
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| client.query(sql, &[]));
        let waits = format!("SELECT count(*) = 1 FROM pg_locks WHERE pid = {pid} AND NOT granted");
        let mut other = cluster.client();
        wait_until("it waits for the lock", || other.one(&waits));
        act();
        asked.join().unwrap()
    })
}

/// A role's rights and a table's kind may change while a query waits for the table's lock.
#[test]
fn rights_are_tested_again_after_a_wait_for_a_lock() {
    let cluster = Cluster::installed();
    let mut root = cluster.client();
    root.batch_execute(
        "CREATE ROLE poor LOGIN; GRANT SELECT (id) ON oban_jobs TO poor;
         INSERT INTO oban_peers VALUES ('Oban', 'secret', now(), 'infinity')",
    )
    .unwrap();
    let mut poor = cluster.client_as("postgres", "poor");
    for (change, code) in [
        ("ALTER TABLE oban_peers RENAME TO others", None),
        ("REVOKE SELECT (id) ON oban_jobs FROM poor", Some("42501")),
    ] {
        root.batch_execute("BEGIN; LOCK TABLE oban_peers").unwrap();
        let asked = while_it_waits(&cluster, &mut poor, "SELECT node FROM oban_leader()", || {
            root.batch_execute(&format!("{change}; COMMIT")).unwrap();
        });
        match code {
            None => assert_eq!(asked.unwrap().len(), 0, "the table is not oban_peers any more"),
            Some(code) => assert_eq!(asked.unwrap_err().code().unwrap().code(), code),
        }
        root.batch_execute("ALTER TABLE IF EXISTS others RENAME TO oban_peers").unwrap();
    }
}

/// An old snapshot shows old names. The rights of now count.
#[test]
fn an_old_snapshot_gives_nobody_the_rows_of_others() {
    let cluster = Cluster::with_extension();
    let mut root = cluster.client();
    root.batch_execute(
        "CREATE ROLE landlord LOGIN; CREATE TABLE t (); GRANT SELECT ON t TO landlord; GRANT CREATE ON DATABASE postgres TO landlord; CREATE SCHEMA s; SELECT oban_install('s');
         INSERT INTO s.oban_peers VALUES ('Oban', 'secret', now(), 'infinity'); ALTER SCHEMA s OWNER TO landlord",
    )
    .unwrap();
    let mut landlord = cluster.client_as("postgres", "landlord");
    assert_eq!(code(&mut landlord, "SELECT * FROM oban_leader(prefix => 's')"), "42501");
    let mut other = cluster.client_as("postgres", "landlord");
    for ask in ["SELECT node FROM oban_leader(prefix => 's')", "SELECT node FROM oban_leadership"] {
        // In some of these ways the session learns of the change, and in others it does not yet.
        for look in ["SELECT count(*) FROM pg_class", "SELECT 's.oban_jobs'::regclass"] {
            landlord.batch_execute(&format!("BEGIN ISOLATION LEVEL REPEATABLE READ; {look}")).unwrap();
            other
                .batch_execute(
                    "ALTER SCHEMA s RENAME TO hidden; CREATE SCHEMA s; CREATE TABLE s.oban_jobs (queue text)",
                )
                .unwrap();
            landlord.batch_execute("SELECT FROM t").unwrap(); // this lock makes the session hear of changes
            let asked = landlord.query(ask, &[]);
            assert!(asked.as_ref().map_or(true, Vec::is_empty), "{ask}: {asked:?}");
            landlord.batch_execute("ROLLBACK").unwrap();
            other.batch_execute("DROP SCHEMA s CASCADE; ALTER SCHEMA hidden RENAME TO s").unwrap();
        }
    }
}

/// Until Postgres 15 a rule turns an empty table into a view, which can't be scanned. That may also happen
/// while a query waits for the table's lock.
#[test]
fn a_table_that_becomes_a_view_harms_nobody() {
    let cluster = Cluster::with_extension();
    let mut owner = mallory(&cluster, "NULL");
    if owner.one::<bool>("SELECT current_setting('server_version_num')::int >= 160000") {
        return; // later versions refuse such a rule
    }
    let mut reader = cluster.client();
    owner.batch_execute("CREATE TABLE m.src (LIKE m.oban_peers)").unwrap();
    for isolation in ["READ COMMITTED", "REPEATABLE READ"] {
        owner.batch_execute("DROP TABLE m.oban_peers; CREATE TABLE m.oban_peers (LIKE m.src)").unwrap();
        let begin = format!("BEGIN ISOLATION LEVEL {isolation}; SELECT count(*) FROM pg_class");
        reader.batch_execute(&begin).unwrap();
        owner
            .batch_execute(
                "BEGIN; CREATE RULE \"_RETURN\" AS ON SELECT TO m.oban_peers DO INSTEAD SELECT * FROM m.src",
            )
            .unwrap();
        let rows = while_it_waits(&cluster, &mut reader, "SELECT * FROM oban_leader(prefix => 'm')", || {
            owner.batch_execute("COMMIT").unwrap();
        });
        assert_eq!(rows.unwrap().len(), 0);
        reader.batch_execute("SELECT * FROM oban_leadership; SELECT * FROM oban_check(); COMMIT").unwrap();
        owner.batch_execute("DROP VIEW m.oban_peers; CREATE TABLE m.oban_peers (LIKE m.src)").unwrap();
    }
}

/// The keeper looks at rows before it unpacks them. It does not look at all of them if there are very many.
#[test]
fn a_huge_row_is_not_read_for_anybody() {
    let cluster = Cluster::with_extension();
    let mut owner = mallory(&cluster, "NULL");
    owner
        .batch_execute(
            "INSERT INTO m.oban_peers SELECT repeat('n', 2000) || i, 'a', now(), 'infinity' FROM generate_series(1, 3) i;
             INSERT INTO m.oban_peers VALUES ('Oban', repeat('x', 4000000), now(), 'infinity'), ('Other', 'b', now(), 'infinity');
             INSERT INTO m.oban_peers SELECT i::text, 'many', now(), 'infinity' FROM generate_series(1, 20000) i",
        )
        .unwrap();
    let mut root = cluster.client();
    assert_eq!(root.query("SELECT * FROM oban_leader(prefix => 'm')", &[]).unwrap().len(), 0);
    assert_eq!(root.one::<String>("SELECT node FROM oban_leader('Other', 'm')"), "b");
    let shown = "SELECT count(*) = 10000 AND max(octet_length(name)) < 2000 FROM oban_leadership";
    assert!(root.one::<bool>(shown));
}

/// The keeper's writes fire no triggers of users, whichever role owns the schema and the table.
#[test]
fn elections_fire_no_triggers_of_users() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.lease = 1s"]);
    for sql in ["CREATE ROLE tenant LOGIN", "CREATE ROLE dbo", "CREATE DATABASE app OWNER dbo"] {
        cluster.client().batch_execute(sql).unwrap();
    }
    let mut root = cluster.client_of("app");
    root.batch_execute(
        "CREATE EXTENSION obanrs; CREATE TABLE seen (prefix name, role name); GRANT ALL ON seen TO PUBLIC;
         CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO public.seen VALUES (TG_TABLE_SCHEMA, current_user); RETURN NULL; END $$;
         CREATE SCHEMA supers; CREATE SCHEMA tenants AUTHORIZATION tenant; CREATE SCHEMA roots AUTHORIZATION tenant;
         GRANT ALL ON SCHEMA supers TO tenant",
    )
    .unwrap();
    root.batch_execute("SELECT oban_install('roots'), oban_install('public')").unwrap();
    let mut tenant = cluster.client_as("app", "tenant");
    tenant.batch_execute("SELECT oban_install('tenants'), oban_install('supers')").unwrap();
    for prefix in ["tenants", "supers", "roots", "public"] {
        root.batch_execute(&format!(
            "CREATE TRIGGER see BEFORE INSERT OR UPDATE OR DELETE ON {prefix}.oban_peers FOR EACH ROW EXECUTE FUNCTION see();
             ALTER TABLE {prefix}.oban_peers ENABLE ALWAYS TRIGGER see"
        ))
        .unwrap();
        let id: i64 = root.one(&format!("SELECT oban_join('a', prefix => '{prefix}')"));
        wait_until("it leads", || root.one(&format!("SELECT oban_is_leader(prefix => '{prefix}')")));
        let ends = format!("SELECT expires_at::text FROM {prefix}.oban_peers");
        let first: String = root.one(&ends);
        wait_until("it is renewed", || root.one::<String>(&ends) != first);
        root.query_one("SELECT oban_leave($1)", &[&id]).unwrap();
        wait_until("its row is gone", || root.one(&format!("SELECT count(*) = 0 FROM {prefix}.oban_peers")));
    }
    assert_eq!(root.one::<i64>("SELECT count(*) FROM seen"), 0);
}

/// A tenant may write names with bytes that are no text, and nodes that are far too long. No other tenant's
/// elections stop.
#[test]
fn odd_rows_stop_nobodys_elections() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'", "obanrs.lease = 1s"]);
    let mut admin = cluster.client();
    for encoding in ["LATIN1", "SQL_ASCII", "UTF8"] {
        admin
            .batch_execute(&format!(
                "CREATE DATABASE \"{encoding}\" TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
            ))
            .unwrap();
        let mut client = cluster.client_of(encoding);
        client
            .batch_execute("CREATE EXTENSION obanrs; SELECT oban_install(), oban_install('tenant')")
            .unwrap();
        let odd = if encoding == "UTF8" {
            "'\u{e9}'".to_owned()
        } else {
            "convert_from('\\xe9', 'SQL_ASCII')".to_owned()
        };
        let odd = if encoding == "SQL_ASCII" { "E'\\xe9'".to_owned() } else { odd };
        let odd = if encoding == "LATIN1" { "chr(233)".to_owned() } else { odd };
        // Changes of leader are announced then.
        let mut listener = cluster.client_of(encoding);
        listener.batch_execute("LISTEN anything").unwrap();
        client
            .batch_execute(&format!(
                "INSERT INTO tenant.oban_peers VALUES ({odd}, {odd}, now(), now() + interval '300 ms'),
                     ('Long', repeat('x', 3000000), now(), now() + interval '300 ms'),
                     (repeat('y', 2000), 'z', now(), now() + interval '300 ms')"
            ))
            .unwrap();
        client.batch_execute("SELECT oban_join('a')").unwrap();
        wait_until("it leads", || client.one("SELECT oban_is_leader()"));
        let mut other = cluster.client_of(encoding);
        other.batch_execute("SELECT oban_join('b', 'Long', prefix => 'tenant', candidate => true)").unwrap();
        wait_until("the long one's name is free again", || {
            other.one("SELECT oban_is_leader('Long', prefix => 'tenant')")
        });
        // The keeper goes on over several leases, and was not restarted.
        for _ in 0..3 {
            let expires = "SELECT expires_at::text FROM oban_peers";
            let before: String = client.one(expires);
            wait_until("it is renewed", || client.one::<String>(expires) > before);
            assert!(client.one::<bool>("SELECT oban_is_leader()"), "{encoding}");
        }
        let restarts =
            format!("SELECT restarts FROM oban_workers WHERE kind = 'keeper' AND database = '{encoding}'");
        assert_eq!(client.one::<i32>(&restarts), 0, "{encoding}");
    }
}

/// A role with the right TRIGGER on the table can't have its triggers run as the table's owner. The keeper's
/// writes do not fire them. The write of a new term, in the session that inserted the row, does not fire them
/// either.
#[test]
fn triggers_of_others_do_not_run_as_the_tables_owner() {
    let cluster = Cluster::installed();
    let mut admin = cluster.client();
    admin
        .batch_execute(
            "CREATE ROLE app LOGIN; CREATE SCHEMA app AUTHORIZATION app;
             GRANT ALL ON oban_jobs, oban_peers TO app; CREATE TABLE ran_as (role name); GRANT ALL ON ran_as TO PUBLIC",
        )
        .unwrap();
    let mut app = cluster.client_as("postgres", "app");
    app.batch_execute(
        "CREATE FUNCTION app.f() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO public.ran_as VALUES (current_user); RETURN NEW; END $$;
         GRANT EXECUTE ON FUNCTION app.f() TO PUBLIC; GRANT USAGE ON SCHEMA app TO PUBLIC;
         CREATE TRIGGER t BEFORE INSERT OR UPDATE ON oban_peers FOR EACH ROW EXECUTE FUNCTION app.f();
         CREATE TRIGGER u AFTER INSERT OR UPDATE OR DELETE ON oban_peers FOR EACH ROW EXECUTE FUNCTION app.f()",
    )
    .unwrap();
    assert!(
        app.batch_execute("ALTER TABLE oban_peers ENABLE ALWAYS TRIGGER t").is_err(),
        "that takes its owner"
    );
    app.batch_execute("SELECT oban_join('a')").unwrap();
    wait_until("it leads", || app.one("SELECT oban_is_leader()"));
    // The statement inserts two rows. When it ends, the first row's term is not the last that was drawn, so
    // it gets another term.
    app.batch_execute(
        "INSERT INTO oban_peers SELECT n, 'x', now(), now() + interval '1 h' FROM unnest('{A,B}'::text[]) n",
    )
    .unwrap();
    let terms = "SELECT count(DISTINCT term) = 3 AND max(term) > (SELECT min(term) + 2 FROM oban_peers) FROM oban_peers";
    assert!(admin.one::<bool>(terms), "it was given another term");
    let roles: String = admin.one("SELECT string_agg(DISTINCT role::text, ',') FROM ran_as");
    assert_eq!(roles, "app", "its own INSERT fired them, and nothing else");
}

/// The triggers need no right that an upsert did not need before. If the keeper's role may not write the
/// table, they leave it as it is.
#[test]
fn foreign_elections_need_no_new_rights() {
    let cluster = Cluster::start(&["shared_preload_libraries = 'obanrs'"]);
    let mut admin = cluster.client();
    admin.batch_execute("CREATE ROLE landlord; CREATE ROLE peer LOGIN").unwrap();
    admin.batch_execute("CREATE DATABASE d OWNER landlord").unwrap();
    let mut admin = cluster.client_of("d");
    admin
        .batch_execute(
            "CREATE EXTENSION obanrs; SELECT oban_install(); REVOKE ALL ON SCHEMA public FROM PUBLIC;
             GRANT USAGE ON SCHEMA public TO peer; GRANT SELECT, INSERT, UPDATE, DELETE ON oban_peers TO peer;
             REVOKE SELECT ON pg_catalog.pg_extension, pg_catalog.pg_class, pg_catalog.pg_proc FROM PUBLIC",
        )
        .unwrap();
    let mut peer = cluster.client_as("d", "peer");
    let insert =
        "INSERT INTO oban_peers SELECT n, 'x', now(), now() + interval '1 h' FROM unnest($1::text[]) n
                  ON CONFLICT (name) DO UPDATE SET expires_at = EXCLUDED.expires_at";
    let names: &[&str] = &["A", "B", "C"];
    for _ in 0..2 {
        assert_eq!(peer.execute(insert, &[&names]).unwrap(), 3);
    }
    assert!(admin.one::<bool>("SELECT count(DISTINCT term) = 3 FROM oban_peers"));
}

//! May each role do on a prefix what it may do on that prefix's oban_jobs, and nothing else?

use crate::support::{Ask, Cluster, JOBS, wait_until};

/// The roles, and the grant of the owner of the prefix `app` to each of them on its oban_jobs.
const ROLES: [(&str, &str); 7] = [
    ("owner", ""),
    ("reader", "GRANT SELECT ON app.oban_jobs TO reader"),
    ("peeper", "GRANT SELECT (queue) ON app.oban_jobs TO peeper"),
    ("writer", "GRANT INSERT ON app.oban_jobs TO writer"),
    ("steerer", "GRANT UPDATE ON app.oban_jobs TO steerer"),
    ("nobody", ""),
    ("neighbour", ""),
];

const EVERYBODY: &str = "owner reader peeper writer steerer nobody neighbour";
const READERS: &str = "owner reader peeper";
const WRITERS: &str = "owner writer";

/// Statements, and the roles that may run them. With `1 / count(*)`, a view without rows is a division by
/// zero.
const ACTIONS: [(&str, &str); 84] = [
    ("SELECT oban_version()", EVERYBODY),
    ("SELECT oban_check()", EVERYBODY),
    ("SELECT oban_encode('{}')", EVERYBODY),
    ("SELECT oban_decode('{}')", EVERYBODY),
    ("SELECT oban_listen_channels(prefix => 'app')", READERS),
    ("SELECT oban_listen_channels('{own}', '')", EVERYBODY),
    ("SELECT oban_unlisten_channels(prefix => 'app')", EVERYBODY),
    ("SELECT oban_notify('insert', '{}', 'app')", WRITERS),
    ("SELECT oban_notify('gossip', '{}', 'app')", WRITERS),
    ("SELECT oban_notify('sonar', '{}', 'app')", WRITERS),
    ("SELECT oban_notify('signal', '{}', 'app')", "owner steerer"),
    ("SELECT oban_notify('leader', '{}', 'app')", "owner"),
    ("SELECT oban_notify('own', '{}', '')", EVERYBODY),
    ("SELECT oban_notify_text('own', 'x')", EVERYBODY),
    ("SELECT oban_poll(after => 0, prefix => 'app')", READERS),
    ("SELECT oban_poll('{own}', 0, prefix => '')", EVERYBODY),
    ("CALL oban_wait(timeout => '0s', prefix => 'app')", READERS),
    ("CALL oban_wait('{own}', timeout => '0s', prefix => '')", EVERYBODY),
    ("SELECT oban_position()", EVERYBODY),
    ("SELECT 1 / count(*) FROM oban_stats", EVERYBODY),
    ("SELECT 1 / count(*) FROM obanrs_stats()", EVERYBODY),
    ("SELECT oban_notify_many('insert', ARRAY['{}']::jsonb[], 'app')", WRITERS),
    ("SELECT oban_notify_many('signal', ARRAY['{}']::jsonb[], 'app')", "owner steerer"),
    ("SELECT oban_notify_many('leader', ARRAY['{}']::jsonb[], 'app')", "owner"),
    ("SELECT oban_join(current_user::text, prefix => 'app')", WRITERS),
    ("SELECT oban_join('root', replace => true, prefix => 'app')", ""),
    ("SELECT oban_join(current_user::text, lease => '1s', prefix => 'app')", WRITERS),
    ("SELECT oban_renew(member) FROM roots_member", ""),
    ("SELECT oban_resign(member) FROM roots_member", ""),
    ("SELECT oban_leave(member) FROM roots_member", ""),
    ("SELECT oban_fence(term, prefix => 'app') FROM roots_term", WRITERS),
    ("SELECT oban_leave(1)", EVERYBODY),
    ("SELECT oban_is_leader(prefix => 'app')", EVERYBODY),
    ("SELECT oban_is_leader(node => 'root', prefix => 'app')", READERS),
    ("SELECT oban_term(prefix => 'app')", EVERYBODY),
    ("SELECT oban_term(node => 'root', prefix => 'app')", READERS),
    ("SELECT oban_leader(prefix => 'app')", READERS),
    ("SELECT oban_gossip_put('a', 'q', prefix => 'app')", WRITERS),
    ("SELECT oban_gossip_delete('a', prefix => 'app')", WRITERS),
    ("SELECT * FROM oban_orphans('app')", "owner reader"),
    ("SELECT * FROM oban_rescue('app')", "owner"),
    ("SELECT * FROM oban_fetch('{a}', 'n', prefix => 'app')", "owner"),
    ("CALL oban_take('{a}', 'n', timeout => '0s', prefix => 'app')", "owner"),
    ("SELECT oban_complete_job(1, 1, 'app')", "owner"),
    ("SELECT oban_fail_job(1, 1, 'x', prefix => 'app')", "owner"),
    ("SELECT oban_snooze_job(1, 1, '1s', 'app')", "owner"),
    ("SELECT oban_cancel_job(1, prefix => 'app')", "owner"),
    ("SELECT oban_discard_job(1, prefix => 'app')", "owner"),
    ("SELECT oban_retry_job(1, 'app')", "owner"),
    ("SELECT oban_insert_job('w', prefix => 'app')", "owner"),
    ("SELECT oban_insert_jobs('[{\"worker\": \"w\"}]', 'app')", "owner"),
    ("SELECT oban_prune('app')", "owner"),
    ("SELECT oban_pause_queue('a', prefix => 'app')", "owner steerer"),
    ("SELECT oban_resume_queue('a', prefix => 'app')", "owner steerer"),
    ("SELECT oban_scale_queue('a', 1, prefix => 'app')", "owner steerer"),
    ("SELECT oban_start_queue('a', 1, prefix => 'app')", "owner steerer"),
    ("SELECT oban_stop_queue('a', prefix => 'app')", "owner steerer"),
    ("SELECT oban_pkill_job(1, 'app')", "owner steerer"),
    ("SELECT oban_queue_state('a', prefix => 'app')", READERS),
    ("SELECT 1 / count(*) FROM oban_queue_signals WHERE prefix = 'app'", READERS),
    ("SELECT 1 / count(*) FROM obanrs_queue_signals() WHERE prefix = 'app'", READERS),
    ("SELECT * FROM app.obanrs_queue_signals", "owner"),
    ("SELECT oban_pause_queue('a', prefix => 'bare')", "writer"), // no table: CREATE on the schema writes
    ("SELECT 1 / count(*) FROM oban_members WHERE prefix = 'app'", READERS),
    ("SELECT 1 / count(*) FROM oban_leadership WHERE prefix = 'app'", READERS),
    ("SELECT 1 / count(*) FROM oban_gossip WHERE prefix = 'app'", READERS),
    ("SELECT 1 / count(*) FROM oban_workers", EVERYBODY),
    ("SELECT 1 / count(*) FROM obanrs_memberships() WHERE prefix = 'app'", READERS),
    ("SELECT 1 / count(*) FROM obanrs_leadership() WHERE prefix = 'app'", READERS),
    ("SELECT 1 / count(*) FROM obanrs_gossip() WHERE prefix = 'app'", READERS),
    ("SELECT 1 / count(*) FROM obanrs_workers()", EVERYBODY),
    ("SELECT count(*) FROM obanrs_stagers()", EVERYBODY),
    ("SELECT nextval('obanrs_term')", ""),
    ("SELECT last_value FROM obanrs_term", EVERYBODY), // pg_dump reads it
    ("SELECT oban_install('app')", "owner"),           // the trigger is missing before
    ("SELECT oban_uninstall('app')", "owner"),
    ("SELECT oban_watch('app.oban_jobs', 'c')", "owner"),
    ("SELECT oban_unwatch('app.oban_jobs')", "owner"),
    ("SELECT count(*) FROM oban_watches", EVERYBODY), // Postgres shows everybody the triggers
    ("SELECT count(*) FROM obanrs_watches()", EVERYBODY),
    ("SELECT oban_listen_channels(prefix => 'bare')", "reader"), // no table: USAGE on the schema reads
    ("SELECT oban_poll(prefix => 'bare')", "reader"),
    ("CALL oban_wait(timeout => '0s', prefix => 'bare')", "reader"),
    ("SELECT oban_notify('insert', '{}', 'bare')", "writer"), // and CREATE writes
];

#[test]
fn rights_on_a_prefix_are_rights_on_its_jobs() {
    let cluster = Cluster::with_extension();
    let mut client = cluster.client();
    let mut run = |sql: &str| client.batch_execute(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    for (role, _) in ROLES {
        run(&format!("CREATE ROLE {role} LOGIN"));
    }
    run(
        "CREATE SCHEMA app AUTHORIZATION owner; CREATE SCHEMA next AUTHORIZATION neighbour; CREATE SCHEMA bare",
    );
    run(
        "GRANT USAGE ON SCHEMA app TO PUBLIC; GRANT USAGE ON SCHEMA bare TO reader; GRANT CREATE ON SCHEMA bare TO writer",
    );
    cluster.client_as("postgres", "owner").batch_execute("SELECT oban_install('app')").unwrap();
    cluster.client_as("postgres", "neighbour").batch_execute("SELECT oban_install('next')").unwrap();
    ROLES.iter().for_each(|(_, grant)| run(grant));
    run(
        "CREATE TABLE roots_member AS SELECT oban_join('root', prefix => 'app') AS member; GRANT SELECT ON roots_member TO PUBLIC",
    );
    run(
        "SELECT oban_gossip_put('root', 'default', ttl => '1 hour', prefix => 'app'), oban_pause_queue('default', prefix => 'app')",
    );
    wait_until("it leads", || client.one("SELECT oban_is_leader(prefix => 'app')"));
    client
        .batch_execute(
            "CREATE TABLE roots_term AS SELECT oban_term(prefix => 'app') AS term; GRANT SELECT ON roots_term TO PUBLIC",
        )
        .unwrap();

    for (sql, allowed) in ACTIONS {
        for (role, _) in ROLES {
            client.batch_execute("DROP TRIGGER IF EXISTS obanrs_jobs_update ON app.oban_jobs").unwrap();
            let mut session = cluster.client_as("postgres", role);
            // The changes of tables are rolled back. The memberships end with the session.
            let outcome = if sql.starts_with("CALL") {
                session.batch_execute(sql)
            } else {
                let mut transaction = session.transaction().unwrap();
                let outcome = transaction.batch_execute(sql);
                transaction.rollback().unwrap();
                outcome
            };
            let expected = allowed.split(' ').any(|r| r == role);
            assert_eq!(outcome.is_ok(), expected, "{role}: {sql}: {outcome:?}");
            if let Err(error) = outcome {
                // A view shows no rows. A function raises an error that says which right is missing.
                let wanted = if sql.contains("1 /") { "22012" } else { "42501" };
                assert_eq!(error.code().unwrap().code(), wanted, "{role}: {sql}: {error:?}");
            }
        }
    }
    assert!(client.one::<bool>("SELECT oban_is_leader(prefix => 'app')"), "and root still leads");

    // Each object of the extension is in the list.
    let objects = "
        SELECT COALESCE(p.proname, c.relname)::text FROM pg_depend d
        JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'obanrs'
        LEFT JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid AND p.prorettype <> 'trigger'::regtype
        LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
        WHERE d.deptype = 'e' AND (p.oid IS NOT NULL OR c.oid IS NOT NULL)";
    let objects = client.query(objects, &[]).unwrap();
    assert!(objects.len() > 20);
    for object in objects.iter().map(|row| row.get::<_, String>(0)) {
        let named =
            |sql: &str| sql.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == object);
        assert!(ACTIONS.iter().any(|(sql, _)| named(sql)), "the matrix does not know {object}");
    }
}

/// Only the role that joined a member, and that role's members, may change it.
#[test]
fn members_of_a_role_act_for_it() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE ROLE app; CREATE ROLE ann LOGIN; CREATE ROLE bob LOGIN; GRANT app TO ann, bob;
             GRANT INSERT ON oban_jobs TO app",
        )
        .unwrap();
    let (mut ann, mut bob) = (cluster.client_as("postgres", "ann"), cluster.client_as("postgres", "bob"));
    let own: i64 = ann.one("SELECT oban_join('anns')");
    let shared: i64 = {
        ann.batch_execute("SET ROLE app").unwrap();
        ann.one("SELECT oban_join('apps', 'Of app')")
    };
    let error = bob.batch_execute(&format!("SELECT oban_leave({own})")).unwrap_err();
    assert_eq!(error.code().unwrap().code(), "42501");
    assert!(bob.one::<bool>(&format!("SELECT oban_leave({shared})")));
}

/// A session that reads views and lists gets no error from a tenant's tables, does not wait for them, and
/// runs no code of theirs.
#[test]
fn views_filter_and_do_not_raise_whatever_a_tenant_does() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE ROLE mallory LOGIN; CREATE SCHEMA m AUTHORIZATION mallory; SELECT oban_join('a')",
        )
        .unwrap();
    wait_until("it leads", || client.one("SELECT oban_is_leader()"));
    let mut mallory = cluster.client_as("postgres", "mallory");
    mallory
        .batch_execute(
            "SELECT oban_install('m');
             CREATE FUNCTION m.raise() RETURNS boolean LANGUAGE plpgsql AS $$
             BEGIN RAISE 'ha' USING ERRCODE = '57014'; END $$;
             CREATE POLICY p ON m.oban_peers USING (m.raise());
             INSERT INTO m.oban_peers VALUES ('Oban', 'n', timezone('UTC', now()), 'infinity');
             ALTER TABLE m.oban_peers ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
             CREATE INDEX ON m.oban_peers (node) WHERE node <> 'x'",
        )
        .unwrap();
    let seen = "SELECT string_agg(prefix || ' ' || node, ', ' ORDER BY prefix) FROM oban_leadership";
    assert_eq!(client.one::<String>(seen), "m n, public a");
    assert_eq!(client.one::<String>("SELECT node FROM oban_leader(prefix => 'm')"), "n");

    // A tenant's lock hides the tenant's rows, and holds up no other role: the timeout would be an error.
    client.batch_execute("SET lock_timeout = '1ms'").unwrap();
    mallory
        .batch_execute(&format!(
            "DROP TABLE m.oban_jobs;
             CREATE TABLE m.oban_jobs {JOBS} PARTITION BY LIST (queue);
             CREATE TABLE m.part PARTITION OF m.oban_jobs DEFAULT; SELECT oban_install('m');
             BEGIN; LOCK TABLE m.part, m.oban_jobs, m.oban_peers"
        ))
        .unwrap();
    assert_eq!(client.one::<String>(seen), "public a");
    assert!(client.one::<bool>("SELECT ok FROM oban_check() WHERE item = 'prefix m'"));
    client.batch_execute("SELECT oban_install('m')").unwrap();
    mallory.batch_execute("DROP TABLE m.oban_peers CASCADE; COMMIT").unwrap();
    assert_eq!(client.one::<String>(seen), "public a");
}

/// Only roles with rights on a prefix see what went wrong there.
#[test]
fn troubles_of_a_prefix_are_shown_to_roles_with_rights_on_it() {
    let cluster = Cluster::installed();
    let mut client = cluster.client();
    client
        .batch_execute(
            "CREATE ROLE monitor LOGIN; GRANT pg_monitor TO monitor; CREATE ROLE reader LOGIN; CREATE ROLE nobody LOGIN;
             GRANT SELECT ON oban_jobs TO reader;
             ALTER TABLE oban_peers ADD CONSTRAINT \"SECRET\" CHECK (true);
             SELECT oban_join('a')",
        )
        .unwrap();
    let told = "SELECT COALESCE(string_agg(last_error, ''), '') LIKE '%SECRET%' FROM oban_workers";
    wait_until("the election failed", || client.one(told));
    let check =
        "SELECT COALESCE(string_agg(detail, ''), '') LIKE '%SECRET%' FROM oban_check() WHERE item = 'keeper'";
    let leaders = "SELECT COALESCE(string_agg(detail, ''), '') FROM oban_check() WHERE item = 'leaders of public' AND NOT ok";
    wait_until("nobody leads for a while", || client.one::<String>(leaders).contains("Oban"));
    for (role, sees_trouble, sees_prefix) in [
        ("postgres", true, true),
        ("monitor", true, false),
        ("reader", false, true),
        ("nobody", false, false),
    ] {
        let mut session = cluster.client_as("postgres", role);
        assert_eq!(session.one::<bool>(told), sees_trouble, "{role}");
        assert_eq!(session.one::<bool>(check), sees_trouble, "{role}");
        assert_eq!(session.one::<String>(leaders).contains("Oban"), sees_prefix, "{role}");
    }
    client.batch_execute("ALTER TABLE oban_peers DROP CONSTRAINT \"SECRET\"").unwrap();
    wait_until("it leads", || client.one("SELECT oban_is_leader()"));
    assert_eq!(client.one::<String>(leaders), "");
}

//! What do event triggers see of `oban_install`, and may they call it?

use postgres::Client;

use super::{PEERS, tenant, triggers};
use crate::support::{Ask, Cluster, JOBS};

/// The event triggers of a command that calls `oban_install` see what the call did to tables.
#[test]
fn event_triggers_of_a_surrounding_command_see_what_was_done() {
    let cluster = Cluster::with_extension();
    let (mut root, mut tenant) = tenant(&cluster);
    root.batch_execute(
        "CREATE TABLE seen (n serial, tag text, object text); GRANT ALL ON seen, seen_n_seq TO PUBLIC;
         CREATE FUNCTION see() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO public.seen (tag, object) SELECT command_tag, object_identity FROM pg_event_trigger_ddl_commands();
         END $$;
         CREATE FUNCTION see_drops() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO public.seen (tag, object) SELECT 'dropped', object_identity FROM pg_event_trigger_dropped_objects();
         END $$;
         CREATE EVENT TRIGGER see ON ddl_command_end EXECUTE FUNCTION see();
         CREATE EVENT TRIGGER see_drops ON sql_drop EXECUTE FUNCTION see_drops()",
    )
    .unwrap();
    tenant
        .batch_execute(&format!(
            "CREATE TABLE t.oban_jobs {JOBS}; {PEERS}); TRUNCATE public.seen;
             CREATE TABLE t.x AS SELECT oban_install('t')::text"
        ))
        .unwrap();
    let saw = |root: &mut Client| -> Vec<String> {
        let rows = root.query("SELECT tag || ' ' || object FROM seen ORDER BY n", &[]).unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    let seen = saw(&mut root);
    for wanted in [
        "ALTER TABLE t.oban_peers",
        "CREATE TRIGGER obanrs_peers_guard on t.oban_peers",
        "CREATE TRIGGER obanrs_jobs_insert on t.oban_jobs",
        "CREATE TABLE AS t.x",
    ] {
        assert!(seen.iter().any(|line| line == wanted), "{wanted} is missing: {seen:?}");
    }
    assert_eq!((triggers(&mut root, "t.oban_jobs"), triggers(&mut root, "t.oban_peers")), (2, 3));

    root.batch_execute("TRUNCATE seen; CREATE TABLE t.y AS SELECT oban_uninstall('t')::text").unwrap();
    let seen = saw(&mut root);
    for wanted in
        ["ALTER TABLE t.oban_peers", "dropped t.oban_peers.term", "dropped obanrs_jobs_insert on t.oban_jobs"]
    {
        assert!(seen.iter().any(|line| line == wanted), "{wanted} is missing: {seen:?}");
    }
    assert_eq!((triggers(&mut root, "t.oban_jobs"), triggers(&mut root, "t.oban_peers")), (0, 0));

    // A call that fails within such a command, and is caught there, leaves the tables as they were.
    root.batch_execute(
        "SELECT oban_install('t'); CREATE VIEW t.v AS SELECT term FROM t.oban_peers;
         CREATE FUNCTION try() RETURNS text LANGUAGE plpgsql AS $$ BEGIN
             PERFORM oban_uninstall('t'); RETURN 'done'; EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE; END $$;
         CREATE TABLE t.z AS SELECT try(), oban_install('q')::text, try() AS again; ALTER TABLE t.z ADD COLUMN i int",
    )
    .unwrap();
    assert_eq!(root.one::<String>("SELECT try || ' ' || again FROM t.z"), "2BP01 2BP01");
    assert_eq!(triggers(&mut root, "t.oban_peers"), 3);
}

#[test]
fn event_triggers_may_install_and_uninstall() {
    let cluster = Cluster::with_extension();
    let mut root = cluster.client();
    root.batch_execute(
        "CREATE FUNCTION act() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
             PERFORM public.oban_install('t'); PERFORM public.oban_uninstall('t'); PERFORM public.oban_install('t');
         END $$;
         CREATE EVENT TRIGGER at_end ON ddl_command_end WHEN TAG IN ('CREATE VIEW') EXECUTE FUNCTION act();
         CREATE EVENT TRIGGER at_start ON ddl_command_start WHEN TAG IN ('CREATE VIEW') EXECUTE FUNCTION act();
         CREATE FUNCTION undo() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
             PERFORM public.oban_uninstall('t');
         END $$;
         CREATE EVENT TRIGGER at_drop ON sql_drop WHEN TAG IN ('DROP VIEW') EXECUTE FUNCTION undo();
         CREATE FUNCTION rewrite() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
             PERFORM public.oban_install('r');
         END $$;
         CREATE EVENT TRIGGER at_rewrite ON table_rewrite EXECUTE FUNCTION rewrite();
         CREATE VIEW v AS SELECT 1 AS one",
    )
    .unwrap();
    assert_eq!((triggers(&mut root, "t.oban_jobs"), triggers(&mut root, "t.oban_peers")), (2, 3));
    root.batch_execute("DROP VIEW v").unwrap();
    assert_eq!((triggers(&mut root, "t.oban_jobs"), triggers(&mut root, "t.oban_peers")), (0, 0));
    root.batch_execute("CREATE TABLE w (i int); INSERT INTO w VALUES (1); ALTER TABLE w ALTER i TYPE bigint")
        .unwrap();
    assert_eq!((triggers(&mut root, "r.oban_jobs"), triggers(&mut root, "r.oban_peers")), (2, 3));
}

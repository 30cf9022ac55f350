//! A record of what leaders wrote, and the check that there never were two.
//!
//! The check reads the record alone, so it shares nothing with the code that it checks.

use postgres::Client;

/// A transaction that passed its fence: its node and term, and the time from the fence until shortly before
/// its commit, in microseconds of the server's clock.
#[derive(Clone, Debug)]
pub struct Write {
    pub node: String,
    pub term: i64,
    pub entered: i64,
    pub left: i64,
}

/// The table of the record, and `act`, with which a leader writes. `act` returns false without a term, and
/// when the fence refuses the term.
pub const SCHEMA: &str = "
    CREATE TABLE history (node text, term bigint, entered timestamptz, left_at timestamptz);
    CREATE FUNCTION act(who text, term bigint) RETURNS boolean LANGUAGE plpgsql AS $$
    DECLARE entered timestamptz;
    BEGIN
        IF term IS NULL THEN RETURN false; END IF;
        BEGIN
            PERFORM oban_fence(term);
        EXCEPTION WHEN serialization_failure THEN RETURN false;
        END;
        entered := clock_timestamp();
        PERFORM pg_sleep(random() * 0.01);
        INSERT INTO history VALUES (who, term, entered, clock_timestamp());
        RETURN true;
    END $$";

pub fn read(client: &mut Client) -> Vec<Write> {
    let micros = |column: &str| format!("(extract(epoch FROM {column}) * 1000000)::bigint");
    let sql = format!("SELECT node, term, {}, {} FROM history", micros("entered"), micros("left_at"));
    let rows = client.query(&sql, &[]).expect("the record is there");
    let write =
        |r: &postgres::Row| Write { node: r.get(0), term: r.get(1), entered: r.get(2), left: r.get(3) };
    rows.iter().map(write).collect()
}

/// Checks a history. `Err` says what is wrong: two nodes with one term, two terms at a time, or a term after
/// a greater one.
pub fn check(history: &[Write]) -> Result<(), String> {
    let mut sorted: Vec<&Write> = history.iter().collect();
    sorted.sort_by_key(|w| (w.entered, w.left));
    // For each term so far, the latest end of a write and its node.
    let mut last: Option<(&Write, i64)> = None;
    for write in sorted {
        if let Some((before, left)) = last {
            if before.term == write.term && before.node != write.node {
                return Err(format!("one term of two nodes: {before:?} and {write:?}"));
            }
            if write.term < before.term {
                return Err(format!("a term that is over: {write:?} after {before:?}"));
            }
            if write.term > before.term && write.entered < left {
                return Err(format!("two at a time: {write:?} while {before:?} (until {left})"));
            }
        }
        let until = match last {
            Some((before, left)) if before.term == write.term => left.max(write.left),
            _ => write.left,
        };
        last = Some((write, until));
    }
    Ok(())
}

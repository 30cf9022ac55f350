//! Elections in `<prefix>.oban_peers`: what `logic::peer::View::plan` says, done.
//!
//! Each step is one short transaction, as the table's owner or the schema's (`catalog::elector`). The copy in
//! shared memory is changed after its commit (see `logic::peer` for what that order guarantees, and for
//! what a successor does with the row if this keeper dies in between).
//!
//! A prefix whose table can't be used stops only itself: a locked or broken one is tried again with
//! a growing delay, name by name, a missing one when the next member joins or the prefix is installed.
//! Each such state is logged once.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::SpiResult;

use crate::bus::{self, Target};
use crate::config;
use crate::error;
use crate::logic::backoff::ELECTION;
use crate::logic::lifecycle::Kind;
use crate::logic::outbox::Origin;
use crate::logic::peer;
use crate::logic::peer::{Electorate, Leadership, MAX_NODE, Plan, Verdict, judge};
use crate::logic::text::Text;
use crate::logic::wire;
use crate::pg::{catalog, encoding, latch, session, spi, time, xact};
use crate::shmem;

type Node = Text<MAX_NODE>;

/// How long a statement waits for a lock on a user's table: a prefix that is locked is not worth more
/// of the others' time.
pub const LOCK_TIMEOUT: &CStr = c"50ms";

/// How long the commit waits. If it announces the end of a leadership, it queues with every other
/// NOTIFY of the server, and the holder of that lock may be waiting for its disk or its standby.
const COMMIT_LOCK_TIMEOUT: &CStr = c"5s";

/// The longest that the statements of one step may take, in milliseconds: users' triggers run in them.
const STEP_LIMIT: i32 = 1_000;

/// Why a name of a prefix has no elections at the moment.
struct Failure {
    times: u32,
    retry_at: i64,
    message: String,
}

type Key = (String, String);

pub struct Elections {
    database: u32,
    /// By prefix and name.
    failures: HashMap<Key, Failure>,
    /// Prefixes without a table that can be used: nothing to wait for but somebody who changes that.
    missing: HashSet<String>,
    /// An election found that the extension is gone: the keeper has to look, too.
    pub dropped: bool,
}

/// What a transaction found or did; shared memory gets to know it after the commit.
enum Outcome {
    /// The row is a member's of ours.
    Ours(Leadership),
    /// The row is another node's.
    Foreign(Leadership),
    /// There is no row, and no candidate for it.
    Vacant,
    /// Somebody was faster: look again.
    Again,
    Missing {
        hint: String,
    },
    /// The extension was dropped.
    Dropped,
}

impl Elections {
    pub fn new(database: u32) -> Self {
        Self { database, failures: HashMap::new(), missing: HashSet::new(), dropped: false }
    }

    /// Does what is due now; when to come back, if ever.
    ///
    /// Renewals come first, and what failed before comes last. A step that fails has cost the time of a
    /// lock or of somebody's trigger, so the pass ends with it: the next one begins with what has
    /// become due meanwhile, and leaves out what failed until its delay is over.
    pub fn pass(&mut self) -> Option<i64> {
        let (now, lease) = (time::now(), config::lease());
        let planned = |v: peer::View<'_>| -> Vec<(Electorate, bool)> {
            let all = v.electorates(self.database).into_iter();
            all.map(|e| (e, matches!(v.plan(&e, now, lease), Plan::Renew { .. }))).collect()
        };
        let mut electorates = shmem::peers_view(planned).unwrap_or_default();
        self.failures.retain(|key, _| electorates.iter().any(|(e, _)| *key == names(e)));
        self.missing.retain(|prefix| electorates.iter().any(|(e, _)| prefix == e.prefix.as_str()));
        electorates.sort_by_cached_key(|(e, renewal)| {
            (!renewal, self.failures.get(&names(e)).map_or(0, |f| f.times))
        });
        let mut due = None::<i64>;
        for (electorate, _) in &electorates {
            let waits =
                self.failures.get(&names(electorate)).map(|f| f.retry_at).filter(|at| time::now() < *at);
            let next = match waits {
                Some(retry_at) => Some(retry_at),
                None => match self.step(electorate) {
                    Ok(next) => next,
                    Err(message) => {
                        self.failed(electorate, message);
                        return Some(now);
                    }
                },
            };
            due = due.into_iter().chain(next).min();
        }
        due
    }

    /// What is due for one electorate; when to come back, or why it failed.
    fn step(&mut self, electorate: &Electorate) -> Result<Option<i64>, String> {
        // Twice is enough for every honest race; what is left comes with the next pass.
        for _ in 0..2 {
            let now = time::now();
            let planned = shmem::peers_view(|v| v.plan(electorate, now, config::lease()));
            let Ok(plan) = planned else { return Ok(None) };
            let outcome = match plan {
                Plan::Forget => {
                    let _ = shmem::peers(|p| p.vacate(electorate));
                    return Ok(None);
                }
                Plan::Wait { until } => {
                    wake_considered(electorate);
                    return Ok(Some(until));
                }
                Plan::Renew { node, term } => {
                    transaction(c"obanrs: renewing a lease", || renew(electorate, &node, term))?
                }
                Plan::Elect { ended, candidate } => {
                    transaction(c"obanrs: election", || elect(electorate, ended, candidate))?
                }
            };
            match outcome {
                Outcome::Again => {
                    let _ = shmem::peers(|p| p.vacate(electorate));
                }
                outcome => return Ok(self.publish(electorate, outcome)),
            }
        }
        // A trigger that suppresses our row, or the like: not worth the processor's whole time.
        Err("its row keeps changing under us".into())
    }

    /// Tells shared memory, and whoever waits for an election, what the table says now.
    fn publish(&mut self, electorate: &Electorate, outcome: Outcome) -> Option<i64> {
        let prefix = electorate.prefix.as_str();
        match outcome {
            Outcome::Missing { hint } => {
                let _ = shmem::peers(|p| p.vacate(electorate));
                wake_considered(electorate);
                if self.missing.insert(prefix.to_owned()) {
                    let message = format!("obanrs holds no elections in prefix \"{prefix}\"");
                    self.note(&format!("{message}: {hint}"));
                    error::log(PgLogLevel::WARNING, PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE, message, hint);
                }
                return None;
            }
            Outcome::Ours(row) | Outcome::Foreign(row) => {
                let before = shmem::peers(|p| {
                    let before = p.view().leadership(electorate).copied();
                    p.record(row);
                    before
                });
                let new = before.ok().flatten().is_none_or(|b| (b.node, b.term) != (row.node, row.term));
                if new && row.member != 0 {
                    log!(
                        "obanrs: node \"{}\" leads \"{}\" in prefix \"{}\" (term {})",
                        row.node.as_str(),
                        electorate.name.as_str(),
                        electorate.prefix.as_str(),
                        row.term
                    );
                }
            }
            Outcome::Dropped => {
                self.dropped = true;
                return None;
            }
            Outcome::Vacant | Outcome::Again => {
                let _ = shmem::peers(|p| p.vacate(electorate));
            }
        }
        self.failures.remove(&names(electorate));
        self.missing.remove(prefix);
        let (now, lease) = (time::now(), config::lease());
        // Somebody may have come or gone meanwhile; the plan says so.
        match shmem::peers_view(|v| v.plan(electorate, now, lease)).ok()? {
            Plan::Wait { until } => {
                wake_considered(electorate);
                Some(until)
            }
            Plan::Forget => {
                let _ = shmem::peers(|p| p.vacate(electorate));
                None
            }
            Plan::Renew { .. } | Plan::Elect { .. } => Some(now),
        }
    }

    /// For the view oban_workers.
    fn note(&self, what: &str) {
        let _ = shmem::registry(|r| r.note_error(Kind::Keeper, self.database, what));
    }

    fn failed(&mut self, electorate: &Electorate, message: String) {
        let key = names(electorate);
        let (times, known) = match self.failures.get(&key) {
            Some(before) => (before.times + 1, before.message == message),
            None => (1, false),
        };
        if !known {
            let (prefix, name) = &key;
            let what =
                format!("election of \"{name}\" in prefix \"{prefix}\" failed, will try again: {message}");
            self.note(&what);
            warning!("obanrs: {what}");
        }
        let retry_at = time::now() + ELECTION.delay(times);
        self.failures.insert(key, Failure { times, retry_at, message });
    }
}

fn names(electorate: &Electorate) -> Key {
    (electorate.prefix.as_str().to_owned(), electorate.name.as_str().to_owned())
}

/// Runs one step in a transaction; an ERROR in it is given back by its message.
fn transaction(activity: &'static CStr, step: impl FnOnce() -> Outcome) -> Result<Outcome, String> {
    xact::contain(|| {
        let outcome = xact::run(activity, || {
            let outcome = xact::limit(STEP_LIMIT, step);
            session::set(c"lock_timeout", COMMIT_LOCK_TIMEOUT);
            outcome
        });
        session::set(c"lock_timeout", LOCK_TIMEOUT); // an abort takes it back by itself
        outcome
    })
    .map_err(|caught| caught.message)
}

fn wake_considered(electorate: &Electorate) {
    for procno in shmem::peers(|p| p.mark_considered(electorate)).unwrap_or_default() {
        latch::wake(procno);
    }
}

/// The prefix's table by its quoted name, and as whom to write it, or why there can be no election.
fn table(electorate: &Electorate) -> Result<(String, u32), Outcome> {
    let prefix = electorate.prefix.as_str();
    let hint = format!("Run SELECT oban_install({}).", pgrx::spi::quote_literal(prefix));
    let installed = || catalog::peers_table(prefix).filter(|t| t.installed);
    let Some(table) = installed() else { return Err(Outcome::Missing { hint }) };
    // Not one that somebody put in its place while its lock was waited for. (A name can change hands later,
    // too: whom that could harm is `catalog::elector`'s business.)
    catalog::lock_for_writing(table.oid);
    match installed() {
        Some(now) if now.oid == table.oid => Ok((spi::qualified(prefix, "oban_peers"), now.elector)),
        _ => Err(Outcome::Again),
    }
}

/// Extends the lease of our own row, and of no other.
fn renew(electorate: &Electorate, node: &Node, term: i64) -> Outcome {
    let (table, owner) = match table(electorate) {
        Ok(found) => found,
        Err(missing) => return missing,
    };
    let expires_at = time::now() + config::lease();
    let sql = format!(
        "UPDATE ONLY {table} SET expires_at = $1 WHERE name = $2 AND node = $3 AND term = $4 RETURNING started_at"
    );
    let renewed = spi::as_owner(owner, || {
        Spi::connect(|client| {
            let args = [
                time::utc_timestamp(expires_at).into(),
                electorate.name.as_str().into(),
                node.as_str().into(),
                term.into(),
            ];
            let rows = spi::write(client, &sql, &args)?;
            if rows.is_empty() { Ok(None) } else { rows.first().get_one::<Timestamp>() }
        })
    });
    match or_raise(renewed) {
        Some(started_at) => {
            let member = shmem::peers_view(|v| v.leadership(electorate).map_or(0, |l| l.member)).unwrap_or(0);
            Outcome::Ours(Leadership {
                used: 1,
                electorate: *electorate,
                member,
                node: *node,
                term,
                started_at: time::micros(started_at),
                expires_at,
            })
        }
        // Deleted, or another's by now: no leader of ours, and the next plan looks for one.
        None => Outcome::Again,
    }
}

/// One row of oban_peers.
struct PeerRow {
    node: Node,
    term: i64,
    boot: Option<i64>,
    started_at: i64,
    expires_at: i64,
}

/// Ends the leadership that is over and elects the candidate, in one transaction, which also
/// announces the end (`down`), once.
fn elect(electorate: &Electorate, ended: Option<(Node, i64)>, candidate: Option<(i64, Node)>) -> Outcome {
    // The sequence of terms is the extension's: keep it from being dropped under us.
    if catalog::lock_extension().is_none() {
        return Outcome::Dropped;
    }
    let (table, owner) = match table(electorate) {
        Ok(found) => found,
        Err(missing) => return missing,
    };
    let (name, boot, now) = (electorate.name.as_str(), or_raise(shmem::boot()), time::now());
    let mut down = false;
    // The extension may have been dropped and created since, and its sequence with it.
    let mut seen = ended.map_or(0, |(_, term)| term);

    if let Some((node, term)) = ended {
        let sql = format!("DELETE FROM ONLY {table} WHERE name = $1 AND node = $2 AND term = $3 RETURNING 1");
        let args = [name.into(), node.as_str().into(), term.into()];
        down |= changed(owner, &sql, &args);
    }
    let mut row = spi::as_owner(owner, || or_raise(read_row(&table, name)));
    let mut adopted = None;
    if let Some(found) = &row {
        seen = seen.max(found.term);
        let live = shmem::peers_view(|v| v.member_of_node(electorate, found.node.as_str()).map(|m| m.id));
        match judge(found.expires_at, found.boot, boot, live.ok().flatten(), now) {
            Verdict::Foreign { .. } => {}
            Verdict::Adopt { member } if found.term != 0 => adopted = Some(member),
            Verdict::Adopt { .. } => {} // no row that a keeper wrote: respected as any other
            Verdict::Void => {
                // Only this very row: by now it may be renewed, or another's.
                let sql = format!(
                    "DELETE FROM ONLY {table} WHERE name = $1 AND started_at = $2 AND expires_at = $3 RETURNING 1"
                );
                let args = [
                    name.into(),
                    time::utc_timestamp(found.started_at).into(),
                    time::utc_timestamp(found.expires_at).into(),
                ];
                if !changed(owner, &sql, &args) {
                    return Outcome::Again;
                }
                down = true;
                row = None;
            }
        }
    }
    if down {
        announce_down(electorate);
    }
    let leadership = |member, node, term, started_at, expires_at| Leadership {
        used: 1,
        electorate: *electorate,
        member,
        node,
        term,
        started_at,
        expires_at,
    };
    if let Some(row) = row {
        return match adopted {
            // Renewed at once: a row that can't be renewed must not be found here again and again.
            Some(member) => match renew(electorate, &row.node, row.term) {
                Outcome::Ours(renewed) => Outcome::Ours(Leadership { member, ..renewed }),
                _ => or_raise(Err("its row can't be renewed")),
            },
            None => {
                // The copy of a foreign row says when to look again: its node may resign before.
                let look_at = row.expires_at.min(now + config::lease() / 2);
                Outcome::Foreign(leadership(0, row.node, row.term, row.started_at, look_at))
            }
        };
    }
    let Some((member, node)) = candidate else { return Outcome::Vacant };
    let (term, expires_at) = (or_raise(next_term(seen)), now + config::lease());
    let sql = format!(
        "INSERT INTO {table} (name, node, started_at, expires_at, term, boot) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (name) DO NOTHING RETURNING 1"
    );
    let args = [
        name.into(),
        node.as_str().into(),
        time::utc_timestamp(now).into(),
        time::utc_timestamp(expires_at).into(),
        term.into(),
        boot.into(),
    ];
    if changed(owner, &sql, &args) {
        Outcome::Ours(leadership(member, node, term, now, expires_at))
    } else {
        Outcome::Again
    }
}

/// Runs a statement with RETURNING as the table's owner; whether it changed anything.
fn changed(owner: u32, sql: &str, args: &[DatumWithOid<'_>]) -> bool {
    let run = || Spi::connect(|client| SpiResult::Ok(!spi::write(client, sql, args)?.is_empty()));
    spi::as_owner(owner, || or_raise(run()))
}

fn read_row(table: &str, name: &str) -> SpiResult<Option<PeerRow>> {
    let sql = format!("SELECT node, term, boot, started_at, expires_at FROM ONLY {table} WHERE name = $1");
    Spi::connect(|client| {
        let rows = client.select(&sql, Some(1), &[name.into()])?;
        if rows.is_empty() {
            return Ok(None);
        }
        let row = rows.first();
        let time_at = |at| SpiResult::Ok(row.get::<Timestamp>(at)?.map_or(0, time::micros));
        Ok(Some(PeerRow {
            node: Text::truncated(&row.get::<String>(1)?.unwrap_or_default()),
            term: row.get(2)?.unwrap_or(0),
            boot: row.get(3)?,
            started_at: time_at(4)?,
            expires_at: time_at(5)?,
        }))
    })
}

/// The next term: above all before it, on this timeline and on earlier ones, and above `seen` if it is one.
fn next_term(seen: i64) -> SpiResult<i64> {
    const SEQUENCE: &str = "
        SELECT c.oid::pg_catalog.regclass FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_extension e ON e.extnamespace OPERATOR(pg_catalog.=) c.relnamespace
        WHERE e.extname OPERATOR(pg_catalog.=) 'obanrs' AND c.relname OPERATOR(pg_catalog.=) 'obanrs_term'";
    let least = peer::next_term(session::timeline(), seen);
    Spi::connect(|client| {
        let next = spi::write(client, &format!("SELECT pg_catalog.nextval(({SEQUENCE}))"), &[])?;
        let term = next.first().get_one::<i64>()?.unwrap_or(0);
        if term >= least {
            return Ok(term);
        }
        spi::write(client, &format!("SELECT pg_catalog.setval(({SEQUENCE}), $1)"), &[least.into()])?;
        Ok(least)
    })
}

/// Tells every node, foreign ones too, that a leadership ended: they hold an election.
fn announce_down(electorate: &Electorate) {
    // oban_install refuses a prefix whose channels don't fit; an adopted table may still have one.
    if let Ok(target) = Target::new(electorate.prefix.as_str(), "leader") {
        let payload = wire::object_of_one("down", &encoding::to_server(electorate.name.as_str()));
        if payload.len() <= wire::MAX_PAYLOAD {
            or_raise(bus::queue(&target, payload, Origin::Call));
        }
    }
}

/// In a transaction of the keeper: an error of ours ends it as one of Postgres' does.
fn or_raise<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|e| pgrx::error!("{e}"))
}

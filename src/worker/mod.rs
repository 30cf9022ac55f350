//! The background workers and the hooks that keep them out of the way.
//!
//! Races that the design has to survive, each with a test of this name in tests/server/lifecycle.rs:
//!
//! * `extension_created_and_dropped_in_any_order`: CREATE and DROP EXTENSION, committed or rolled back,
//!   in quick succession. The commit of each such transaction makes the keeper (or a new one) look again.
//! * `a_terminated_keeper_comes_back`, `a_terminated_coordinator_comes_back`: SIGTERM ends both wherever they are; the
//!   postmaster restarts a coordinator that ended with an exit code of 1, and the coordinator the keepers, whose
//!   slots outlive it. (`workers_leave_without_a_word`, `a_cancel_ends_no_worker`.)
//! * `databases_can_be_dropped_renamed_and_copied`: a keeper is a connection, which these commands
//!   don't tolerate. See `ddl` and `logic::lifecycle` for holds.
//! * `a_command_that_fails_gives_the_keeper_back`.
//! * `a_database_made_from_a_template_gets_a_keeper`, `a_keeper_leaves_a_database_that_becomes_a_template`,
//!   `a_database_that_became_usable_behind_our_back_gets_a_keeper`.
//! * `every_database_with_the_extension_has_a_keeper_after_a_restart`, with a few looks at a time.
//! * A process that looks into a database meets everything there that a keeper meets; what a commit tells meanwhile
//!   counts more than what it finds (`a_commit_during_a_look_counts_more` in logic::lifecycle, looks.rs).
//! * `nothing_is_lost`, `museum_15_…`, `a_ring_kept_full_…`, `soak_a_relay_that_does_not_come_…` (bus.rs,
//!   museum.rs): a relay that ends at any moment, stands still, or does not come back.
//! * `positions_never_go_back`, `more_databases_than_slots_are_logged_once`: who drops the extension wakes the
//!   keeper before caches are told, so that it looks by a query (Postgres 18 has a cache here).
//! * Between a keeper's commit and what it tells shared memory, members resign and join and rows are deleted
//!   (`what_ended_meanwhile_does_not_begin_again` and others in logic::peer); terms are drawn before rows are had
//!   (`terms_rise_in_the_order_of_the_rows`); rows are fenced, by prepared transactions too
//!   (`nobody_else_leads_until_the_fencing_transaction_ends`); all of it at once (`never_two_leaders`).
//! * `a_missing_table_costs_nothing_while_it_is_missing`: Postgres' timer for a step goes off long after the step; and
//!   whoever installs the table wakes the keeper a moment before its caches are told.
//! * A put wakes a relay that has ceased to look for gossip (`there_is_a_broadcast_while_there_are_entries`,
//!   `an_interval_of_0_turns_it_off_and_a_reload_on`); whoever installs, renames or drops a prefix wakes it before
//!   caches are told (`prefixes_that_come_go_and_change_their_names_are_followed`); floods of NOTIFY come while it has
//!   to go (`a_flood_of_bombs_does_not_hold_the_relay_up`). A schema is renamed while its gossip is put, sent and heard
//!   (`a_renamed_schema_keeps_its_entries`), or dropped, or not yet committed
//!   (`a_new_schema_of_an_old_name_has_nothing_of_the_old_one`).
//! * A table of leaders is dropped, renamed or moved while it is being elected in, renewed or fenced, in a savepoint, in
//!   a prepared transaction (schemas.rs; `what_is_told_of_a_table_that_has_gone_is_read_again` in logic::peer). A member
//!   joins in a transaction that creates its schema, and that may be rolled back.
//! * The wall clock is set while anything waits for its time (clock.rs).
//! * NOTIFY's queue is full while leaderships end and messages wait (`elections_go_on_while_notifys_queue_is_full`,
//!   rings.rs).
//! * `a_restart_brings_everything_back`, `shutdown_is_fast`, `idle_means_idle`.
#![allow(unsafe_code)] // the exported main functions

mod coordinator;
mod ddl;
mod election;
mod exchange;
mod keeper;
mod look;
mod process;
mod relay;
mod trouble;
pub mod view;

/// In `_PG_init` while preloading.
pub fn register() {
    ddl::install();
    coordinator::register();
}

//! The counters of a database, which the view oban_stats shows. Each counts since the database has
//! its slot.

/// Declares the counters: a variant and its name in oban_stats, in the order of the view.
macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A counter. The number of a variant is the counter's place in shared memory.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter {
            $($(#[$doc])* $variant,)*
        }

        impl Counter {
            /// All counters, in the order in which oban_stats shows them.
            pub const ALL: [Counter; [$($name),*].len()] = [$(Counter::$variant),*];

            /// The counter's name in oban_stats.
            pub fn name(self) -> &'static str {
                match self {
                    $(Counter::$variant => $name,)*
                }
            }
        }
    };
}

counters! {
    /// Messages that were given a position.
    Published = "published",
    /// Messages that the relay sent.
    Relayed = "relayed",
    /// Wake-ups that the relay did not send, because it sent an equal one in the same transaction.
    Merged = "merged",
    /// Messages that no session listened to.
    Unheard = "unheard",
    /// Transactions in which the relay sent messages.
    RelayTransactions = "relay_transactions",
    /// Messages that their own transactions sent by native NOTIFY: signals, leaders, and fallbacks.
    Native = "native",
    /// Messages that were sent natively because there was no relay or no room; stranded messages
    /// count here, too.
    NativeFallbacks = "native_fallbacks",
    /// Transactions with messages that found no room in the ring, or were queued too late for it.
    Gaps = "gaps",
    /// Messages of triggers and of calls that could not be sent.
    Dropped = "dropped",
    /// Calls of oban_poll and oban_wait.
    Polls = "polls",
    /// Leaderships that a keeper gave to a member.
    Elections = "elections",
    /// Leaderships of members that ended by their lease.
    Lapses = "lapses",
    /// Calls of oban_fence with a term that the caller did not hold.
    FencesRefused = "fences_refused",
    /// Calls of oban_gossip_put that put something.
    GossipPuts = "gossip_puts",
    /// Entries of oban_gossip that ended by their ttl.
    GossipExpired = "gossip_expired",
    /// Rounds in which the relay sent entries.
    GossipBroadcasts = "gossip_broadcasts",
    /// Checks that were too long for a message, so that a part was left out.
    GossipShortened = "gossip_shortened",
    /// Checks of foreign nodes that the relay put into the gossip table.
    GossipIngested = "gossip_taken_in",
    /// Messages or parts on a channel of gossip that were no check.
    GossipMalformed = "gossip_malformed",
    /// Checks of foreign nodes for which there was no room.
    GossipRefused = "gossip_refused",
    /// A measure, not a count: how many entries the last broadcast had.
    GossipBroadcastEntries = "gossip_broadcast_entries",
    /// A measure, not a count: for how many microseconds a name had no leader before the last
    /// election that followed another leadership.
    LastFailover = "last_failover_us",
}

//! The table of leaders of a prefix, the sequence of terms, and the extension itself, as the
//! catalogs have them. This part knows Oban's tables, and `pg` knows how to read and write any
//! table.

pub mod extension;
pub mod jobs;
pub mod peers;
pub mod terms;

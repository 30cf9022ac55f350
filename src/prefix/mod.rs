//! Oban's tables of a prefix, and the extension itself, as the catalogs have them. What is here knows Oban; how
//! Postgres is asked is in `pg`.

pub mod extension;
pub mod peers;
pub mod terms;

use pgrx::prelude::*;

#[pg_schema]
mod tests {
    use pgrx::prelude::*;

    #[pg_test]
    fn version_is_the_crates() {
        assert_eq!(crate::oban_version(), env!("CARGO_PKG_VERSION"));
    }
}

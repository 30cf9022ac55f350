CREATE TRIGGER obanrs_jobs_insert AFTER INSERT ON {table}
    REFERENCING NEW TABLE AS obanrs_inserted
    FOR EACH STATEMENT EXECUTE FUNCTION {function}();

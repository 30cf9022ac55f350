-- OR REPLACE: another session may have installed it just now.
CREATE OR REPLACE TRIGGER obanrs_jobs_insert AFTER INSERT ON {table}
    REFERENCING NEW TABLE AS obanrs_inserted
    FOR EACH STATEMENT EXECUTE FUNCTION {function}();

#!/usr/bin/env bash
# Inside a clean Debian root: what the official image's Dockerfile does to it, and what its entrypoint does.
#
#   image.sh official MAJOR              makes of the root what the official image is
#   image.sh run MAJOR [ENTRYPOINT]      starts the image with an empty volume, and uses it; with the official
#                                        image's docker-entrypoint.sh if it is given
set -euo pipefail
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive

mode=$1 major=$2 entrypoint=${3-}
# shellcheck source=tests/packages/lib.sh
. "$(dirname "$0")/lib.sh"
sample=/usr/share/postgresql/postgresql.conf.sample

# From docker-library/postgres, Dockerfile-debian.template, and from debian:bookworm-slim.
official() {
    pg_dropcluster "$major" main 2>/dev/null || true
    cat >/etc/dpkg/dpkg.cfg.d/docker <<TXT
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
TXT
    dpkg-divert --add --rename --divert $sample.dpkg "/usr/share/postgresql/$major/postgresql.conf.sample"
    cp $sample.dpkg $sample
    ln -s ../postgresql.conf.sample "/usr/share/postgresql/$major/"
    sed -ri "s!^#?(listen_addresses)\s*=\s*\S+.*!\1 = '*'!" $sample
    mkdir /docker-entrypoint-initdb.d
    install -d -o postgres -g postgres -m 3777 /var/run/postgresql
    install -d -o postgres -g postgres -m 1777 /var/lib/postgresql/data
}

# What docker-entrypoint.sh does with an empty volume, as postgres.
imitated() {
    initdb --username=postgres --pwfile=<(echo "$POSTGRES_PASSWORD")
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    pg_ctl -D "$PGDATA" -o "-c listen_addresses=''" -w start
    psql -v ON_ERROR_STOP=1 -X --username postgres -d postgres -c "CREATE DATABASE $POSTGRES_DB"
    local file
    for file in /docker-entrypoint-initdb.d/*.sql; do
        psql -v ON_ERROR_STOP=1 -X --username postgres --dbname "$POSTGRES_DB" -f "$file"
    done
    pg_ctl -D "$PGDATA" -m fast -w stop
    exec postgres "$@"
}

run() {
    export PATH=$PATH:/usr/lib/postgresql/$major/bin PG_MAJOR=$major PGDATA=/var/lib/postgresql/data
    export POSTGRES_PASSWORD=secret POSTGRES_DB=jobs database=jobs
    local docs=/usr/share/doc/postgresql-$major-obanrs

    step "the package brought its licences, although the image leaves documentation out"
    [ -e "$docs/copyright" ] || fail "no copyright"
    if [ -e /packages/THIRD-PARTY-LICENSES ]; then
        [ -e "$docs/THIRD-PARTY-LICENSES.gz" ] || fail "no licences of what is linked"
    fi

    step "the container starts with an empty volume"
    export -f imitated
    # No TCP: the test is of the image's database.
    local arguments=(-c listen_addresses=)
    if [ -n "$entrypoint" ]; then
        as_postgres bash "$entrypoint" postgres "${arguments[@]}" >/tmp/log 2>&1 &
    else
        as_postgres bash -c 'set -e; imitated "$@"' imitated "${arguments[@]}" >/tmp/log 2>&1 &
    fi
    # The entrypoint's server for the start-up files says so first.
    initialized() { [ "$(grep -c 'database system is ready to accept connections' /tmp/log)" = 2 ]; }
    wait_until initialized

    step "obanrs is preloaded, and in POSTGRES_DB only"
    equals "$(sql 'SHOW shared_preload_libraries')" obanrs
    equals "$(sql "SELECT count(*) FROM pg_extension WHERE extname = 'obanrs'")" 1
    equals "$(database=postgres sql "SELECT count(*) FROM pg_extension WHERE extname = 'obanrs'")" 0

    step "a session"
    sql 'SELECT oban_install()'
    well
    equals "$(sql "SELECT oban_join('web.1') > 0, oban_is_leader()")" "t|t"
    sql "INSERT INTO oban_jobs (worker, args) VALUES ('Mailer', '{}')"

    # As `docker stop` does.
    kill -INT "$(head -n 1 "$PGDATA/postmaster.pid")"
    wait || true
    contains "$(tail -n 1 /tmp/log)" "database system is shut down"
    echo
    echo "image.sh passed: Postgres $major"
}

"$mode"

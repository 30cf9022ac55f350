# shellcheck shell=bash
# What the scripts in roots share. $major is the server's.

step() { printf '\n== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }

# contains TEXT WORDS: fails unless the text has the words.
contains() {
    case $1 in
        *"$2"*) ;;
        *) printf '%s\n' "$1" >&2; fail "expected \"$2\" in the above" ;;
    esac
}
lacks() {
    case $1 in
        *"$2"*) printf '%s\n' "$1" >&2; fail "expected no \"$2\" in the above" ;;
    esac
}
equals() { [ "$1" = "$2" ] || fail "expected \"$2\", got \"$1\""; }

# wait_until COMMAND...: fails when it isn't true within half a minute.
wait_until() {
    local end=$((SECONDS + 30))
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || fail "half a minute went by: $*"
        sleep 0.1
    done
}

as_postgres() { runuser -u postgres -- "$@"; }
sql() { as_postgres psql -XAtq -v ON_ERROR_STOP=1 -d "${database:-postgres}" -c "$1"; }

# Everything that oban_check finds is well; workers take a moment to start.
no_fault() { [ "$(sql "SELECT count(*) FILTER (WHERE NOT ok), count(*) > 5 FROM oban_check()")" = '0|t' ]; }
well() {
    local end=$((SECONDS + 30))
    until no_fault; do
        if [ $SECONDS -ge $end ]; then
            sql 'SELECT * FROM oban_check() WHERE NOT ok' >&2
            fail "oban_check finds faults"
        fi
        sleep 0.1
    done
}

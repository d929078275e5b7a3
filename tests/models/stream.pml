/*
 * A stream between an owner and its clients, by way of Redis: does it come, does it come back, and does it end?
 *
 * Both sides are our daemons: request, record, heartbeat and eviction as in src/control (reconcile.rs, state.rs, loops.rs,
 * registration.rs). One statement is one command to Redis, or one change of a daemon's state. Either daemon may die before
 * any of them and come back, or not; Redis may be emptied (FLUSHALL); the master may remove a silent machine, late too,
 * when that is back already; keys run out. FAULTS is how many of these there may be, CHANGES how often a client may change
 * its mind (of two, the second alone). N clients ask for one segment.
 *
 * Time is not counted, only kept in order, by what each limit is for:
 *   a heartbeat (every 10 s, old at 25 s, gone at 75 s) gets old only while its client is dead or does not want the stream;
 *   a request (75 s, looked for every 2 s) can get too old only while the owner is dead;
 *   that a client has asked less than 25 s ago may be over at any time.
 * So what spin tries is more than what can happen, and what it finds to hold holds.
 *
 * `served`: once client 0 and the owner live for good, client 0 wants the stream, and the faults are over, frames flow from
 * some time on for ever. `ended`: once no client wants it any more for good, there is from some time on no publisher.
 * Both with weak fairness: whoever can do something does it some time.
 *
 * Each of these takes a rule away, and spin must find that it is missing:
 *   served: NO_SYNC (the owner does not look whether Redis has lost its keys), NO_REWRITE (who asks again does not get its
 *   record again), NO_ASK_AGAIN (a client asks once), with two clients NO_DELETE (an answered request stays and is in the
 *   way of the next); and NO_ADOPTION, NO_CLEARING, NO_SILENCE together: an owner that starts takes on living clients, it
 *   clears the records of its earlier run, a mirror that hears nothing asks again. Any one of the three is enough.
 *   ended: NO_EVICTION, NO_STOP.
 */
#ifndef N
#define N 1
#endif
#ifndef FAULTS
#define FAULTS 2
#endif
#ifndef CHANGES
#define CHANGES 1
#endif
#define BIT(client) (1 << (client))
/* A boot id, as far as it matters: that of the publisher that runs, or of one that is gone. */
#define NOW  1
#define PAST 2

/* Redis. */
byte request;     /* dao:connections: whose, from 1; 0 is none */
byte record;      /* dao:machines:..:connections: a set of clients */
byte record_boot; /* and the publisher in it: 0, NOW or PAST */
byte heartbeat[N];
#define NONE  0
#define OLD   1
#define FRESH 2
bool registered;  /* the owner's keys */
byte hint;        /* wake-up for a release: whose, from 1; they get lost */

/* The owner. Sets of clients are bits. */
bool owner_up, owner_kill;
bool publisher;
byte clients, recent;
byte written, answering;
bool written_known;

/* The clients. */
bool client_up[N], client_kill[N], wanted[N], asked[N];
byte mirror[N]; /* the publisher that it is for: 0 where there is no mirror, NOW or PAST */
byte found[N];  /* the publisher in the record that was read */

byte faults, changes;
bool removal; /* the master has found the owner silent */

#define live (owner_up && client_up[0] && publisher && mirror[0] == NOW)
#define quiet (faults == FAULTS && !removal)
#define good (quiet && owner_up && client_up[0] && wanted[0])
#if N == 1
#define unwanted (quiet && owner_up && !(client_up[0] && wanted[0]))
#else
#define unwanted (quiet && owner_up && !(client_up[0] && wanted[0]) && !(client_up[1] && wanted[1]))
#endif

ltl served { <>[]good -> <>[]live }
ltl ended  { <>[]unwanted -> <>[]!publisher }

/* What was NOW is PAST. */
inline end_publisher() {
    publisher = false;
    record_boot = (record_boot == NOW -> PAST : record_boot);
    written_known = written_known && written == 0; /* with that publisher in it is not as it should be */
    written = 0;
    i = 0;
    do
    :: i < N ->
        mirror[i] = (mirror[i] == NOW -> PAST : mirror[i]);
        found[i] = (found[i] == NOW -> PAST : found[i]);
        i++
    :: else -> break
    od;
    i = 0
}

inline lose_owner() {
    d_step {
        end_publisher();
        owner_up = false; owner_kill = false;
        clients = 0; recent = 0; written = 0; written_known = true; answering = 0;
        seen = 0; fresh = 0; gone = 0
    }
}

inline forget_records() { written_known = false; written = 0 }

/* Whose heartbeat is fresh, in one round trip. */
inline look_at_heartbeats(among) {
    d_step {
        fresh = 0;
        i = 0;
        do
        :: i < N ->
            if
            :: heartbeat[i] == FRESH -> fresh = fresh | (among & BIT(i))
            :: else
            fi;
            i++
        :: else -> break
        od;
        i = 0
    }
}

/* dao-command has got what the others saw, a request, the clients with a heartbeat and who has gone, and decides. */
inline decide() {
    /* State::on_request. Whoever asks may have lost sight of its record: it is written again. */
    if
    :: seen != 0 ->
        clients = clients | BIT(seen - 1);
        recent = recent | BIT(seen - 1);
        answering = seen;
        if
        :: gone == seen -> gone = 0 /* State::on_client_gone: it has asked since */
        :: else
        fi;
#ifndef NO_REWRITE
        forget_records();
#endif
        seen = 0
    :: else
    fi;
    /* State::on_client_ages. Where everybody was looked at, strangers are taken on. */
    recent = recent | (fresh & ~clients);
    clients = clients | fresh;
#ifndef NO_EVICTION
    clients = clients & (fresh | recent);
    if
    :: gone != 0 -> clients = clients & ~BIT(gone - 1)
    :: else
    fi;
#endif
    fresh = 0;
    gone = 0;
    recent = recent & clients;
    /* State::reconcile */
    if
    :: publisher && clients == 0 ->
#ifdef NO_STOP
        skip
#else
        end_publisher()
#endif
    :: !publisher && clients != 0 -> publisher = true
    :: else
    fi
}

proctype owner() {
    byte seen, fresh, gone, i;
start:
    {
        /* EarlierRun::take: records name ports on which nobody listens; living clients are taken on. */
        d_step {
            owner_up = true;
            written_known = true;
#ifndef NO_CLEARING
            record = 0; record_boot = 0
#endif
        };
#ifndef NO_ADOPTION
        look_at_heartbeats(255);
#endif
        d_step { registered = true; clients = fresh; recent = fresh; fresh = 0 };
        do
        :: true ->
            /* dao-shm-sync: has Redis lost our keys? */
#ifndef NO_SYNC
            if
            :: !registered -> d_step { registered = true; forget_records() }
            :: else
            fi;
#endif
            /* dao-conn-monitor: a client says that it has gone. */
            if
            :: hint != 0 ->
                d_step {
                    if
                    :: heartbeat[hint - 1] == NONE -> gone = hint
                    :: else
                    fi;
                    hint = 0
                }
            :: else
            fi;
            /* dao-client-hb-monitor: before the last one is evicted, is there anybody else? */
            if
            :: clients != 0 ->
                look_at_heartbeats(clients);
                if
                :: fresh == 0 -> look_at_heartbeats(255)
                :: else
                fi
            :: else
            fi;
            /* dao-conn-monitor: requests. */
            d_step { seen = request; decide() };
            if
            :: clients != 0 && (!written_known || written != clients) ->
                d_step {
                    record = clients; record_boot = NOW;
                    written_known = true; written = clients
                }
            :: clients == 0 && (!written_known || written != 0) ->
                d_step {
                    record = 0; record_boot = 0;
                    written_known = true; written = 0
                }
            :: else
            fi;
            if
            :: answering != 0 && clients != 0 ->
                d_step {
#ifndef NO_DELETE
                    if
                    :: request == answering -> request = 0
                    :: else
                    fi;
#endif
                    answering = 0
                }
            :: else
            fi
        od
    } unless { owner_kill };
    lose_owner();
    if
    :: goto start
    :: true /* for good */
    fi
}

/* Registry::ask */
inline ask() {
    heartbeat[me] = FRESH;
    d_step {
        if
        :: request == 0 -> request = me + 1
        :: else
        fi;
        asked[me] = true
    }
}

inline lose_client() {
    d_step { client_up[me] = false; client_kill[me] = false; mirror[me] = 0; asked[me] = false; found[me] = 0; must_ask = false }
}

proctype client(byte me) {
    bool must_ask;
start:
    {
        client_up[me] = true;
        do
        :: changes < CHANGES && wanted[me] && (N == 1 || me != 0) ->
            /* Released: Action::StopMirror, Executor::forget */
            d_step { changes++; wanted[me] = false; mirror[me] = 0; asked[me] = false };
            heartbeat[me] = NONE;
            hint = me + 1
        :: changes < CHANGES && !wanted[me] -> d_step { changes++; wanted[me] = true }
        :: wanted[me] ->
            /* dao-conn-monitor */
            heartbeat[me] = FRESH;
            d_step {
                found[me] = ((record & BIT(me)) != 0 -> record_boot : 0);
#ifdef NO_ASK_AGAIN
                must_ask = !asked[me] && registered
#else
                must_ask = (found[me] == 0 || !asked[me]) && registered
#endif
            };
            /* State::reconcile. A mirror stays when its record goes. */
            if
            :: must_ask -> ask()
            :: else
            fi;
            if
            :: found[me] != 0 && mirror[me] != found[me] -> mirror[me] = 0; mirror[me] = found[me]
#ifndef NO_SILENCE
            :: found[me] == PAST && mirror[me] == PAST -> ask()
#endif
            :: else
            fi;
            d_step { found[me] = 0; must_ask = false }
        od
    } unless { client_kill[me] };
    lose_client();
    if
    :: goto start
    :: wanted[me] = false -> goto start /* nobody there wants it any more */
    :: true                             /* for good */
    fi
}

inline empty_redis() {
    request = 0; record = 0; record_boot = 0; registered = false;
    i = 0;
    do
    :: i < N -> heartbeat[i] = NONE; i++
    :: else -> break
    od;
    i = 0
}

/* What may go wrong. */
proctype trouble() {
    byte i;
    do
    :: faults < FAULTS && owner_up && !owner_kill -> d_step { faults++; owner_kill = true }
    :: faults < FAULTS && client_up[0] && !client_kill[0] -> d_step { faults++; client_kill[0] = true }
#if N > 1
    :: faults < FAULTS && client_up[1] && !client_kill[1] -> d_step { faults++; client_kill[1] = true }
#endif
    :: faults < FAULTS -> d_step { faults++; empty_redis() }
    :: faults < FAULTS -> d_step { faults++; record = 0; record_boot = 0 } /* somebody deletes the one key */
    :: faults < FAULTS && !owner_up && registered && !removal -> d_step { faults++; removal = true }
    :: removal -> d_step { removal = false; empty_redis() }
    :: quiet -> break
    od
}

/* Time passes. */
proctype clock() {
    do
    :: d_step { recent != 0 -> recent = 0 }
    :: d_step { request != 0 && !owner_up -> request = 0 }
    :: d_step { heartbeat[0] != NONE && !(client_up[0] && wanted[0]) -> heartbeat[0] = heartbeat[0] - 1 }
#if N > 1
    :: d_step { heartbeat[1] != NONE && !(client_up[1] && wanted[1]) -> heartbeat[1] = heartbeat[1] - 1 }
#endif
    od
}

init {
    atomic {
        written_known = true;
        wanted[0] = true;
#if N > 1
        wanted[1] = true;
        run client(1);
#endif
        run client(0);
        run owner();
        run trouble();
        run clock()
    }
}
